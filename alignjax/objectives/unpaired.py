"""Objectives for single responses that are labelled desirable or undesirable.

A batch has N = 1 response per prompt, with `batch.label` = P(it is desirable), or pairs, N = 2, where response 0 is
desirable with probability `batch.label` and response 1 with 1 - `batch.label`. The loss of a prompt is the mean over
its responses, each in expectation over its label.

Notation: r(y) = beta rho(y), where rho(y) = log pi(y|x) - log pi_ref(y|x) is summed over the tokens of y, in nats. Both
objectives compare r with a detached statistic of the batch, or of a whole evaluation, to which rows contribute by
`batch.weight`. So they couple rows.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from alignjax import stats
from alignjax.objectives import base, pooling, preference
from alignjax.types import Array, PreferenceBatch, Term, WeightedSum

ONE_OR_TWO = frozenset({1, 2})


def _desirable(name: str, table: stats.StatTable, batch: PreferenceBatch) -> Array:
  """[B, N]: the probability that each response is desirable; a ValueError at trace time unless N is 1 or 2."""
  responses = table.length.shape[-1]
  if responses not in ONE_OR_TWO:
    raise ValueError(
      f'{name} takes single responses with a label, or pairs: it needs N = 1 or 2 responses to a prompt, '
      f'got N = {responses}'
    )
  label = jnp.asarray(batch.label)
  return jnp.stack([label, 1.0 - label][:responses], axis=-1)


def _term(reward: Array, desirable: Array, good: Callable[[Array], Array], bad: Callable[[Array], Array]) -> Term:
  """The mean over responses of P(desirable) good(r) + P(undesirable) bad(r), with the metrics of the rewards."""
  loss = jnp.mean(desirable * good(reward) + (1.0 - desirable) * bad(reward), axis=-1)
  if reward.shape[-1] == 2:
    return Term(loss, preference.reward_metrics(reward, desirable[:, 0]))
  reward = jax.lax.stop_gradient(reward[:, 0])
  desirable = jax.lax.stop_gradient(desirable[:, 0])
  return Term(loss, {'reward': reward, 'desirable': desirable, 'desirable_times_reward': desirable * reward})


def _by_kind(means: Mapping[str, Array]) -> Mapping[str, Array]:
  """The mean rewards of desirable and of undesirable responses, 0 for a kind that is missing; nothing for pairs."""
  if 'desirable' not in means:
    return {}
  share, total = means['desirable'], means['desirable_times_reward']
  return {
    'reward_desirable': WeightedSum(total, share).mean(),
    'reward_undesirable': WeightedSum(means['reward'] - total, 1.0 - share).mean(),
  }


def _row_weight(batch: PreferenceBatch) -> Array:
  return jnp.asarray(batch.weight)[:, None]


@base.factory
def kto(beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> base.Objective:
  """Kahneman-Tversky optimisation: a saturating value of gains and losses against a reference point.

  loss = desirable_weight (1 - sigmoid(r(y) - z)) if y is desirable, else undesirable_weight (1 - sigmoid(z - r(y)))
  z = sg[max(0, mean[r])]

  The paper's z is beta KL(pi || pi_ref), estimated from prompts paired with responses to other prompts, which takes
  extra forward passes. Here the mean is over the batch's own responses, the fallback of several released trainers, and
  in an evaluation over all of its responses. It is biased, because desirable responses gain reward and undesirable ones
  lose it. For pairs, trainers often use the mean of the opposite half for each response instead.

  Use it when:
    your data are single responses with a thumbs up or down, possibly unbalanced or noisy, instead of pairs.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.
    desirable_weight: weight of desirable responses, > 0.
    undesirable_weight: weight of undesirable responses, > 0. The paper sets the two weights to balance the numbers of
      responses.

  Returns:
    An objective; [B], in [0, max(desirable_weight, undesirable_weight)]. At policy == reference every loss of a pair is
    (desirable_weight + undesirable_weight) / 4, which is 0.5 for unit weights, and every reward 0.

  Raises:
    ValueError: if beta or a weight is not positive; at trace time, if N is not 1 or 2.

  Defaults:
    TRL's beta and unit weights.

  References:
    Ethayarajh et al. 2024, KTO: Model Alignment as Prospect Theoretic Optimization, https://arxiv.org/abs/2402.01306,
    the KTO loss, with the batch estimate of the reference point.
  """
  base.require(beta > 0, 'kto', 'beta must be positive', beta)
  base.require(desirable_weight > 0, 'kto', 'desirable_weight must be positive', desirable_weight)
  base.require(undesirable_weight > 0, 'kto', 'undesirable_weight must be positive', undesirable_weight)

  name = f'kto(beta={beta!r})/reward'

  def sums(table: stats.StatTable, batch: PreferenceBatch) -> pooling.Sums:
    reward = jax.lax.stop_gradient(beta * table.log_ratio())
    return {name: WeightedSum.of(reward, jnp.broadcast_to(_row_weight(batch), reward.shape))}

  pool = pooling.Pool(frozenset({name}), sums)

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    desirable = _desirable('kto', table, batch)
    reward = beta * table.log_ratio()
    point = jax.nn.relu(pool.read(table, batch)[name].mean())
    term = _term(
      reward,
      desirable,
      lambda r: desirable_weight * jax.nn.sigmoid(point - r),
      lambda r: undesirable_weight * jax.nn.sigmoid(r - point),
    )
    return term._replace(metrics={**term.metrics, 'reference_point': jnp.broadcast_to(point, term.loss.shape)})

  return base.Objective(
    preference.LOG_RATIO_NEEDS,
    apply,
    reads=base.LABEL_AND_WEIGHT,
    responses=ONE_OR_TWO,
    couples_rows=True,
    pool=pool,
    summary=_by_kind,
  )


@base.factory
def bco(beta: float = 0.1, momentum: float = 0.0) -> base.Objective:
  """Binary classifier optimisation with reward shift: classifies responses as desirable by their shifted reward.

  loss = -log sigmoid(r(y) - d) if y is desirable, else -log sigmoid(d - r(y))
  d = sg[1/2 mean_desirable[r] + 1/2 mean_undesirable[r]]

  If one kind is missing, d is the mean over the other. For pairs, d is the mean reward. The paper also applies
  importance weights, which correct for desirable and undesirable responses coming from different prompts; they are left
  out here.

  The means are taken over the batch, and in an evaluation over all of its batches. With a momentum they are taken over
  all training batches so far: sums in which the batch k steps ago is scaled by momentum^k, divided by the sums of
  weights scaled in the same way. They need no correction for starting at zero. Running means are kept in the training
  state; evaluation only reads them. Before the first batch, and in a notebook, they are not used.

  Use it when:
    your data are thumbs up or down, as for `kto`, and you want a loss with the logistic shape of DPO.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.
    momentum: factor in [0, 1) by which each batch discounts the earlier ones; 0 uses the current batch alone.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0.

  Raises:
    ValueError: if beta <= 0, or momentum is outside [0, 1); at trace time, if N is not 1 or 2.

  Defaults:
    TRL's beta; no momentum is our choice, so that a loss depends on its batch alone. TRL averages over all batches.

  References:
    Jung et al. 2024, Binary Classifier Optimization for Large Language Model Alignment,
    https://arxiv.org/abs/2404.04656, the loss with the reward shift.
  """
  base.require(beta > 0, 'bco', 'beta must be positive', beta)
  base.require(0 <= momentum < 1, 'bco', 'momentum must be in [0, 1)', momentum)
  kinds = ('desirable', 'undesirable')
  # The sums are of log-ratios, not rewards, so that objectives which differ only in beta share them.
  names = {kind: tuple(f'bco(momentum={momentum!r})/{kind}_{part}' for part in ('total', 'weight')) for kind in kinds}
  pooled = {kind: f'bco/{kind}' for kind in kinds}

  def sums_of(table: stats.StatTable, batch: PreferenceBatch) -> pooling.Sums:
    log_ratio = jax.lax.stop_gradient(table.log_ratio())
    desirable = _desirable('bco', table, batch)
    shares = zip(kinds, (desirable, 1.0 - desirable), strict=True)
    return {pooled[kind]: WeightedSum.of(log_ratio, _row_weight(batch) * share) for kind, share in shares}

  pool = pooling.Pool(frozenset(pooled.values()), sums_of)

  def flat(sums: pooling.Sums) -> dict[str, Array]:
    found = {kind: (sums[pooled[kind]].total, sums[pooled[kind]].weight) for kind in kinds}
    return {name: value for kind in kinds for name, value in zip(names[kind], found[kind], strict=True)}

  def stored(table: stats.StatTable) -> dict[str, Array]:
    return {name: jnp.asarray(table.memory.get(name, 0.0), jnp.float32) for pair in names.values() for name in pair}

  def update(table: stats.StatTable, batch: PreferenceBatch) -> Mapping[str, Array]:
    now = flat(sums_of(table, batch))
    return {name: momentum * value + now[name] for name, value in stored(table).items()}

  def shift(table: stats.StatTable, batch: PreferenceBatch) -> Array:
    past, now = stored(table), flat(pool.read(table, batch))
    seen = sum(past[weight] for _, weight in names.values()) > 0
    sums = {name: jnp.where(seen, past[name], value) for name, value in now.items()}
    found = [WeightedSum(sums[total], sums[weight]) for total, weight in names.values()]
    present = sum((side.weight > 0).astype(jnp.float32) for side in found)
    return beta * sum(side.mean() for side in found) / jnp.maximum(present, 1.0)

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    desirable = _desirable('bco', table, batch)
    middle = shift(table, batch)
    term = _term(
      beta * table.log_ratio(),
      desirable,
      lambda r: -jax.nn.log_sigmoid(r - middle),
      lambda r: -jax.nn.log_sigmoid(middle - r),
    )
    return term._replace(metrics={**term.metrics, 'reward_shift': jnp.broadcast_to(middle, term.loss.shape)})

  memory = base.NO_MEMORY
  if momentum > 0:
    memory = base.Memory({name: 0.0 for pair in names.values() for name in pair}, update)
  return base.Objective(
    preference.LOG_RATIO_NEEDS,
    apply,
    reads=base.LABEL_AND_WEIGHT,
    responses=ONE_OR_TWO,
    couples_rows=True,
    memory=memory,
    pool=pool,
    summary=_by_kind,
  )
