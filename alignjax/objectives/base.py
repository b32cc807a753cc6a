"""Objectives as values: what one declares that it reads, and their algebra (`a + b`, `a - b`, `0.1 * a`, `a / 2`)."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import inspect
import math
import operator
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignjax import registry, stats
from alignjax.objectives import declarations, namespaces, pooling, schedules
from alignjax.types import Array, PreferenceBatch, Term

LABEL = frozenset({'label'})
LABEL_AND_WEIGHT = frozenset({'label', 'weight'})
SCORE = frozenset({'score'})

Apply = Callable[[stats.StatTable, PreferenceBatch], Term]
Summary = Callable[[Mapping[str, Array]], Mapping[str, Array]]
Coefficient = int | float | Array | schedules.Schedule


@dataclasses.dataclass(frozen=True)
class Memory:
  """The state that an objective keeps from batch to batch, such as a running mean: named arrays without gradient.

  The training step calls `update` once for each batch, before `apply`, carries the result and saves it in checkpoints.
  Evaluation only reads it. `apply` finds the result in `table.memory` (empty in a notebook) and what it was before the
  batch in `table.before` (None in a notebook and in evaluation).
  """

  initial: Mapping[str, float]
  update: Callable[[stats.StatTable, PreferenceBatch], Mapping[str, Array]]  # returns the next `table.memory`

  def __add__(self, other: 'Memory') -> 'Memory':
    def update(table: stats.StatTable, batch: PreferenceBatch) -> Mapping[str, Array]:
      return {**self.update(table, batch), **other.update(table, batch)}

    return Memory({**self.initial, **other.initial}, update)


NO_MEMORY = Memory({}, lambda table, batch: {})


def no_summary(means: Mapping[str, Array]) -> Mapping[str, Array]:
  """The summary of an objective that has none."""
  del means
  return {}


class Part(NamedTuple):
  """A summand of an objective: `coefficient * objective`."""

  coefficient: Coefficient
  objective: 'Objective'


@dataclasses.dataclass(frozen=True, repr=False)
class Objective:
  """A map from token statistics to one loss per prompt, with a declaration of everything that the map reads.

  Objectives form a vector space: `a + b` adds losses, `0.1 * a` scales one, by a number or by a `schedule`. Metrics of
  a sum are the metrics of its parts; if two parts report the same name, the later one's is prefixed with its label.

  Args:
    needs: the statistics that `apply` reads from the table.
    apply: the map.
    reads: the fields of the batch on which the loss depends; an array of `batch.cached` by its own name. Metrics may
      also read the label and the weight, which every batch has.
    optional: the fields among `reads` that a batch may lack.
    responses: the number N of responses to a prompt for which the loss is defined, or a set of such numbers; None for
      any N.
    couples_rows: whether the loss of a prompt depends on other prompts of the batch.
    ordered: whether it also depends on the order of the prompts; requires couples_rows.
    on_policy: whether the responses must be the current policy's own samples, which no loss can check by itself.
    name: an expression that builds the objective again.
    pool: sums over prompts that the losses read, if this is how prompts are coupled; requires couples_rows. Other
      couplings, such as a sort, are evaluated batch by batch.
    memory: what is kept from batch to batch; requires couples_rows, so that a batch is seen as a whole, once.
    summary: maps the means of the metrics to further metrics.
    parts: the summands of a sum or a multiple, with their coefficients; empty for a single objective. They follow from
      the operators; replacing another field of a sum makes it a single objective.
  """

  needs: frozenset[stats.Stat]
  apply: Apply
  reads: frozenset[str] = frozenset()
  optional: frozenset[str] = frozenset()
  responses: int | frozenset[int] | None = None
  couples_rows: bool = False
  ordered: bool = False
  on_policy: bool = False
  name: str = 'objective'
  memory: Memory = NO_MEMORY
  pool: pooling.Pool = pooling.NO_POOL
  summary: Summary = no_summary
  parts: tuple[Part, ...] = ()

  __array_ufunc__ = None  # `np.float32(2) * objective` asks the objective, and makes no array of objects

  def __post_init__(self):
    if self.memory.initial and not self.couples_rows:
      raise ValueError(f'{self.name}: an objective that remembers batches must declare couples_rows=True')
    if self.pool.names and not self.couples_rows:
      raise ValueError(f'{self.name}: an objective that pools prompts must declare couples_rows=True')
    if self.ordered and not self.couples_rows:
      raise ValueError(f'{self.name}: an objective that depends on the order of prompts must declare couples_rows=True')
    if not self.optional <= self.reads:
      raise ValueError(f'{self.name}: optional fields {sorted(self.optional - self.reads)} are missing from `reads`')
    if self.parts and not (isinstance(self.apply, _Sum) and self.apply.is_all_of(self)):
      object.__setattr__(self, 'parts', ())

  def __repr__(self) -> str:
    return self.name

  @property
  def label(self) -> str:
    """The name of its (first) factory, without arguments."""
    if self.parts:
      return self.leaves[0].label
    match = re.search(r'(\w+)\(', self.name)
    return match.group(1) if match else self.name

  @property
  def leaves(self) -> tuple['Objective', ...]:
    """The single objectives in it: itself, or those of its parts."""
    return tuple(leaf for part in self.parts for leaf in part.objective.leaves) or (self,)

  def __add__(self, other: 'Objective') -> 'Objective':
    if isinstance(other, Objective):
      return _sum(_summands(self) + _summands(other))
    return NotImplemented

  def __radd__(self, other: int) -> 'Objective':
    return self if isinstance(other, int) and other == 0 else NotImplemented  # `sum` starts from 0

  def __neg__(self) -> 'Objective':
    return _sum(tuple(Part(-coefficient, objective) for coefficient, objective in _summands(self)))

  def __sub__(self, other: 'Objective') -> 'Objective':
    return self + -other if isinstance(other, Objective) else NotImplemented

  def __rmul__(self, coefficient: Coefficient) -> 'Objective':
    known = _coefficient(coefficient)
    if known is NotImplemented:
      return NotImplemented
    return _sum((Part(known, self),))

  __mul__ = __rmul__

  def __truediv__(self, divisor: float | Array) -> 'Objective':
    known = _coefficient(divisor)
    if known is NotImplemented or isinstance(known, schedules.Schedule):
      return NotImplemented
    if not isinstance(known, jax.core.Tracer) and known == 0:
      raise ZeroDivisionError('an objective cannot be divided by 0')
    return _coefficient(1.0 / known) * self


def _summands(objective: Objective) -> tuple[Part, ...]:
  return objective.parts or (Part(1, objective),)


def _coefficient(value: Any) -> Any:
  """A coefficient as a Python number, a schedule or a traced scalar; NotImplemented for anything else.

  Raises:
    TypeError: if it is a truth value.
    ValueError: if it is a number that is not finite, or an array that is not a scalar.
  """
  if isinstance(value, schedules.Schedule):
    return value
  if isinstance(value, bool | np.bool_) or getattr(value, 'dtype', None) == np.dtype(bool):
    raise TypeError(f'an objective is scaled by a number, and {value!r} is a truth value')
  if isinstance(value, np.generic | np.ndarray | jax.Array):
    if value.ndim or not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
      raise ValueError(
        f'an objective is scaled by one real number, got an array of shape {value.shape} and type {value.dtype}'
      )
    if isinstance(value, jax.core.Tracer):
      return value
    value = value.item()
  if not isinstance(value, int | float):
    return NotImplemented
  if not math.isfinite(value):
    raise ValueError(f'an objective can only be scaled by a finite number, not by {value}')
  return value


def _is_one(coefficient: Coefficient) -> bool:
  """Whether there is nothing to multiply by. A factor 1.0 stays in the name, as it was written."""
  return type(coefficient) is int and coefficient == 1


def _term_name(coefficient: Coefficient, objective: Objective) -> str:
  name = f'({objective.name})' if objective.parts else objective.name
  if _is_one(coefficient):
    return name
  return f'{"traced" if isinstance(coefficient, jax.core.Tracer) else repr(coefficient)} * {name}'


def _sum_name(parts: tuple[Part, ...]) -> str:
  text = _term_name(*parts[0])
  for coefficient, objective in parts[1:]:
    negative = isinstance(coefficient, int | float) and math.copysign(1.0, coefficient) < 0
    text += f' - {_term_name(-coefficient, objective)}' if negative else f' + {_term_name(coefficient, objective)}'
  return text


class _Leaf(NamedTuple):
  """A single objective inside a sum, evaluated."""

  metrics: Mapping[str, Array]
  own: Mapping[str, Array]  # metrics that always have the prefix of the leaf: its loss, its coefficient


@dataclasses.dataclass(frozen=True, eq=False)
class _Sum:
  """The loss and the metrics of a linear combination of objectives, and everything else that follows from its parts."""

  parts: tuple[Part, ...]

  def __call__(self, table: stats.StatTable, batch: PreferenceBatch) -> Term:
    loss, found = self.evaluate(table, batch, ())
    metrics = self.names.join([leaf.metrics for leaf in found])
    for prefix, leaf in zip(self.names.prefixes, found, strict=True):
      metrics |= {
        f'{prefix}/{key}': jax.lax.stop_gradient(jnp.broadcast_to(value, loss.shape))
        for key, value in leaf.own.items()
        if len(found) > 1 or key != 'loss'
      }
    return Term(loss, metrics)

  def evaluate(
    self, table: stats.StatTable, batch: PreferenceBatch, outer: tuple[Coefficient, ...]
  ) -> tuple[Array, list[_Leaf]]:
    """The loss, summed in the order of the expression, and its leaves.

    Args:
      table: the statistics of the batch.
      batch: the batch.
      outer: the coefficients that scale the sum itself; only metrics use them.
    """
    total, found = None, []
    for coefficient, objective in self.parts:
      path = (*outer, coefficient)
      if objective.parts:
        loss, leaves = objective.apply.evaluate(table, batch, path)
      else:
        loss, metrics = objective.apply(table, batch)
        leaves = [_Leaf(metrics, _scheduled(path, table.step))]
      if not _is_one(coefficient):
        loss = _value(coefficient, table.step) * loss
      if len(leaves) == 1:
        leaves = [_Leaf(leaves[0].metrics, {**leaves[0].own, 'loss': loss})]
      total = loss if total is None else total + loss
      found += leaves
    return total, found

  def summary(self, means: Mapping[str, Array]) -> Mapping[str, Array]:
    """The summaries of the leaves, each of the means of its own metrics."""
    return self.names.join([leaf.summary(self.names.view(i, means)) for i, leaf in enumerate(self.leaves)])

  @functools.cached_property
  def leaves(self) -> tuple[Objective, ...]:
    return tuple(leaf for part in self.parts for leaf in part.objective.leaves)

  @functools.cached_property
  def names(self) -> namespaces.Namespaces:
    return namespaces.Namespaces([leaf.label for leaf in self.leaves])

  @functools.cached_property
  def fields(self) -> Mapping[str, Any]:
    """The fields of the sum as an objective."""
    terms = [part.objective for part in self.parts]
    reads = frozenset().union(*(term.reads for term in terms))
    return {
      'needs': frozenset().union(*(term.needs for term in terms)),
      'reads': reads,
      'optional': reads.difference(*(term.reads - term.optional for term in terms)),
      'responses': declarations.common_responses(terms),
      'couples_rows': any(term.couples_rows for term in terms),
      'ordered': any(term.ordered for term in terms),
      'on_policy': any(term.on_policy for term in terms),
      'name': _sum_name(self.parts),
      'memory': functools.reduce(operator.add, (term.memory for term in terms)),
      'pool': functools.reduce(operator.add, (term.pool for term in terms)),
      'summary': self.summary,
      'parts': self.parts,
    }

  def is_all_of(self, objective: Objective) -> bool:
    """Whether the objective is this sum and nothing more: no field was replaced."""
    return all(getattr(objective, name) is value for name, value in self.fields.items())


def _sum(parts: tuple[Part, ...]) -> Objective:
  if len(parts) == 1 and _is_one(parts[0].coefficient):
    return parts[0].objective
  total = _Sum(parts)
  return Objective(apply=total, **total.fields)


def _scheduled(path: tuple[Coefficient, ...], step: Array | None) -> dict[str, Array]:
  """{'coefficient': the product of the coefficients}, if one of them follows a schedule."""
  if not any(isinstance(coefficient, schedules.Schedule) for coefficient in path):
    return {}
  return {'coefficient': functools.reduce(operator.mul, [_value(coefficient, step) for coefficient in path])}


def _value(coefficient: Coefficient, step: Array | None) -> Array | float:
  return coefficient(step) if isinstance(coefficient, schedules.Schedule) else coefficient


OBJECTIVES: dict[str, Callable[..., Objective]] = {}
"""Every factory by the name under which expressions know it; `factory` adds to it."""


def factory[**P](build: Callable[P, Objective]) -> Callable[P, Objective]:
  """Registers a function that builds an objective, and names what it builds by the expression that builds it again.

  Expressions then know the function by its name: `dpo(beta=0.1, label_smoothing=0.0)`. Defining a function again, as
  in a notebook cell that is run twice, replaces it.

  Args:
    build: a function of hyper-parameters, which are literals, objectives or risk measures.

  Returns:
    The function. An objective that it builds is a single one, even if it is written as a sum.

  Raises:
    ValueError: if another function is registered under the name.
  """
  signature = inspect.signature(build)

  @functools.wraps(build)
  def named(*args: P.args, **kwargs: P.kwargs) -> Objective:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    arguments = ', '.join(f'{key}={_expression(value)}' for key, value in bound.arguments.items())
    return dataclasses.replace(build(*args, **kwargs), name=f'{build.__name__}({arguments})')

  return registry.add(OBJECTIVES, named, 'objectives')


def _expression(value: object) -> str:
  return value.name if isinstance(value, Objective) else repr(value)


def require(condition: bool, objective: str, requirement: str, value: object) -> None:
  """Raises a ValueError that names the objective and the hyper-parameter at fault."""
  if not condition:
    raise ValueError(f'{objective}: {requirement}, got {value!r}')


def require_pair(objective: str, table: stats.StatTable) -> None:
  """Raises a ValueError, at trace time, unless every prompt has exactly two responses."""
  responses = table.length.shape[-1]
  if responses != 2:
    raise ValueError(
      f'{objective} compares a preferred with a dispreferred response: '
      f'it needs N = 2 responses to a prompt, got N = {responses}'
    )


def require_score(objective: str, batch: PreferenceBatch) -> Array:
  """[B, N] float32: the scores of the responses; raises a ValueError, at trace time, if the batch has none."""
  if batch.score is None:
    raise ValueError(f'{objective} reads batch.score, a reward for each response, and this batch has none')
  return jax.lax.stop_gradient(jnp.asarray(batch.score, jnp.float32))
