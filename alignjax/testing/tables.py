"""Tables of statistics by compiled programs that objectives with the same statistics share."""

from collections.abc import Iterable
import functools
import operator

import jax

from alignjax import stats
from alignjax.objectives import examples
from alignjax.types import Array, PreferenceBatch


class _Same:
  """Statistics as a key of compiled programs: equal if they are the same objects, not if they have the same names.

  In a notebook, a statistic may be defined again under its name.
  """

  def __init__(self, needs: Iterable[stats.Stat]):
    self.needs = tuple(sorted(needs, key=lambda stat: stat.name))

  def __hash__(self) -> int:
    return hash(self.needs)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Same) and self.needs == other.needs and all(map(operator.is_, self.needs, other.needs))


@functools.partial(jax.jit, static_argnums=0)
def _compiled_table(same: _Same, policy: Array, reference: Array | None, batch: PreferenceBatch) -> stats.StatTable:
  return examples.table(same.needs, policy, reference, batch)


def table(
  needs: Iterable[stats.Stat], policy: Array, reference: Array | None, batch: PreferenceBatch
) -> stats.StatTable:
  """The table, by one program for all objectives that need the same statistics."""
  return _compiled_table(_Same(needs), policy, reference, batch)
