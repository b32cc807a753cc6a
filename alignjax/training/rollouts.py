"""On-policy training: a source that draws responses from the policy, scores them, and trains on them for some updates.

A round of rollouts is a dataset: it is on disk before its first update, and every process trains on what it reads back.
So a run that is resumed within a round takes the same batches as one that was never interrupted. The parameters that
drew a round are gone after its first update; at the start of a round it is drawn again.
"""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from alignjax.data.batches import batching
from alignjax.training import (
  rollout_drawing,
  rollout_files,
  rollout_keeping,
  rollout_metrics,
  rollout_references,
  rollout_rows,
)
from alignjax.training import state as training_state
from alignjax.types import PreferenceBatch


class RolloutSource:
  """Batches of the policy's own responses: `rounds.updates` updates on each round. A `source.Source`.

  Set `frozen` before the first batch.

  Args:
    rollouts: draws the rounds.
    shaping: forms rows from scored responses.
    share: the batch shards that this process holds.
    keeping: which rounds stay on disk; None for all.
  """

  def __init__(
    self,
    rollouts: rollout_drawing.Rollouts,
    shaping: rollout_rows.Shaping,
    share: batching.Share,
    keeping: rollout_keeping.Keeping | None = None,
  ):
    self.rollouts, self.shaping, self._share, self._keeping = rollouts, shaping, share, keeping
    self.on_policy = rollouts.rounds.updates == 1
    self.frozen = training_state.Frozen()
    self._taken = 0
    self._sha256 = ''  # of the round that a restored run is within
    self._round: rollout_files.Round | None = None
    self._rows: PreferenceBatch | None = None
    refresh = rollouts.rounds.refresh
    self._kept = rollout_references.Kept(refresh) if refresh > 1 else None
    self._began: float | None = None  # when the last round was drawn
    self._shares: dict[str, float] = {}  # of the time from one round to the next, by stage

  def next(self, state: training_state.TrainState) -> batching.Batch:
    """Returns the next batch. Draws a round first if this is its first update.

    Raises:
      RolloutError: the run is resumed within a round whose file is missing, damaged or of another run.
    """
    batch = self.peek(state)
    self._taken += 1
    return batch

  def peek(self, state: training_state.TrainState) -> batching.Batch:
    """The next batch, without moving on."""
    drawn = self.current(state)
    rounds, inner = self.rollouts.rounds, self._taken % self.rollouts.rounds.updates
    responses = drawn.score.shape[1]
    of_prompt = rollout_rows.PAIRINGS[self.shaping.pairing].rows(responses)
    prompts = rounds.minibatch_of(drawn.number, inner)
    places = self._share.rows(rounds.minibatch * of_prompt)
    data = rollout_rows.minibatch(self._rows, prompts, of_prompt, places)
    ids = np.repeat(drawn.ids[prompts], of_prompt)[places]
    values = {}
    if inner == 0:
      values = rollout_metrics.of_round(drawn, self.shaping, self.rollouts.scoring.reward.labels)
      values |= {f'time/rollout_{stage}': seconds for stage, seconds in self.rollouts.seconds.items()}
      values |= {f'time/share_{stage}': share for stage, share in self._shares.items()}
    return batching.Batch(data, ids, values)

  def current(self, state: training_state.TrainState) -> rollout_files.Round:
    """The round of the next batch."""
    number, inner = divmod(self._taken, self.rollouts.rounds.updates)
    if self._round is None or self._round.number != number:
      drawn = self._read(number) if inner else self._drawn(state, number)
      self._round, self._rows, self._sha256 = drawn, self.shaping.rows(drawn), drawn.sha256
    return self._round

  def _drawn(self, state: training_state.TrainState, number: int) -> rollout_files.Round:
    """Draws a round, and measures how the time since the last one was spent."""
    jax.block_until_ready(state.params)  # so that the last update counts as training, not as sampling
    now = time.monotonic()
    if self._began is not None:
      shares = {stage: seconds / (now - self._began) for stage, seconds in self.rollouts.seconds.items()}
      self._shares = {**shares, 'train': 1.0 - sum(shares.values())}
    self._began = now
    earlier = None if self._kept is None else self._kept.of(self.rollouts.folder, state.params, number)
    frozen = self.frozen if earlier is None else dataclasses.replace(self.frozen, reference=earlier)
    drawn = self.rollouts.draw(state, frozen, number)
    if self._keeping is not None:
      self._keeping.delete(self.rollouts.folder, number)
    return drawn

  def _read(self, number: int) -> rollout_files.Round:
    """Reads the round that a restored run is within."""
    file, first = rollout_files.path(self.rollouts.folder, number), number * self.rollouts.rounds.updates
    advice = (
      f'The parameters that drew round {number} are gone, so it cannot be drawn again: restore the file, or remove the '
      f'checkpoints after step {first}'
    )
    try:
      drawn = rollout_files.read(file)
    except rollout_files.RolloutError as error:
      raise rollout_files.RolloutError(f'{error}. {advice}') from error
    if drawn.sha256 != self._sha256 or drawn.step != first:
      raise rollout_files.RolloutError(
        f'{file}: these are not the rollouts of the checkpoint of step {self._taken}; they were drawn at step '
        f'{drawn.step} of another run. {advice}'
      )
    return drawn

  def get_state(self) -> Any:
    number, inner = divmod(self._taken, self.rollouts.rounds.updates)
    if inner and self._keeping is not None:
      self._keeping.saving(number)
    kept = self._kept.fingerprint if self._kept else ''
    return {'taken': self._taken, 'round': self._sha256 if inner else '', 'reference': kept}

  def set_state(self, state: Any) -> None:
    self._taken, self._sha256 = state['taken'], state['round']
    if self._kept is not None:
      self._kept.forget(state['reference'])
    self._round = self._rows = None
