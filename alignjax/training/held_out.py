"""Evaluates the held-out examples of a run."""

from collections.abc import Callable, Iterable, Mapping
import dataclasses

import jax

from alignjax.data.batches import batching
from alignjax.parallel import rules
from alignjax.training import placement, programs, step, watchdog
from alignjax.training.state import Frozen
from alignjax.types import Array, Params, WeightedSum


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Held-out examples, and how to evaluate them.

  Args:
    step: the result of `build_eval_step`, not jitted.
    pool: that of `build_pool_step`; None if the objective has no pool. It takes another pass over the batches.
    batches: this process's rows; iterated once per evaluation, with the same number of batches in every process.
    every: updates between evaluations; 0 evaluates before and after training only.
    summary: maps the means of the metrics to further metrics: the objective's `summary`.
    owed: evaluate before the first step, because SIGTERM has cut the evaluation of the restored step short.
  """

  step: step.EvalStep
  batches: Iterable[batching.Batch]
  every: int = 0
  summary: Callable[[Mapping[str, Array]], Mapping[str, Array]] = lambda means: {}
  owed: bool = False
  pool: step.EvalStep | None = None


class Evaluator:
  """Compiles and runs an evaluation.

  Args:
    evaluation: the held-out examples, and how to evaluate them.
    mesh: the mesh of the run.
    announce: called with a line for each compilation.
  """

  def __init__(self, evaluation: Evaluation, mesh: jax.sharding.Mesh, announce: programs.Announce):
    self._evaluation, self._mesh = evaluation, mesh
    self._replicated = rules.replicated(mesh)
    self._step = programs.Programs('evaluation', evaluation.step, announce, out_shardings=self._replicated)
    self._pool = None
    if evaluation.pool is not None:
      self._pool = programs.Programs(
        'pool of the evaluation', evaluation.pool, announce, out_shardings=self._replicated
      )

  def __call__(self, params: Params, frozen: Frozen, stopped: Callable[[], bool]) -> dict[str, float]:
    """Means over the held-out examples by name; empty if `stopped` cuts it short."""
    if self._pool is not None:
      pool = self._sums(self._pool, params, frozen, stopped)
      if not pool:
        return {}
      frozen = dataclasses.replace(frozen, pool=pool)
    total = self._sums(self._step, params, frozen, stopped)
    if not total:
      return {}
    means = {name: value.mean() for name, value in total.items()}
    means = jax.device_get({**means, **self._evaluation.summary(means)})
    return {name: value.item() for name, value in means.items()}

  def _sums(
    self, program: programs.Programs, params: Params, frozen: Frozen, stopped: Callable[[], bool]
  ) -> dict[str, WeightedSum]:
    """The sums of a program over all examples; empty if `stopped` cuts them short."""
    total: dict[str, WeightedSum] = {}
    for batch in self._evaluation.batches:
      if stopped():
        return {}
      found = program(params, frozen, placement.to_global(self._mesh, batch.data))
      total = {name: total[name] + value if total else value for name, value in found.items()}
      watchdog.progress()
    return total
