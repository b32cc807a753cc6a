"""A language that a model learns in seconds, with a gold reward that can be over-optimised: the world of the studies.

Text is a first-order Markov chain over 16 tokens: token 0 ends a response with probability 0.12 after each token, and
the other transitions are drawn once from Dirichlet(0.6). A prompt has 3 tokens, a response at most 12 with its end.
The policy is a Llama of two layers and about 40 thousand parameters. It is fine-tuned on text, which gives the
reference of every study.

  gold(y) = 1 - ((A - 3) / 3)^2 - 0.3 B,   A and B: how often tokens 1 and 2 occur in y

The text has few 1s, so more of them is better near the reference, and worse from A = 3 on. A policy that goes on in
the direction of its preference data passes the best point.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignjax import objectives, stats
from alignjax.evaluation import evaluator
from alignjax.models import base as models
from alignjax.models import transformer
from alignjax.sampling import sampler, strategies
from alignjax.training import state
from alignjax.types import Array, Params, PreferenceBatch
from experiments.toy import descent

TOKENS, END, WANTED, UNWANTED = 16, 0, 1, 2
ENDS = 0.12  # probability of the end after each token
PROMPT, RESPONSE = 3, 12  # tokens
BEST = 3  # the best number of wanted tokens
SHARPNESS = 2.0  # P(a is preferred to b) = sigmoid(SHARPNESS (gold(a) - gold(b)))
SIDES = 4  # a prompt is for validation, for testing, or (2 of 4) for training

Measures = Mapping[str, float]
"""Measurements of a model: `gold`, `kl` (nats) and `length` (tokens) of its responses, and `validation/gold`."""


@functools.cache
def model(width: int = 48, layers: int = 2, output: str = 'logits') -> models.LanguageModel:
  """The policy; a reward model with `output='score'`."""
  config = transformer.TransformerConfig(
    vocab_size=TOKENS,
    width=width,
    layers=layers,
    heads=4,
    kv_heads=4,
    head_width=width // 4,
    mlp_width=2 * width,
    norm_epsilon=1e-5,
    rope_theta=1e4,
    tied_embeddings=True,
    max_positions=PROMPT + RESPONSE,
    remat='none',
    scan_layers=False,
    output=output,
  )
  return transformer.build(config)


@functools.cache
def _transitions() -> np.ndarray:
  """P(next token | token), [16, 16]; the rows are the tokens."""
  rows = np.random.default_rng(0).dirichlet(np.full(TOKENS - 1, 0.6), size=TOKENS)
  return np.column_stack([np.full(TOKENS, ENDS), (1.0 - ENDS) * rows])


def _step(tokens: np.ndarray, rng: np.random.Generator, probability: np.ndarray) -> np.ndarray:
  """The next token after each token."""
  cumulative = probability.cumsum(axis=1)[tokens]
  return (rng.random((len(tokens), 1)) * cumulative[:, -1:] > cumulative).sum(axis=1)


def prompts(count: int, rng: np.random.Generator, side: int | None = None) -> np.ndarray:
  """Draws prompts, [count, 3] int32.

  Args:
    count: number of prompts.
    rng: random generator.
    side: 0 for validation, 1 for testing; None for training. No prompt is on two sides.
  """
  going_on = _transitions() * (np.arange(TOKENS) != END)
  found = np.zeros((0, PROMPT), np.int32)
  while len(found) < count:
    tokens = [rng.integers(1, TOKENS, size=4 * count)]
    for _ in range(PROMPT - 1):
      tokens.append(_step(tokens[-1], rng, going_on))
    drawn = np.stack(tokens, axis=1).astype(np.int32)
    sides = drawn @ [1, 3, 7] % SIDES
    found = np.concatenate([found, drawn[sides > 1 if side is None else sides == side]])
  return found[:count]


def text(count: int, rng: np.random.Generator) -> PreferenceBatch:
  """Draws prompts for training, with one response of the chain to each: data of `sft()`."""
  asked = prompts(count, rng)
  response, ended = np.zeros((count, RESPONSE), np.int32), np.zeros(count, bool)
  length, last = np.zeros(count, np.int32), asked[:, -1]
  for place in range(RESPONSE):
    last = np.where(ended, END, _step(last, rng, _transitions()))
    response[:, place] = last
    length += ~ended
    ended |= last == END
  return descent.batch_of(asked, np.full(count, PROMPT), response[:, None], length[:, None])


def gold(response: np.ndarray, length: np.ndarray) -> np.ndarray:
  """The gold reward of responses [..., R] with their lengths [...]."""
  valid = np.arange(response.shape[-1]) < np.asarray(length)[..., None]
  wanted, unwanted = (np.sum((np.asarray(response) == token) & valid, axis=-1) for token in (WANTED, UNWANTED))
  return 1.0 - ((wanted - BEST) / BEST) ** 2 - 0.3 * unwanted


def reference(policy: models.LanguageModel, seed: int, updates: int = 600, rows: int = 64) -> Params:
  """Trains a model on text from nothing.

  Args:
    policy: the model.
    seed: seed of the parameters, the text and its order.
    updates: number of updates.
    rows: responses per update.
  """
  rng = np.random.default_rng([seed, 0])
  data = jax.tree.map(jnp.asarray, text(updates * rows, rng))
  training = descent.Descent(policy, objectives.sft(), lambda knobs: optax.adam(3e-3))
  start = training.start(policy.init(jax.random.key(seed)), {})
  order = np.arange(updates * rows).reshape(updates, rows)
  return training.advance(start, state.Frozen(), data, order, {})[0].params


class Drawn(NamedTuple):
  """Responses to prompts."""

  prompt: np.ndarray  # [B, 3]
  response: np.ndarray  # [B, N, R]
  length: np.ndarray  # [B, N]
  logp: np.ndarray  # [B, N] nats, under the distribution that they were drawn from

  @property
  def gold(self) -> np.ndarray:
    """The gold rewards, [B, N]."""
    return gold(self.response, self.length)

  @property
  def batch(self) -> PreferenceBatch:
    """The responses as a batch."""
    return descent.batch_of(self.prompt, np.full(len(self.prompt), PROMPT), self.response, self.length)


Proxy = Callable[[Drawn], np.ndarray]
"""A reward of responses, [B, N]."""


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _samples(
  policy: models.LanguageModel, params: Params, asked: tuple[Array, Array], samples: int, temperature: float
) -> sampler.Samples:
  prompt, key = asked
  strategy = strategies.temperature(temperature) if temperature != 1 else strategies.chain()
  decoding = sampler.Decoding(samples, RESPONSE, strategy, end_ids=(END,))
  length = jnp.full(len(prompt), PROMPT, jnp.int32)
  return sampler.sample(policy, params, sampler.Prompts(prompt, length), key, decoding)


def draw(
  policy: models.LanguageModel,
  params: Params,
  prompt: np.ndarray,
  key: Array,
  samples: int = 1,
  temperature: float = 1.0,
) -> Drawn:
  """Samples responses to prompts [B, 3]."""
  found = jax.device_get(_samples(policy, params, (prompt, key), samples, temperature))
  return Drawn(prompt, found.response, found.response_length, found.strategy_logp.sum(axis=-1))


def pairs(policy: models.LanguageModel, reference: Params, drawn: Drawn, rng: np.random.Generator) -> PreferenceBatch:
  """Labels the first two responses to each prompt by the gold reward, and puts the preferred one first.

  Args:
    policy: the model.
    reference: the parameters of the reference, whose log-probabilities are added.
    drawn: responses; their `logp` becomes the `behaviour_logp` of the pairs.
    rng: random generator of the labels: P(first) = sigmoid(2 (gold(first) - gold(second))).
  """
  rewards = drawn.gold[:, :2]
  first = rng.random(len(rewards)) < 1.0 / (1.0 + np.exp(-SHARPNESS * (rewards[:, 0] - rewards[:, 1])))
  return paired(policy, reference, drawn, np.where(first[:, None], [0, 1], [1, 0]))


def paired(policy: models.LanguageModel, reference: Params, drawn: Drawn, order: np.ndarray) -> PreferenceBatch:
  """Pairs of the responses with the numbers `order` [B, 2], the preferred one first; see `pairs`."""
  response = np.take_along_axis(drawn.response, order[..., None], axis=1)
  length, behaviour = (np.take_along_axis(values, order, axis=1) for values in (drawn.length, drawn.logp))
  batch = descent.batch_of(drawn.prompt, np.full(len(order), PROMPT), response, length)
  cached = {stats.reference_logp.name: descent.logp(policy, reference, batch)}
  return jax.tree.map(jnp.asarray, dataclasses.replace(batch, behaviour_logp=behaviour, cached=cached))


class Judge:
  """Measures models on held-out prompts, which are the same for every model.

  Args:
    policy: the model.
    count: number of prompts for validation, and of prompts for testing.
  """

  def __init__(self, policy: models.LanguageModel, count: int):
    rng = np.random.default_rng(0)
    self._policy, self._prompts = policy, np.concatenate([prompts(count, rng, side) for side in (0, 1)])
    self._kl = jax.jit(evaluator.build_kl_step(policy, chunk=descent.CHUNK))

  def __call__(self, params: Params, reference: Params, key: Array, proxy: Proxy | None = None) -> Measures:
    """Measures a model by one response to each prompt. The same key gives the same random numbers for every model.

    Args:
      params: the model.
      reference: the reference.
      key: the key of the random numbers.
      proxy: another reward, which becomes the measure `proxy`.
    """
    drawn = draw(self._policy, params, self._prompts, key)
    count = len(drawn.prompt) // 2
    table = self._kl(params, reference, drawn.batch)
    kl = np.asarray(table.sum(stats.reverse_kl))
    measures = {'gold': drawn.gold, 'kl': kl, 'length': drawn.length}
    if proxy is not None:
      measures['proxy'] = proxy(drawn)
    of_testing = {name: float(values[count:].mean()) for name, values in measures.items()}
    return of_testing | {'validation/gold': float(drawn.gold[:count].mean())}
