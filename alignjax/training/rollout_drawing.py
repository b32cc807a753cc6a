"""Draws rounds of rollouts: samples responses from the policy, scores and measures them, and writes them to disk."""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import pathlib
import time
from typing import Any, NamedTuple

from absl import logging
import jax
import numpy as np

from alignjax import rewards, stats
from alignjax.data.batches import order
from alignjax.data.reading import rows as reading
from alignjax.models import checkpoint_io
from alignjax.parallel import rules
from alignjax.sampling import sampler, sharded
from alignjax.training import (
  forward,
  processes,
  programs,
  rollout_files,
  rollout_metrics,
  rows,
  source,
  watchdog,
)
from alignjax.training import policy as policies
from alignjax.training import state as training_state
from alignjax.types import Array, Params, PreferenceBatch


class Question(NamedTuple):
  """A prompt to draw responses to."""

  prompt: reading.Prompt
  tokens: Sequence[int]
  weight: float = 1.0
  fields: Mapping[str, Any] = {}  # other columns of its row, which rewards read


@dataclasses.dataclass(frozen=True)
class Rounds:
  """The size of a round and the updates on it.

  Args:
    prompts: P, prompts of a round.
    minibatch: prompts of an update; divides `prompts`.
    epochs: passes over the responses of a round.
    group: prompts whose responses are drawn at once; divides `prompts`.
    refresh: rounds after which the policy becomes the reference; 0 for never.
    seed: seed of the order of prompts and of all draws.
  """

  prompts: int = 64
  minibatch: int = 64
  epochs: int = 1
  group: int = 64
  refresh: int = 0
  seed: int = 0

  def __post_init__(self):
    for name in ('minibatch', 'group'):
      if self.prompts % getattr(self, name):
        raise ValueError(f'{name}={getattr(self, name)}: must divide the {self.prompts} prompts of a round')

  @property
  def updates(self) -> int:
    """Updates on each round."""
    return self.epochs * self.prompts // self.minibatch

  def questions(self, number: int, count: int) -> np.ndarray:
    """[P] int64: the prompts of a round, of `count` prompts in the dataset."""
    return order.stream(count, self.seed, number * self.prompts, (number + 1) * self.prompts)

  def minibatch_of(self, number: int, update: int) -> np.ndarray:
    """[minibatch] int64: the places of the prompts in a round that an update takes."""
    epoch, part = divmod(update, self.prompts // self.minibatch)
    places = np.arange(self.prompts) if epoch == 0 else order.permutation(self.prompts, self.seed, number, epoch, 2)
    return places[part * self.minibatch :][: self.minibatch]


@dataclasses.dataclass(frozen=True)
class Scoring:
  """How responses are scored.

  Args:
    reward: the reward.
    text_of: the text of a response, from its prompt and its token ids.
    seconds: time limit of one part of the reward for one round; 0 for none.
  """

  reward: rewards.Reward
  text_of: Callable[[reading.Prompt, Sequence[int]], str]
  seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Drawing:
  """How responses are drawn and measured.

  Args:
    policy: the policy.
    decoding: number and length of responses, the strategy and the end tokens.
    prompt_size: number of tokens that prompts are padded to.
    layout: the mesh shared by all processes, and how many tokens have logits at once on a device.
    largest_gap: mean difference in nats between a token's log-probability in sampling and in training that stops the
      run; infinity for no limit.
    announce: called with a line for each compilation.
  """

  policy: policies.Policy
  decoding: sampler.Decoding
  prompt_size: int
  layout: rows.Layout
  largest_gap: float = float('inf')
  announce: programs.Announce = logging.info


class Rollouts:
  """Draws rounds, and keeps them on disk. All processes call it together.

  Args:
    questions: the prompts, the same on every process.
    rounds: the size of a round.
    drawing: how responses are drawn.
    scoring: how they are scored.
    folder: the folder of the rounds, shared by all processes.
    settings: recorded with each round, in JSON types.
  """

  def __init__(
    self,
    questions: Sequence[Question],
    rounds: Rounds,
    drawing: Drawing,
    scoring: Scoring,
    folder: pathlib.Path,
    settings: Mapping[str, Any],
  ):
    self.questions, self.rounds, self.drawing, self.scoring = questions, rounds, drawing, scoring
    self.folder, self.settings = folder, settings
    self.seconds: dict[str, float] = {}  # by stage, of the last round
    policy, decoding, layout = drawing.policy, drawing.decoding, drawing.layout

    def measure(params: Params, frozen: training_state.Frozen, batch: PreferenceBatch) -> dict[str, Array]:
      needs = {stats.logp, stats.entropy}
      reference = None if rounds.refresh == 1 else frozen.reference.states(policy, frozen.base, batch)
      if reference is not None:
        needs |= {stats.reference_logp, stats.reverse_kl}
      hidden = forward.hidden_states(policy.bind(frozen.base), params, batch)
      return dict(forward.table(needs, hidden, reference, batch, layout).values)

    announce = drawing.announce
    # By the kind of reference, on which the arguments depend.
    self._measures = collections.defaultdict(
      lambda: programs.Programs('log-probabilities of rollouts', measure, announce)
    )
    self._sampler = sharded.ShardedSampler(policy.model, layout.mesh, decoding)
    self._draw = programs.Programs(
      'sampling', self._sampler.sample, announce, describe=lambda prompts: _described(prompts, decoding)
    )

  def draw(self, state: training_state.TrainState, frozen: training_state.Frozen, number: int) -> rollout_files.Round:
    """Draws and scores a round, writes it, and returns what every process reads back.

    Args:
      state: the policy.
      frozen: the reference, and the parameters under adapters.
      number: the number of the round.

    Raises:
      RolloutError: the sampler's log-probabilities are not those of training, or the folder is not shared.
      SourceError: a reward fails, or the round cannot be written.
    """
    self.seconds = {}
    ids = self.rounds.questions(number, len(self.questions))
    key = jax.random.fold_in(jax.random.key(self.rounds.seed), number)
    groups = [np.arange(i, i + self.rounds.group) for i in range(0, len(ids), self.rounds.group)]
    with self._timed('sample'):
      placed = self._sampler.place(self.drawing.policy.attached(state.params, frozen.base))  # once for all groups
    drawn = [self._sample(placed, ids[group], group, key) for group in groups]
    del placed
    parts = [self._measured(state.params, frozen, each) for each in drawn]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    rollout_metrics.check_gap(arrays, self.drawing.largest_gap)
    if self.rounds.refresh == 1:  # the policy that draws a round is its reference
      arrays |= {'reference_logp': arrays['policy_logp'], 'kl': np.zeros_like(arrays['entropy'])}
    about = {'number': number, 'step': int(state.step), 'settings': self.settings}
    try:
      weight = np.array([self.questions[i].weight for i in ids], np.float32)
      sha256 = self._scored(about, {'ids': ids, 'weight': weight, **arrays})
    except (ValueError, OSError) as error:  # every process raises
      raise source.SourceError(f'round {number} of rollouts: {error}') from error
    with self._timed('read'):
      return rollout_files.read_visible(rollout_files.path(self.folder, number), sha256)

  def measure(self, params: Params, frozen: training_state.Frozen, batch: PreferenceBatch) -> dict[str, Array]:
    """The statistics of responses under the policy and the reference, by name, [B, N, R]."""
    return self._measures[type(frozen.reference)](params, frozen, batch)

  def _sample(self, placed: Params, ids: np.ndarray, places: np.ndarray, key: Array) -> dict[str, np.ndarray]:
    """Responses to some prompts of a round. The draws for a prompt depend on the key and on its place alone."""
    prompt = np.zeros((len(ids), self.drawing.prompt_size), np.int32)
    length = np.array([len(self.questions[i].tokens) for i in ids], np.int32)
    for row, i in enumerate(ids):
      prompt[row, : length[row]] = self.questions[i].tokens
    with self._timed('sample'):
      prompts = sampler.Prompts(prompt, length, places.astype(np.int32))
      drawn = self._draw(placed, key, jax.device_put(prompts, self._sampler.batch_sharding))
      drawn = jax.tree.map(checkpoint_io.on_host, drawn)
    return {
      'prompt': prompt,
      'prompt_length': length,
      'response': drawn.response,
      'response_length': drawn.response_length,
      'finished': drawn.finished,
      'sampler_logp': drawn.logp,
      'strategy_logp': drawn.strategy_logp,
    }

  def _measured(
    self, params: Params, frozen: training_state.Frozen, drawn: dict[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    """The responses to some prompts, and what the policy and the reference give to them."""
    with self._timed('measure'):
      ones = np.ones(len(drawn['prompt']), np.float32)
      inputs = (drawn[name] for name in ('prompt', 'prompt_length', 'response', 'response_length'))
      batch = PreferenceBatch(*inputs, ones, ones)
      batch = jax.device_put(batch, rules.batch_sharding(self.drawing.layout.mesh))
      values = {name: checkpoint_io.on_host(value) for name, value in self.measure(params, frozen, batch).items()}
    measured = {
      'policy_logp': values[stats.logp.name],
      'entropy': values[stats.entropy.name].sum(axis=2, dtype=np.float64).astype(np.float32),
    }
    if stats.reference_logp.name in values:
      measured['reference_logp'] = values[stats.reference_logp.name]
      measured['kl'] = values[stats.reverse_kl.name].sum(axis=2, dtype=np.float64).astype(np.float32)
    return drawn | measured

  def _scored(self, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """Scores a round on process 0, or on all for a reward that needs them, and writes it. Returns its checksum."""
    reward, shape = self.scoring.reward, arrays['response_length'].shape
    samples = self._samples(arrays) if reward.collective or jax.process_index() == 0 else []

    def scores(tick: Callable[[], None]) -> rewards.Scores:
      with self._timed('score'):
        return reward.scores(samples, seconds=self.scoring.seconds, tick=tick)

    found = processes.on_all(lambda: scores(watchdog.progress)) if reward.collective else None

    def write(alive: Callable[[], None]) -> str:
      def tick() -> None:
        watchdog.progress()
        alive()

      total, parts = found or scores(tick)
      parts = {name: values.reshape(shape) for name, values in parts.items()}
      drawn = rollout_files.Round(**about, **arrays, score=total.reshape(shape), parts=parts)
      with self._timed('write'):
        return rollout_files.write(self.folder, drawn, samples)

    return processes.from_first(write)

  def _samples(self, arrays: Mapping[str, np.ndarray]) -> list[rewards.Sample]:
    """The responses of a round as text, prompt by prompt."""
    samples = []
    for row, number in enumerate(arrays['ids']):
      question = self.questions[number]
      for tokens, length, finished in zip(
        arrays['response'][row], arrays['response_length'][row], arrays['finished'][row], strict=True
      ):
        text = self.scoring.text_of(question.prompt, tokens[:length])
        samples.append(rewards.Sample(question.prompt, text, int(length), bool(finished), question.fields))
    return samples

  @contextlib.contextmanager
  def _timed(self, stage: str) -> Iterator[None]:
    start = time.monotonic()
    with watchdog.during('evaluation'):
      yield
    self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - start


def _described(prompts: sampler.Prompts, decoding: sampler.Decoding) -> str:
  count, size = prompts.tokens.shape
  return f'{decoding.samples} responses of {decoding.max_new_tokens} tokens to {count} prompts of {size}'
