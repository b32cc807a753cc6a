"""Objectives as values: what an objective is, its name, and its algebra (`a + b`, `0.1 * a`)."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import inspect
import math
import re

import jax
import jax.numpy as jnp

from alignjax import stats
from alignjax.types import Array, PreferenceBatch, Term


@dataclasses.dataclass(frozen=True)
class Memory:
  """What an objective keeps of the batches that it has seen, such as a running mean: named arrays without gradient.

  The training step calls `update` once for each batch, before `apply`, carries the result and saves it in checkpoints.
  In evaluation it is only read. `apply` finds it in `table.memory`, which is empty in a notebook.
  """

  initial: Mapping[str, float]
  update: Callable[[stats.StatTable, PreferenceBatch], Mapping[str, Array]]  # from `table.memory` to the next one

  def __add__(self, other: 'Memory') -> 'Memory':
    def update(table: stats.StatTable, batch: PreferenceBatch) -> Mapping[str, Array]:
      return {**self.update(table, batch), **other.update(table, batch)}

    return Memory({**self.initial, **other.initial}, update)


NO_MEMORY = Memory({}, lambda table, batch: {})


def _no_summary(means: Mapping[str, Array]) -> Mapping[str, Array]:
  del means
  return {}


@dataclasses.dataclass(frozen=True)
class Objective:
  """The token statistics that a loss needs, and the map from them to one loss per prompt.

  Objectives form a vector space: `a + b` adds losses, `0.1 * a` scales one. Metrics of a sum are the metrics of its
  parts; where two parts report the same name, the later one's is prefixed with its label.
  """

  needs: frozenset[stats.TokenStat]
  apply: Callable[[stats.StatTable, PreferenceBatch], Term]
  couples_rows: bool = False  # does the loss of one prompt depend on other prompts of the batch?
  name: str = 'objective'  # an expression that builds it again
  memory: Memory = NO_MEMORY  # only with couples_rows, so that a batch is seen as a whole, once
  summary: Callable[[Mapping[str, Array]], Mapping[str, Array]] = _no_summary  # more metrics, from the metrics' means

  def __post_init__(self):
    if self.memory.initial and not self.couples_rows:
      raise ValueError(f'{self.name}: an objective that remembers batches must say couples_rows=True')

  @property
  def label(self) -> str:
    """The name of its (first) factory, without arguments."""
    match = re.search(r'(\w+)\(', self.name)
    return match.group(1) if match else self.name

  def __add__(self, other: 'Objective') -> 'Objective':
    if not isinstance(other, Objective):
      return NotImplemented

    def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
      left, right = self.apply(table, batch), other.apply(table, batch)
      return Term(left.loss + right.loss, _merge(self, left, other, right))

    return Objective(
      needs=self.needs | other.needs,
      apply=apply,
      couples_rows=self.couples_rows or other.couples_rows,
      name=f'{self.name} + {other.name}',
      memory=self.memory + other.memory,
      summary=lambda means: {**other.summary(means), **self.summary(means)},
    )

  def __rmul__(self, scale: float) -> 'Objective':
    if isinstance(scale, bool) or not isinstance(scale, int | float):
      return NotImplemented
    if not math.isfinite(scale):
      raise ValueError(f'an objective can only be scaled by a finite number, not by {scale}')

    def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
      loss, metrics = self.apply(table, batch)
      return Term(scale * loss, metrics)

    name = f'({self.name})' if ' + ' in self.name else self.name
    return dataclasses.replace(self, apply=apply, name=f'{scale!r} * {name}')

  __mul__ = __rmul__


def _merge(left: Objective, left_term: Term, right: Objective, right_term: Term) -> Mapping[str, Array]:
  metrics = dict(left_term.metrics)
  for side, term in ((left, left_term), (right, right_term)):
    # A sum reports the loss of each part; a part that is itself a sum has done so already.
    if ' + ' not in side.name:
      _insert(metrics, f'{side.label}/loss', jax.lax.stop_gradient(term.loss))
  for key, value in right_term.metrics.items():
    _insert(metrics, key if key not in metrics else f'{right.label}/{key}', value)
  return metrics


def _insert(metrics: dict[str, Array], key: str, value: Array) -> None:
  """Adds an entry under a key that is free: `dpo/loss`, `dpo/loss_2`, ..."""
  candidate, count = key, 1
  while candidate in metrics:
    count += 1
    candidate = f'{key}_{count}'
  metrics[candidate] = value


def factory[**P](build: Callable[P, Objective]) -> Callable[P, Objective]:
  """Names what a factory builds by the expression that builds it: `dpo(beta=0.1, label_smoothing=0.0)`."""
  signature = inspect.signature(build)

  @functools.wraps(build)
  def named(*args: P.args, **kwargs: P.kwargs) -> Objective:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    arguments = ', '.join(f'{key}={_expression(value)}' for key, value in bound.arguments.items())
    return dataclasses.replace(build(*args, **kwargs), name=f'{build.__name__}({arguments})')

  return named


def _expression(value: object) -> str:
  return value.name if isinstance(value, Objective) else repr(value)


def require(condition: bool, objective: str, requirement: str, value: object) -> None:
  """Raises a ValueError that names the objective and the hyper-parameter which cannot be."""
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
  """[B, N] float32: the scores of the responses; raises a ValueError, at trace time, where the batch has none."""
  if batch.score is None:
    raise ValueError(f'{objective} reads batch.score, a reward for each response, and this batch has none')
  return jax.lax.stop_gradient(jnp.asarray(batch.score, jnp.float32))
