"""A language of seven sentences to two prompts, in which on-policy training has closed-form optima."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignjax import objectives, rewards
from alignjax.data.batches import batching
from alignjax.models import tabular
from alignjax.parallel import mesh
from alignjax.sampling import sampler, strategies
from alignjax.training import policy, references, rollout_drawing, rollout_rows, rollouts, rows, state, step

# Token 0 ends a sentence, and no sentence has more than two tokens.
SENTENCES = ((0,), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2))
PROMPTS = ((1,), (2,))
CONFIG = tabular.TabularConfig(vocab_size=3, order=3)
MODEL = tabular.build(CONFIG)
POLICY = policy.Policy(MODEL)
MESH = mesh.make_mesh(devices=jax.devices()[:1])
SCORE = np.array([[0.5, -1.0, 1.2, 0.3, 1.0, -0.4, 0.9], [0.0, 1.0, 0.0, -0.5, 0.7, 0.2, -1.0]])
STEPS = {}  # compiled steps


def text_of(prompt, tokens):
  del prompt
  return ''.join(map(str, tokens))


PLACE = {text_of('', sentence): i for i, sentence in enumerate(SENTENCES)}


def table(samples):
  return [SCORE[int(sample.prompt), PLACE[sample.response]] for sample in samples]


REWARD = rewards.Reward((rewards.Part(1.0, 'table()', table),))
QUESTIONS = [rollout_drawing.Question(str(i), tokens) for i, tokens in enumerate(PROMPTS)]


def params_of(seed: int):
  return {'logits': jnp.asarray(np.random.default_rng(seed).normal(size=(CONFIG.contexts, 3)), jnp.float32)}


INITIAL = params_of(0)


@jax.jit
def log_probabilities(params) -> jax.Array:
  """[2, 7]: of each sentence after each prompt."""
  logp = jax.nn.log_softmax(params['logits'])

  def of(prompt, sentence):
    tokens = [*prompt]
    total = 0.0
    for token in sentence:
      total += logp[CONFIG.context(tokens), token]
      tokens.append(token)
    return total

  return jnp.stack([jnp.stack([of(prompt, sentence) for sentence in SENTENCES]) for prompt in PROMPTS])


def normalised(logits) -> np.ndarray:
  logits = np.asarray(logits, np.float64)
  return np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None])


def distance(params, target: np.ndarray) -> float:
  """The largest total variation over the prompts."""
  return float(np.abs(np.exp(np.asarray(log_probabilities(params), np.float64)) - target).sum(axis=1).max() / 2)


class Setting(NamedTuple):
  """What a run in this world may vary."""

  objective: str = 'rlhf(beta=0.5)'
  samples: int = 2
  rounds: rollout_drawing.Rounds = rollout_drawing.Rounds(32, 32, 1, 32)
  pairing: str = 'all'
  ties: str = 'drop'
  kl_in_score: float = 0.0
  ratio_reference: str = 'initial'
  temperature: float = 1.0
  reward: rewards.Reward = REWARD
  learning_rate: float = 0.1
  largest_gap: float = 1e-4


def drawer(setting: Setting, folder, device_mesh=MESH) -> rollout_drawing.Rollouts:
  decoding = sampler.Decoding(setting.samples, 2, strategies.temperature(setting.temperature), (0,))
  layout = rows.Layout(mesh=device_mesh)
  drawing = rollout_drawing.Drawing(POLICY, decoding, 2, layout, setting.largest_gap)
  return rollout_drawing.Rollouts(
    QUESTIONS, setting.rounds, drawing, rollout_drawing.Scoring(setting.reward, text_of), folder, {'vocab_size': 3}
  )


def source_of(setting: Setting, made: rollout_drawing.Rollouts) -> rollouts.RolloutSource:
  objective = objectives.parse(setting.objective)
  fields = objective.reads | {stat.name for stat in objective.needs}
  shaping = rollout_rows.Shaping(setting.pairing, setting.ties, setting.kl_in_score, setting.ratio_reference, fields)
  source = rollouts.RolloutSource(made, shaping, batching.Share())
  source.frozen = FROZEN
  return source


FROZEN = state.Frozen(references.Live(INITIAL))


def optimizer(setting: Setting) -> optax.GradientTransformation:
  return optax.adam(setting.learning_rate)


def step_of(setting: Setting):
  key = setting.objective, setting.learning_rate
  if key not in STEPS:
    STEPS[key] = jax.jit(step.build_train_step(POLICY, objectives.parse(setting.objective), optimizer(setting)))
  return STEPS[key]


def start(setting: Setting) -> state.TrainState:
  return state.TrainState.create(jax.tree.map(jnp.copy, INITIAL), optimizer(setting), jax.random.key(0))


def train(setting: Setting, folder, updates: int):
  """Returns the parameters after some updates, and the source."""
  source, update, now = source_of(setting, drawer(setting, folder)), step_of(setting), start(setting)
  for _ in range(updates):
    now, _ = update(now, state.Frozen(), source.next(now).data)
  return now.params, source


class Killed(Exception):
  """Ends a run."""


class Run:
  """A run that checkpoints, and can be killed at any place and resumed.

  Args:
    setting: the setting.
    made: draws the rounds.
    every: updates between checkpoints.
  """

  def __init__(self, setting: Setting, made: rollout_drawing.Rollouts, every: int):
    self.setting, self.made, self.every = setting, made, every
    self.records = {}
    self.saved = (0, jax.device_get(leaves(start(setting))), json.dumps(source_of(setting, made).get_state()))

  def go(self, updates: int, kill=lambda place, number: None) -> list[dict]:
    source, update = source_of(self.setting, self.made), step_of(self.setting)
    done, values, position = self.saved
    now = jax.tree.unflatten(jax.tree.structure(start(self.setting)), [wrapped(value) for value in values])
    source.set_state(json.loads(position))
    self.records = {step: record for step, record in self.records.items() if step <= done}
    while done < updates:
      kill('before the batch', done)
      batch = source.next(now)
      kill('after the batch', done)
      now, metrics = update(now, state.Frozen(), batch.data)
      done += 1
      lasting = {name: value for name, value in batch.metrics.items() if not name.startswith('time/')}
      self.records[done] = jax.device_get(metrics) | lasting
      kill('after the update', done)
      if done % self.every == 0:
        self.saved = (done, jax.device_get(leaves(now)), json.dumps(source.get_state()))
        kill('after the checkpoint', done)
    return [{'step': step, **record} for step, record in sorted(self.records.items())]


def leaves(tree):
  return [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in jax.tree.leaves(tree)]


def wrapped(value):
  value = jnp.asarray(value)
  return jax.random.wrap_key_data(value) if value.dtype == jnp.uint32 else value
