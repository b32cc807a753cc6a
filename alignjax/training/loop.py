"""The training loop: batches in, metrics and checkpoints out."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import time
from typing import NamedTuple

from absl import logging
import jax

from alignjax.data.batches import batching
from alignjax.optim import schedules
from alignjax.parallel import rules
from alignjax.training import (
  checkpoint,
  checksums,
  held_out,
  hooking,
  instrumentation,
  metrics,
  placement,
  preemption,
  processes,
  programs,
  save_timer,
  skipping,
  source,
  watchdog,
)
from alignjax.training.state import Frozen, TrainState
from alignjax.types import Array, PreferenceBatch

Origin = Callable[[int], str]


class NonFiniteError(ArithmeticError):
  """Training has produced a number that is not finite.

  Attributes:
    step: the first batch that produced it, counted from 1.
  """

  def __init__(self, message: str, step: int = 0):
    super().__init__(message)
    self.step = step


class Result(NamedTuple):
  """How a run ended."""

  state: TrainState
  step: int  # batches taken: updates done, and batches skipped
  preempted: bool  # SIGTERM arrived; everything that was trained is saved
  compilations: int  # compilations of the training step, one per batch shape


@dataclasses.dataclass(frozen=True)
class Training:
  """The computation of a run and its length.

  Args:
    step: the result of `build_train_step`, not jitted.
    frozen: reference and delta, placed on the mesh.
    mesh: the mesh shared by all processes.
    steps: total batches, including those taken before a resume and those skipped.
    schedule: the learning rate as a function of updates done, which is logged; None logs no learning rate.
    nonfinite_limit: batches in a row with a loss or gradient that is not finite that stop the run. Fewer are skipped.
  """

  step: skipping.Step
  frozen: Frozen
  mesh: jax.sharding.Mesh
  steps: int
  schedule: schedules.Schedule | None = None
  nonfinite_limit: int = 5


@dataclasses.dataclass(frozen=True)
class Logging:
  """Where a run reports.

  Args:
    writers: receive the metrics. The loop does not close them.
    announce: called with a line for each compilation: its time and its memory.
    origin: maps an example id to 'file:line', for error messages.
    times: further metrics of a step, from its batch and its seconds.
  """

  writers: Sequence[metrics.Writer] = ()
  announce: programs.Announce = logging.info
  origin: Origin = str
  times: Callable[[PreferenceBatch, float], Mapping[str, float]] = lambda batch, seconds: {}


@dataclasses.dataclass(frozen=True)
class Saving:
  """Where and how often to save.

  Args:
    checkpoints: the run's checkpoints.
    every: updates between checkpoints; 0 saves at the end only.
    confirm: called before each save, on every process; raises if the folder now belongs to another run.
    minutes: time from one checkpoint to the next, by the clock of process 0; 0 saves by updates only.
  """

  checkpoints: checkpoint.Checkpoints
  every: int = 0
  confirm: Callable[[], None] = lambda: None
  minutes: float = 0


@dataclasses.dataclass(frozen=True)
class _Pending:
  """A step that has been dispatched and whose metrics have not been read yet."""

  step: int
  metrics: Mapping[str, Array]
  verdict: skipping.Verdict
  batch: batching.Batch


def train(
  state: TrainState,
  batches: source.Source,
  training: Training,
  *,
  log: Logging = Logging(),
  evaluation: held_out.Evaluation | None = None,
  saving: Saving | None = None,
  hooks: Sequence[hooking.Hook] = (),
) -> Result:
  """Trains from the given state until `training.steps` updates are done or SIGTERM arrives.

  The loop reads the metrics of a step while the next one runs. It saves a state only once all metrics up to it, and all
  of its own arrays, are known to be finite. After an update it evaluates, calls hooks and saves, in this order.

  A batch whose loss, gradient or objective's memory is not finite is skipped: it counts as a step, but changes nothing
  else, so that schedules and the optimizer go on as if the data did not have it. A warning names its examples, and for
  the first of them the rows at fault.

  Args:
    state: placed on the mesh, as `placement.create_state` does it. Donated.
    batches: positioned at the batch that updates `state`.
    training: the step, its frozen arguments and the number of updates.
    log: where to report.
    evaluation: held-out examples; None evaluates nothing.
    saving: where to save; None saves nothing.
    hooks: functions to call after some of the updates.

  Returns:
    The final state, and why training ended.

  Raises:
    NonFiniteError: if `training.nonfinite_limit` batches in a row are not finite, or an array of the state; names the
      step and its examples. The state is not saved.
    MetricsError: if a writer cannot write its metrics. The state is saved first.
    SaveError: if a checkpoint cannot be written.
    SourceError: if `batches` cannot produce a batch. The state is saved first.
    ValueError: if `batches` ends before `training.steps`.
  """
  with preemption.Preemption() as notice, watchdog.during('step'):
    return _Run(state, batches, training, log, evaluation, saving, hooks).go(notice)


class _Run:
  """The mutable state of one call of `train`."""

  def __init__(
    self,
    state: TrainState,
    batches: source.Source,
    training: Training,
    log: Logging,
    evaluation: held_out.Evaluation | None,
    saving: Saving | None,
    hooks: Sequence[hooking.Hook],
  ):
    self.state, self.batches, self.training, self.log = state, batches, training, log
    self.evaluation, self.saving, self.hooks = evaluation, saving, hooks
    self.failure: metrics.MetricsError | None = None  # the first of the writers
    self.done = int(state.step)
    self.timer = save_timer.SaveTimer(0 if saving is None else saving.minutes, self.done)
    replicated = rules.replicated(training.mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    self.program = programs.Programs(
      'training step',
      instrumentation.instrumented(training.step, training.schedule),
      log.announce,
      donate_argnums=0,
      # Without these the compiler may choose other shardings for the new state than the old one had.
      out_shardings=(shardings, replicated),
    )
    if evaluation is not None:
      self.evaluator = held_out.Evaluator(evaluation, training.mesh, log.announce)
    guarded = skipping.guarded(training.step)
    # Without a new state there is nothing to donate, and the compiler removes the optimizer.
    self.metrics_program = programs.Programs(
      'search in a skipped batch', lambda *args: guarded(*args)[1:], log.announce, out_shardings=replicated
    )
    self.searches = 0
    self.pending: _Pending | None = None
    self.clock = time.monotonic()

  def go(self, notice: preemption.Preemption) -> Result:
    self.notice = notice
    if self.evaluation is not None and (self.evaluation.owed or (self.done == 0 and not self.saved())):
      values = self.evaluate()
      if not values:  # told to stop, and there is nothing new to save
        return Result(self.state, self.done, True, len(self.program))
      self.write(self.done, values)
    while self.done < self.training.steps:
      if self.saving is not None:
        self.saving.checkpoints.check()
      if self.notice.reached(self.done):
        return self.finish(preempted=True)
      self.advance()
      watchdog.step()
      if self.evaluation is not None and self.due(self.evaluation.every):
        self.flush(self.evaluate)
      self.call_hooks()
      if self.saving is not None and self.save_due():
        self.save()
    return self.finish(preempted=False)

  def due(self, every: int) -> bool:
    return self.done == self.training.steps or bool(every and self.done % every == 0)

  def save_due(self) -> bool:
    return bool(self.saving.every and self.done % self.saving.every == 0) or self.timer.due(self.done)

  def finish(self, preempted: bool) -> Result:
    """Saves, and raises an error in every process if one of them lost metrics."""
    self.flush()
    if any(processes.gather(int(self.failure is not None))):
      failure = self.failure or 'another process cannot write its metrics'
      raise metrics.MetricsError(f'{failure}. {self.save_at_once()}')
    self.save()
    return Result(self.state, self.done, preempted, len(self.program))

  def advance(self) -> None:
    """Dispatches one step, then reads the metrics of the one before it."""
    if self.batches.on_policy:  # the next batch waits for the last step anyway
      self.flush()
    try:
      batch = self.batches.next(self.state)
    except StopIteration:
      raise ValueError(
        f'the data end after {self.done} of {self.training.steps} steps: train for fewer steps, or repeat the data'
      ) from None
    except source.SourceError as error:
      if self.done == 0:
        raise
      raise source.SourceError(f'{error}. {self.save_at_once()}') from error
    previous = self.pending
    data = placement.to_global(self.training.mesh, batch.data)
    self.state, (values, verdict) = self.program(self.state, self.training.frozen, data)
    self.done += 1
    self.pending = _Pending(self.done, values, verdict, batch)
    if previous is not None:
      self.record(previous)

  def call_hooks(self) -> None:
    due = [hook for hook in self.hooks if hook.due(self.done)]
    if due:
      self.flush()
      with watchdog.during('evaluation'):
        for hook in due:
          hook.call(self.done, self.state)
      self.clock = time.monotonic()  # the next step's time leaves out hooks

  def flush(self, extra: Callable[[], Mapping[str, float]] = dict) -> None:
    """Waits for the last step. `extra` runs in between, and its values join the step's record."""
    pending, self.pending = self.pending, None
    if pending is not None:
      self.record(pending, extra)

  def record(self, pending: _Pending, extra: Callable[[], Mapping[str, float]] = dict) -> None:
    values = {name: value.item() for name, value in jax.device_get(dict(pending.metrics)).items()}
    now = time.monotonic()
    seconds, self.clock = now - self.clock, now
    verdict = jax.device_get(pending.verdict)
    if verdict.in_a_row:
      self.skip(skipping.Skipped(pending.step, verdict, values, pending.batch))
    times = {
      'time/seconds': seconds,
      'time/tokens_per_second': values['tokens'] / seconds,
      'time/peak_memory_gib': instrumentation.peak_memory_gib(),
      **self.log.times(pending.batch.data, seconds),
    }
    self.write(pending.step, {**values, **pending.batch.metrics, **times, **extra()})

  def skip(self, skipped: skipping.Skipped) -> None:
    """Logs a batch that the step has skipped, or stops the run."""
    limit, first = self.training.nonfinite_limit, skipped.first
    if broken := not_finite(self.state):
      raise NonFiniteError(f'{skipped.complaint}, because {broken} are not finite. Nothing is saved', first)
    examples = f'Examples of this batch on this process: {skipped.examples(self.log.origin)}'
    if skipped.in_a_row >= limit:
      raise NonFiniteError(
        f'{skipped.complaint}. The run stops without saving again. {examples}. {self.search(skipped.batch)}. '
        'Check these examples, lower the learning rate, or compute in float32',
        first,
      )
    self.searches += 1
    found = f'. {self.search(skipped.batch)}' if self.searches <= skipping.MOST_SEARCHES else ''
    logging.warning(
      '%s. The batch is skipped (%d in a row stop the run). %s', skipped.complaint, limit, examples + found
    )

  def search(self, batch: batching.Batch) -> str:
    """Describes the rows of a skipped batch that are at fault, given the present parameters."""

    def evaluate(data: PreferenceBatch) -> skipping.Alone:
      values, verdict = jax.device_get(self.metrics_program(self.state, self.training.frozen, data))
      return skipping.Alone(all(verdict.finite.values()), {name: value.item() for name, value in values.items()})

    with watchdog.during('evaluation'):
      text = skipping.Search(evaluate, self.training.mesh, self.log.origin).describe(batch)
    self.clock = time.monotonic()  # the next step's time leaves it out
    return text

  def write(self, step: int, values: Mapping[str, float]) -> None:
    for writer in self.log.writers:
      try:
        writer.write(step, values)
      except metrics.MetricsError as error:
        if self.failure is None:
          self.failure = error
          self.notice.request()

  def evaluate(self) -> dict[str, float]:
    """Means over the held-out examples, under names that start with `eval/`; empty if SIGTERM cuts it short."""
    frozen = dataclasses.replace(self.training.frozen, memory=self.state.memory, step=self.state.updates)
    with watchdog.during('evaluation'):
      means = self.evaluator(self.state.params, frozen, self.notice.noticed)
    self.clock = time.monotonic()  # the next step's time leaves out evaluation
    return {f'eval/{name}': value for name, value in sorted(means.items())}

  def saved(self) -> bool:
    return self.saving is not None and self.done in self.saving.checkpoints.steps()

  def save(self) -> None:
    """Checks that the state is finite, and saves it unless this step is already saved."""
    self.flush()
    if self.saved():
      return
    # Finite gradients do not imply this: an update can overflow, and a saved infinity breaks every resumed run.
    if wrong := not_finite(self.state):
      raise NonFiniteError(f'step {self.done}: {wrong} are not finite. They are not saved', self.done)
    if self.saving is not None:
      with watchdog.during('save'):
        self.saving.confirm()
        self.saving.checkpoints.save(self.done, self.state, self.batches)
      self.timer.restart(self.done)
      self.clock = time.monotonic()

  def save_at_once(self) -> str:
    """Saves, waits for the result, and describes it."""
    if self.saving is None:
      return 'Nothing is saved, because this run has no checkpoints'
    try:
      self.save()
      self.saving.checkpoints.wait()
    except checkpoint.SaveError as error:
      return f'The step cannot be saved either: {error}'
    return f'Step {self.done} is saved: remove the cause, then the same command resumes the run'


def not_finite(state: TrainState) -> str:
  """Lists the arrays of a state that are not finite; '' if all are."""
  names = [name.replace('params.', 'parameters ', 1) for name in checksums.not_finite(state)]
  return ', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '')
