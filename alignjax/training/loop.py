"""The training loop: batches in, metrics and checkpoints out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import math
import time
from typing import Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp

from alignjax.data.batches import batching, order
from alignjax.optim import schedules
from alignjax.parallel import rules
from alignjax.training import checkpoint as checkpoint_lib
from alignjax.training import metrics as metrics_lib
from alignjax.training import placement, preemption
from alignjax.training.state import Frozen, TrainState
from alignjax.types import Array, Params, PreferenceBatch, WeightedSum

Step = Callable[[TrainState, Frozen, PreferenceBatch], tuple[TrainState, dict[str, Array]]]
EvalStep = Callable[[Params, Frozen, PreferenceBatch], dict[str, WeightedSum]]
Origin = Callable[[int], str]
Announce = Callable[[str], None]


class NonFiniteError(ArithmeticError):
  """Training has produced a number that is not finite."""


class Result(NamedTuple):
  """How a run ended."""

  state: TrainState
  step: int  # updates done
  preempted: bool  # it was told to stop, and has saved
  compilations: int  # of the training step: one for each shape of batch


class Programs:
  """A function compiled ahead of time, once for each shape of its last argument, which is announced."""

  def __init__(self, name: str, function: Callable[..., Any], announce: Announce, **jit_options: Any):
    self._name = name
    self._announce = announce
    self._function = jax.jit(function, **jit_options)
    self._compiled: dict[tuple[Any, ...], jax.stages.Compiled] = {}

  def __len__(self) -> int:
    return len(self._compiled)

  def __call__(self, *args: Any) -> Any:
    signature = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(args[-1]))
    if signature not in self._compiled:
      start = time.monotonic()
      compiled = self._function.lower(*args).compile()
      self._compiled[signature] = compiled
      shape = ' x '.join(map(str, args[-1].response.shape))
      self._announce(f'{self._name}, responses {shape}: {_describe(compiled, time.monotonic() - start)}')
    return self._compiled[signature](*args)


def _describe(compiled: jax.stages.Compiled, seconds: float) -> str:
  memory = compiled.memory_analysis()
  text = f'compiled in {seconds:.1f} s'
  if memory is None:  # not every backend says
    return text
  sizes = (('arguments', memory.argument_size_in_bytes), ('temporaries', memory.temp_size_in_bytes))
  return text + ''.join(f', {size / 2**20:.1f} MiB of {what}' for what, size in sizes) + ' on each device'


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Held-out pairs, and how they are evaluated.

  Args:
    step: as `build_eval_step` makes it.
    batches: of this process's rows; iterated anew each time, with the same number of batches in every process.
    every: steps between evaluations; 0 for before and after training alone.
    summary: further metrics from the means of metrics, the objective's `summary`.
  """

  step: EvalStep
  batches: Iterable[batching.Batch]
  every: int = 0
  summary: Callable[[Mapping[str, Array]], Mapping[str, Array]] = lambda means: {}


@dataclasses.dataclass(frozen=True)
class _Pending:
  """A step that has been dispatched, and whose metrics have not been waited for."""

  step: int
  metrics: Mapping[str, Array]
  ids: Sequence[int]


def train(
  state: TrainState,
  frozen: Frozen,
  step: Step,
  iterator: Any,
  *,
  mesh: jax.sharding.Mesh,
  steps: int,
  schedule: schedules.Schedule,
  writers: Sequence[metrics_lib.Writer] = (),
  evaluation: Evaluation | None = None,
  checkpoints: checkpoint_lib.Checkpoints | None = None,
  save_every: int = 0,
  origin: Origin = str,
  announce: Announce = logging.info,
) -> Result:
  """Trains until `steps` updates are done or SIGTERM arrives, from wherever `state` and `iterator` stand.

  The metrics of a step are waited for while the next one runs. Before a state is saved they are all known to be finite.

  Args:
    state: placed on the mesh, as `placement.create_state` does it. Donated.
    frozen: reference and delta, placed on the mesh.
    step: as `build_train_step` makes it, not jitted.
    iterator: a Grain iterator of `batching.Batch`, this process's rows, that does not end before `steps`.
    mesh: of all processes.
    steps: updates in all, those already done included.
    schedule: learning rate by updates done, for the log.
    writers: of metrics. They are not closed.
    evaluation: of held-out pairs.
    checkpoints: where to save; None saves nothing.
    save_every: steps between checkpoints; 0 saves at the end only.
    origin: 'file:line' of an example id, for messages.
    announce: told of every compilation, with its memory.

  Raises:
    NonFiniteError: naming the step and its examples. Nothing has been saved since the step went wrong.
  """
  with preemption.Preemption() as notice:
    run = _Run(state, frozen, step, iterator, mesh, steps, schedule, writers, evaluation, checkpoints, origin, announce)
    return run.go(save_every, notice)


