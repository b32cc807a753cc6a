"""What the studies share: batches of small arrays, and training runs of one compiled program."""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignjax import objectives, stats
from alignjax.models import base as models
from alignjax.training import forward, policy, state, step
from alignjax.types import Array, Params, PreferenceBatch

Knobs = Mapping[str, Any]  # hyperparameters of an optimizer, by name; they may be traced
Build = Callable[[Knobs], optax.GradientTransformation]

CHUNK = 8192  # tokens whose logits are in memory at once


class Descent:
  """Training with one objective and one kind of optimizer; all values of the knobs share one compiled program.

  Args:
    model: the model to train.
    objective: the loss.
    build: builds the optimizer from its knobs.
  """

  def __init__(self, model: models.LanguageModel, objective: objectives.Objective, build: Build):
    def start(params: Params, knobs: Knobs) -> state.TrainState:
      return state.TrainState.create(params, build(knobs), jax.random.key(0), objective.memory.initial)

    def advance(
      now: state.TrainState, frozen: state.Frozen, data: PreferenceBatch, order: Array, knobs: Knobs
    ) -> tuple[state.TrainState, Mapping[str, Array]]:
      update = step.build_train_step(policy.Policy(model), objective, build(knobs), chunk=CHUNK)

      def body(now: state.TrainState, rows: Array) -> tuple[state.TrainState, Mapping[str, Array]]:
        return update(now, frozen, jax.tree.map(lambda x: x[rows], data))

      now, metrics = jax.lax.scan(body, now, order)
      return now, jax.tree.map(jnp.mean, metrics)

    self._start, self._advance = jax.jit(start), jax.jit(advance)

  def start(self, params: Params, knobs: Knobs) -> state.TrainState:
    """The state before the first update."""
    return self._start(params, knobs)

  def advance(
    self, now: state.TrainState, frozen: state.Frozen, data: PreferenceBatch, order: Array, knobs: Knobs
  ) -> tuple[state.TrainState, Mapping[str, Array]]:
    """Does one update for each row of `order`, [updates, rows of the data].

    Returns:
      The state, and the mean of each metric over the updates.
    """
    return self._advance(now, frozen, data, order, knobs)


def batch_of(
  prompt: np.ndarray, prompt_length: np.ndarray, response: np.ndarray, response_length: np.ndarray
) -> PreferenceBatch:
  """Builds a batch with weight 1 in which the first response is preferred."""
  ones = np.ones(len(prompt), np.float32)
  return PreferenceBatch(prompt, prompt_length.astype(np.int32), response, response_length.astype(np.int32), ones, ones)


@functools.partial(jax.jit, static_argnums=0)
def logp(model: models.LanguageModel, params: Params, batch: PreferenceBatch) -> Array:
  """Log-probabilities of the tokens of all responses, [B, N, R], nats."""
  states = forward.hidden_states(model, params, batch)
  return stats.statistics({stats.logp}, states, None, batch, chunk=CHUNK).values[stats.logp.name]


@functools.partial(jax.jit, static_argnums=0)
def reward(model: models.LanguageModel, params: Params, batch: PreferenceBatch) -> Array:
  """Rewards of all responses, [B, N], by a model with a score head."""
  states = forward.hidden_states(model, params, batch, {stats.reward})
  return stats.statistics({stats.reward}, states, None, batch, chunk=CHUNK).values[stats.reward.name]


def estimate(values: np.ndarray) -> tuple[float, float]:
  """Mean over seeds and its standard error, nan for a single seed."""
  values = np.asarray(values, np.float64)
  error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
  return float(values.mean()), float(error)
