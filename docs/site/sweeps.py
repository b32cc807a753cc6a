"""What the figures of the families vary: tables of statistics along one axis, for any objective."""

from collections.abc import Callable, Iterable
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignjax import objectives, risk, stats
from alignjax.types import Array, PreferenceBatch

POINTS = 201
TOKENS = 10  # of every response
VOCABULARY = 8
REFERENCE = -1.0  # log-probability of every token under the reference, nats


class Curve(NamedTuple):
  """An objective along the axis of a sweep."""

  loss: np.ndarray  # [K]
  pull: np.ndarray  # [K, N], -d loss / d statistic, the mean over the tokens of each response


@dataclasses.dataclass(frozen=True)
class Sweep:
  """An axis along which objectives are evaluated.

  Attributes:
    label: the label of the axis.
    x: [K], the places on it. Together they are the K prompts of one batch.
    build: (needs, x) -> the table and the batch.
    of: the statistic in which the gradient is taken.
    responses: the names of the responses in the legend.
    relative: whether losses are divided by their slope in the middle of the axis, to compare shapes.
  """

  label: str
  x: np.ndarray
  build: Callable[[Iterable[stats.Stat], Array], tuple[stats.StatTable, PreferenceBatch]]
  of: stats.Stat = stats.logp
  responses: tuple[str, ...] = ('chosen', 'rejected')
  relative: bool = True

  def curve(self, objective: objectives.Objective) -> Curve:
    """The loss of an objective, and its gradient, at every place."""

    def evaluate(x: Array) -> tuple[Array, Array, Array]:
      table, batch = self.build(objective.needs, x)

      def total(values: Array) -> tuple[Array, Array]:
        changed = dataclasses.replace(table, values={**table.values, self.of.name: values})
        loss = objective.apply(changed, batch).loss
        return jnp.sum(loss), loss

      (_, loss), gradient = jax.value_and_grad(total, has_aux=True)(table.values[self.of.name])
      return loss, gradient, table.length

    loss, gradient, length = jax.jit(evaluate)(jnp.asarray(self.x, jnp.float32))
    loss = np.asarray(loss, np.float64)
    pull = -np.asarray(gradient, np.float64)
    tokens = np.asarray(length) if pull.ndim == 3 else np.ones(pull.shape)
    pull = pull.reshape(*tokens.shape, -1).sum(axis=-1) / tokens
    if not self.relative:
      return Curve(loss, pull)
    middle = len(loss) // 2
    scale = np.abs(pull[middle]).mean() or np.abs(pull).max()
    return Curve((loss - loss[middle]) / scale, pull / scale)


def _batch(responses: int, **fields: Array) -> PreferenceBatch:
  """K prompts with `responses` responses of `TOKENS` tokens, the first preferred with certainty."""
  shape = (POINTS, responses)
  given = {
    'prompt': jnp.zeros((POINTS, 1), jnp.int32),
    'prompt_length': jnp.ones(POINTS, jnp.int32),
    'response': jnp.zeros((*shape, TOKENS), jnp.int32),
    'response_length': jnp.full(shape, TOKENS, jnp.int32),
    'label': jnp.ones(POINTS),
    'weight': jnp.ones(POINTS),
    'score': jnp.stack([jnp.ones(POINTS), *[jnp.zeros(POINTS)] * (responses - 1)], axis=-1),
  }
  return PreferenceBatch(**{**given, **fields})


def _table(log_ratio: Array, batch: PreferenceBatch) -> stats.StatTable:
  """The table of responses whose log-ratio to the reference, [K, N], is spread evenly over their tokens."""
  per_token = jnp.broadcast_to((log_ratio / batch.response_length)[..., None], batch.response.shape)
  values = {stats.logp.name: REFERENCE + per_token, stats.reference_logp.name: jnp.full_like(per_token, REFERENCE)}
  return stats.StatTable.create(values, batch.response_length)


def margin(needs: Iterable[stats.Stat], x: Array) -> tuple[stats.StatTable, PreferenceBatch]:
  """Pairs of margin x: the chosen response has gained x / 2 nats, and the rejected one has lost as much."""
  del needs
  batch = _batch(2)
  return _table(jnp.stack([x / 2, -x / 2], axis=-1), batch), batch


