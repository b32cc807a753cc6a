"""Creates small random batches, to find undeclared coupling and for the contract tests."""

from collections.abc import Iterable
import dataclasses

import jax.numpy as jnp
import numpy as np

from alignjax import stats
from alignjax.types import Array, PreferenceBatch

VOCAB = 11


def batch(
  seed: int,
  *,
  prompts: int = 6,
  responses: int = 2,
  prompt_size: int = 5,
  response_size: int = 7,
  needs: Iterable[stats.Stat] = (),
) -> PreferenceBatch:
  """Creates a batch with every field, uneven lengths and weights, and hard and soft labels.

  Args:
    seed: the seed of the random numbers.
    prompts: B.
    responses: N.
    prompt_size: P.
    response_size: R.
    needs: statistics that an objective needs. Response statistics among them get random cached values.
  """
  rng = np.random.default_rng(seed)
  pair = (prompts, responses)
  from_states = sorted((stat.name, stat.per_token) for stat in needs if isinstance(stat, stats.ResponseStat))
  return PreferenceBatch(
    prompt=_array(rng.integers(0, VOCAB, (prompts, prompt_size)), np.int32),
    prompt_length=_array(rng.integers(1, prompt_size + 1, prompts), np.int32),
    response=_array(rng.integers(0, VOCAB, (*pair, response_size)), np.int32),
    response_length=_array(rng.integers(1, response_size + 1, pair), np.int32),
    label=_array(rng.choice([1.0, 1.0, 0.8, 0.3], prompts), np.float32),
    weight=_array(rng.choice([1.0, 0.5, 2.0], prompts), np.float32),
    score=_array(rng.normal(size=pair), np.float32),
    behaviour_logp=_array(-3.0 * rng.exponential(size=pair), np.float32),
    cached={
      stats.BEHAVIOUR_TOKEN_LOGP: _array(-rng.exponential(size=(*pair, response_size)), np.float32),
      **{
        name: _array(rng.normal(size=(*pair, response_size) if per_token else pair), np.float32)
        for name, per_token in from_states
      },
    },
  )


def logits(seed: int, like: PreferenceBatch, scale: float = 2.0) -> Array:
  """Creates random logits of a policy or a reference, [B, N, R, V] float32."""
  rng = np.random.default_rng(seed)
  return _array(scale * rng.standard_normal((*like.response.shape, VOCAB)), np.float32)


def table(
  needs: Iterable[stats.Stat], policy: Array, reference: Array | None, like: PreferenceBatch
) -> stats.StatTable:
  """The table of `stats.from_logits`, in which response statistics, too, depend on the logits of the policy.

  Each is the log-probability of a token, or the mean over the tokens of a response.
  """
  needs = frozenset(needs)
  from_states = [stat for stat in needs if isinstance(stat, stats.ResponseStat)]
  if not from_states:
    return stats.from_logits(needs, policy, reference, like)
  cached = {**like.cached, **{stat.name: jnp.zeros(like.response.shape[:2]) for stat in from_states}}
  found = stats.from_logits(needs | {stats.logp}, policy, reference, dataclasses.replace(like, cached=cached))
  values = {
    **found.values,
    **{stat.name: found[stats.logp] if stat.per_token else found.mean(stats.logp) for stat in from_states},
  }
  kept = {stat.name: values[stat.name] for stat in needs}
  return dataclasses.replace(found, values=kept)


def _array(values: np.ndarray, dtype: type) -> Array:
  """Casts with numpy, since a cast with JAX compiles a program for each shape."""
  return jnp.asarray(values.astype(dtype))