class _Run:
  """The state of one call of `train`."""

  def __init__(
    self,
    state: TrainState,
    frozen: Frozen,
    step: Step,
    iterator: Any,
    mesh: jax.sharding.Mesh,
    steps: int,
    schedule: schedules.Schedule,
    writers: Sequence[metrics_lib.Writer],
    evaluation: Evaluation | None,
    checkpoints: checkpoint_lib.Checkpoints | None,
    origin: Origin,
    announce: Announce,
  ):
    self.state, self.frozen, self.iterator, self.mesh = state, frozen, iterator, mesh
    self.steps, self.writers, self.evaluation, self.checkpoints = steps, writers, evaluation, checkpoints
    self.origin = origin
    self.done = int(state.step)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    self.program = Programs(
      'training step',
      _instrumented(step, schedule),
      announce,
      donate_argnums=0,
      # Without these the compiler may choose other shardings for the new state than the old one had.
      out_shardings=(shardings, rules.replicated(mesh)),
    )
    if evaluation is not None:
      self.eval_program = Programs('evaluation', evaluation.step, announce, out_shardings=rules.replicated(mesh))
    self.pending: _Pending | None = None
    self.clock = time.monotonic()

  def go(self, save_every: int, notice: preemption.Preemption) -> Result:
    if self.done == 0 and self.evaluation is not None and not self.saved():
      self.write(0, self.evaluate())
    while self.done < self.steps:
      if notice.reached(self.done):
        self.save()
        return self.result(preempted=True)
      self.advance()
      if self.evaluation is not None and (
        self.done == self.steps or (self.evaluation.every and self.done % self.evaluation.every == 0)
      ):
        self.flush(self.evaluate)
      if save_every and self.done % save_every == 0:
        self.save()
    self.save()
    return self.result(preempted=False)

  def result(self, preempted: bool) -> Result:
    return Result(self.state, self.done, preempted, len(self.program))

  def advance(self) -> None:
    """Dispatches one step, then deals with the metrics of the one before it."""
    batch = next(self.iterator, None)
    if batch is None:
      raise ValueError(f'the data end after {self.done} of {self.steps} steps: give batches without end')
    previous = self.pending
    self.state, metrics = self.program(self.state, self.frozen, placement.to_global(self.mesh, batch.data))
    self.done += 1
    self.pending = _Pending(self.done, metrics, batch.ids)
    if previous is not None:
      self.record(previous)

  def flush(self, extra: Callable[[], Mapping[str, float]] = dict) -> None:
    """Waits for the last step. `extra` is worked out in between and joins its record."""
    pending, self.pending = self.pending, None
    if pending is not None:
      self.record(pending, extra)

  def record(self, pending: _Pending, extra: Callable[[], Mapping[str, float]] = dict) -> None:
    values = {name: value.item() for name, value in jax.device_get(dict(pending.metrics)).items()}
    now = time.monotonic()
    seconds, self.clock = now - self.clock, now
    wrong = [f'{name} is {values[name]}' for name in ('loss', 'gradient_norm') if not math.isfinite(values[name])]
    if wrong:
      raise NonFiniteError(self.complaint(pending, ', '.join(wrong)))
    times = {'time/seconds': seconds, 'time/tokens_per_second': values['tokens'] / seconds}
    self.write(pending.step, values | times | extra())

  def complaint(self, pending: _Pending, what: str) -> str:
    examples = ', '.join(self.origin(int(i)) for i in pending.ids if i != order.PADDING_ID)
    return (
      f'step {pending.step}: {what}. The run stops, and saves nothing more. The batch (as far as this process fed it): '
      f'{examples}. Look at these examples, lower the learning rate, or compute in float32'
    )

  def write(self, step: int, values: Mapping[str, float]) -> None:
    for writer in self.writers:
      writer.write(step, values)

  def evaluate(self) -> dict[str, float]:
    """Means over the held-out pairs, under names that start with `eval/`."""
    total: dict[str, WeightedSum] = {}
    frozen = dataclasses.replace(self.frozen, memory=self.state.memory, step=self.state.step)
    for batch in self.evaluation.batches:
      sums = self.eval_program(self.state.params, frozen, placement.to_global(self.mesh, batch.data))
      total = {name: total[name] + value if total else value for name, value in sums.items()}
    means = {name: value.mean() for name, value in total.items()}
    means = jax.device_get({**means, **self.evaluation.summary(means)})
    self.clock = time.monotonic()  # evaluation is not part of the next step's time
    return {f'eval/{name}': value.item() for name, value in sorted(means.items())}

  def saved(self) -> bool:
    return self.checkpoints is not None and self.done in self.checkpoints.steps()

  def save(self) -> None:
    """Saves the state, unless that has been done, once it is known to be finite."""
    self.flush()
    if self.checkpoints is None or self.saved():
      return
    # Finite gradients do not quite promise it: an update can overflow, and a saved infinity ends every resumed run.
    wrong = [name for name, finite in jax.device_get(_finite(self.state.params)).items() if not finite]
    if wrong:
      raise NonFiniteError(f'step {self.done}: parameters {", ".join(wrong)} are not finite. They are not saved')
    self.checkpoints.save(self.done, self.state, self.iterator)
    self.clock = time.monotonic()


@jax.jit
def _finite(params: Params) -> dict[str, Array]:
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {jax.tree_util.keystr(path, simple=True, separator='.'): jnp.all(jnp.isfinite(leaf)) for path, leaf in leaves}


def _instrumented(step: Step, schedule: schedules.Schedule) -> Step:
  """The step, which also reports what the loop knows of it: learning rate, tokens, and a hash of the batch."""

  def instrumented(state: TrainState, frozen: Frozen, batch: PreferenceBatch) -> tuple[TrainState, dict[str, Array]]:
    lengths = batch.prompt_length + jnp.sum(batch.response_length, axis=1)
    own = {
      'learning_rate': schedule(state.step),
      'tokens': jnp.sum(jnp.where(batch.weight > 0, lengths, 0)),
      'batch_hash': sum(checkpoint_lib.checksum(leaf) for leaf in jax.tree.leaves(batch)),
    }
    state, metrics = step(state, frozen, batch)
    return state, {**metrics, **own}

  return instrumented