def unequal_lengths(needs: Iterable[stats.Stat], x: Array) -> tuple[stats.StatTable, PreferenceBatch]:
  """Pairs as in `margin`, whose chosen response is twice as long as the rejected one."""
  del needs
  batch = _batch(2, response_length=jnp.broadcast_to(jnp.asarray([TOKENS, TOKENS // 2]), (POINTS, 2)))
  return _table(jnp.stack([x / 2, -x / 2], axis=-1), batch), batch


def likelihood(needs: Iterable[stats.Stat], x: Array) -> tuple[stats.StatTable, PreferenceBatch]:
  """Single responses of mean log-probability x."""
  del needs
  batch = _batch(1)
  return _table((x[:, None] - REFERENCE) * TOKENS, batch), batch


def labelled(desirable: bool) -> Callable[[Iterable[stats.Stat], Array], tuple[stats.StatTable, PreferenceBatch]]:
  """Single responses of log-ratio x with one label."""

  def build(needs: Iterable[stats.Stat], x: Array) -> tuple[stats.StatTable, PreferenceBatch]:
    del needs
    batch = _batch(1, label=jnp.full(POINTS, float(desirable)))
    return _table(x[:, None], batch), batch

  return build


def ratio(score: float) -> Callable[[Iterable[stats.Stat], Array], tuple[stats.StatTable, PreferenceBatch]]:
  """Single responses whose tokens are x times as likely as when they were drawn, with one score."""

  def build(needs: Iterable[stats.Stat], x: Array) -> tuple[stats.StatTable, PreferenceBatch]:
    del needs
    drawn = jnp.full((POINTS, 1, TOKENS), REFERENCE)
    batch = _batch(1, score=jnp.full((POINTS, 1), score), cached={stats.BEHAVIOUR_TOKEN_LOGP: drawn})
    return _table(jnp.log(x)[:, None] * TOKENS, batch), batch

  return build


def scores(needs: Iterable[stats.Stat], x: Array) -> tuple[stats.StatTable, PreferenceBatch]:
  """Two samples of equal probability whose scores differ by x."""
  del needs
  batch = _batch(2, score=jnp.stack([x / 2, -x / 2], axis=-1))
  return _table(jnp.zeros((POINTS, 2)), batch), batch


def drifted(needs: Iterable[stats.Stat], x: Array) -> tuple[stats.StatTable, PreferenceBatch]:
  """Two samples of equal score, of which the first has the log-ratio x."""
  del needs
  batch = _batch(2, score=jnp.zeros((POINTS, 2)))
  return _table(jnp.stack([x, jnp.zeros_like(x)], axis=-1), batch), batch


def rewards(needs: Iterable[stats.Stat], x: Array) -> tuple[stats.StatTable, PreferenceBatch]:
  """Pairs whose rewards differ by x."""
  del needs
  batch = _batch(2)
  return stats.StatTable.create({stats.reward.name: jnp.stack([x / 2, -x / 2], axis=-1)}, batch.response_length), batch


def drift(
  signs: tuple[float, float],
) -> Callable[[Iterable[stats.Stat], Array], tuple[stats.StatTable, PreferenceBatch]]:
  """Pairs whose tokens have their logits raised by x times a sign, so that whole distributions move."""

  def build(needs: Iterable[stats.Stat], x: Array) -> tuple[stats.StatTable, PreferenceBatch]:
    rng = np.random.default_rng(0)
    batch = _batch(2)
    reference = jnp.asarray(rng.normal(size=(1, 2, TOKENS, VOCABULARY)), jnp.float32)
    raised = jax.nn.one_hot(batch.response, VOCABULARY) * (x[:, None] * jnp.asarray(signs))[..., None, None]
    drawn = jax.nn.log_softmax(reference)[..., 0]
    drawn = jnp.broadcast_to(drawn, batch.response.shape)
    batch = dataclasses.replace(batch, cached={stats.BEHAVIOUR_TOKEN_LOGP: drawn})
    table = stats.from_logits(needs, reference + raised, jnp.broadcast_to(reference, raised.shape), batch)
    return table, batch

  return build


def two_tokens(objective: objectives.Objective, policy: np.ndarray, reference: float) -> tuple[np.ndarray, np.ndarray]:
  """The loss of a response of one token, of two that exist, and minus its gradient in the logit of the token.

  Args:
    objective: the objective.
    policy: [K], the probability of the token under the policy.
    reference: its probability under the reference.

  Returns:
    Both [K].
  """
  ones, one = jnp.ones(len(policy)), jnp.ones((len(policy), 1), jnp.int32)
  batch = PreferenceBatch(one, one[:, 0], jnp.zeros((len(policy), 1, 1), jnp.int32), one, ones, ones)

  def logits(probability: np.ndarray) -> Array:
    return jnp.asarray(np.log(np.stack([probability, 1.0 - probability], axis=-1))[:, None, None], jnp.float32)

  def total(shift: Array) -> tuple[Array, Array]:
    raised = logits(policy) + jnp.stack([shift, jnp.zeros_like(shift)], axis=-1)[:, None, None]
    table = stats.from_logits(objective.needs, raised, logits(np.full_like(policy, reference)), batch)
    loss = objective.apply(table, batch).loss
    return jnp.sum(loss), loss

  (_, loss), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(jnp.zeros(len(policy)))
  return np.asarray(loss), -np.asarray(gradient)


def weights(measure: risk.RiskMeasure, values: Array, log_probs: Array) -> np.ndarray:
  """[V]: the gradient of a measure in the values."""
  return np.asarray(jax.grad(lambda v: measure(v, log_probs))(values))
