"""Objectives that weight the pairs of another objective by how probable the current policy finds them.

Both take any objective, with any number N of responses per prompt, and multiply its loss by a detached weight.
"""

from collections.abc import Callable, Mapping
import dataclasses

import jax
import jax.numpy as jnp

from alignjax import stats
from alignjax.objectives import base, namespaces, pooling
from alignjax.types import Array, PreferenceBatch, Term, WeightedSum

# Without a clip a weight is at most e^60: beyond any practical value, and still finite in float32 times a loss.
_LARGEST_LOG_WEIGHT = 60.0


@base.factory
def importance_weighted(
  objective: base.Objective,
  clip: float | None = 0.25,
  self_normalised: bool = False,
  per_length: bool = False,
) -> base.Objective:
  """Importance-sampled direct alignment (IS-DAA): any objective under clipped sequence-level importance weights.

  loss = sg[w] objective,   w = exp(min(s, N clip)),   s = sum_n (log pi(y_n|x) - log pi_data(y_n|x))

  Offline pairs come from the policy that wrote them, not from the one being trained. The weight turns the expectation
  over the former into an expectation over the latter. The objective's regularisation then acts where the policy now
  puts its mass, which counters reward over-optimisation. log pi_data is `stats.behaviour_logp(batch)`, per response or
  per token, if the batch has it, and the reference's log-probability otherwise. The margin inside the objective is
  always relative to the reference. For a pair (N = 2) the cap on s is 2 clip, on the sum and not on each response.
  There is no lower clip, and no gradient through w.

  Use it when:
    you train offline at low beta and the policy over-optimises: the weights emulate on-policy data without sampling.
    With few pairs the effective sample size can get too small, so watch `importance/effective_sample_share`.

  Args:
    objective: any objective.
    clip: cap of each response's share of the log-weight, > 0, nats; None for unclipped importance weights.
    self_normalised: whether to divide the weights by their mean over the batch, which couples its rows.
    per_length: whether to divide each response's log-ratio by its length in tokens: the smoothed weights of AIS.

  Returns:
    An objective in the unit of `objective`; at policy == reference == pi_data it is `objective`.

  Raises:
    ValueError: if objective is not an objective, or clip is not positive.

  Defaults:
    clip from the released configuration; the released launch script sets 1.

  References:
    Nguyen et al. 2025, Mitigating Reward Over-optimization in Direct Alignment Algorithms with Importance Sampling,
    https://arxiv.org/abs/2506.08681 (weights as in the released code, mail-research/AIS-Sampling4DAAs; AIS is the
    exponent 1/|y| of its first version).
  """
  name = 'importance_weighted'
  _require_objective(name, objective)
  base.require(clip is None or clip > 0, name, 'clip must be positive, or None for unclipped weights', clip)

  def log_weight_of(table: stats.StatTable, batch: PreferenceBatch) -> tuple[Array, float]:
    """[B] the log of the weights, and its cap."""
    behaviour_logp, log_ratio = stats.behaviour_logp(batch), table.log_ratio()
    if behaviour_logp is not None:
      log_ratio = table.sum(stats.logp) - behaviour_logp
    if per_length:
      log_ratio = log_ratio / jnp.maximum(table.length, 1)
    cap = _LARGEST_LOG_WEIGHT if clip is None else log_ratio.shape[-1] * clip
    return jax.lax.stop_gradient(jnp.sum(log_ratio, axis=-1)), cap

  key = f'importance_weighted(clip={clip!r}, per_length={per_length!r})/weight'

  def sums(table: stats.StatTable, batch: PreferenceBatch) -> pooling.Sums:
    return {key: WeightedSum.of(jnp.exp(jnp.minimum(*log_weight_of(table, batch))), jnp.asarray(batch.weight))}

  pool = pooling.Pool(frozenset({key}), sums) if self_normalised else pooling.NO_POOL

  def weigh(table: stats.StatTable, batch: PreferenceBatch) -> tuple[Array, dict[str, Array]]:
    log_weight, cap = log_weight_of(table, batch)
    weight = jnp.exp(jnp.minimum(log_weight, cap))
    if self_normalised:
      weight = weight / jnp.maximum(pool.read(table, batch)[key].mean(), jnp.finfo(jnp.float32).tiny)
    own = {
      'importance/weight': weight,
      'importance/weight_squared': jnp.square(weight),
      'importance/clipped': (log_weight >= cap).astype(jnp.float32),
      'importance/log_weight': log_weight,
      'importance/log_weight_squared': jnp.square(log_weight),
    }
    return weight, own

  behaviour = frozenset({'behaviour_logp', stats.BEHAVIOUR_TOKEN_LOGP})
  reads = behaviour | {'response_length'} | ({'weight'} if self_normalised else set())
  declared = base.Objective(
    frozenset({stats.logp, stats.reference_logp}),
    objective.apply,
    reads=reads,
    optional=behaviour,
    couples_rows=self_normalised,
    pool=pool,
    summary=_spread,
  )
  return _weighted(name, objective, declared, weigh)


def _spread(means: Mapping[str, Array]) -> dict[str, Array]:
  """Effective sample size, (E w)^2 / E w^2, as a share of the batch, and the standard deviation of the log-weight."""
  weight, square = means['importance/weight'], means['importance/weight_squared']
  variance = means['importance/log_weight_squared'] - jnp.square(means['importance/log_weight'])
  return {
    'importance/effective_sample_share': jnp.square(weight) / jnp.maximum(square, jnp.finfo(jnp.float32).tiny),
    'importance/log_weight_deviation': jnp.sqrt(jnp.maximum(variance, 0.0)),
  }


@base.factory
def wpo_weighted(objective: base.Objective, cap: float | None = 1.0) -> base.Objective:
  """Weighted preference optimisation (WPO): any objective, weighted by how on-policy its responses are.

  loss = sg[w] objective,   w = min(cap, prod_n exp(1/|y_n| sum_t (log pi(y_t) - log sum_v pi(v)^2)))

  A token's probability is compared with the average probability of a token drawn from the policy, so a response of the
  policy's own has a weight near 1 whatever its entropy. No reference and no stored log-probabilities are needed.

  Use it when:
    you train on data from other models, and want pairs that resemble the current policy to count more.

  Args:
    objective: any objective.
    cap: largest weight, > 0; None for no cap, as in some trainers.

  Returns:
    An objective in the unit of `objective`.

  Raises:
    ValueError: if objective is not an objective, or cap is not positive.

  Defaults:
    cap from the released code.

  References:
    Zhou et al. 2024, WPO: Enhancing RLHF with Weighted Preference Optimization, https://arxiv.org/abs/2406.11827 (the
    weight alignment by sampled tokens).
  """
  name = 'wpo_weighted'
  _require_objective(name, objective)
  base.require(cap is None or cap > 0, name, 'cap must be positive, or None', cap)

  def weigh(table: stats.StatTable, batch: PreferenceBatch) -> tuple[Array, dict[str, Array]]:
    log_weight = jax.lax.stop_gradient(jnp.sum(table.mean(stats.logp) - table.mean(stats.log_collision), axis=-1))
    weight = jnp.exp(jnp.minimum(log_weight, _LARGEST_LOG_WEIGHT))
    weight = weight if cap is None else jnp.minimum(weight, cap)
    return weight, {'wpo/weight': weight}

  declared = base.Objective(frozenset({stats.logp, stats.log_collision}), objective.apply)
  return _weighted(name, objective, declared, weigh)


Weigh = Callable[[stats.StatTable, PreferenceBatch], tuple[Array, dict[str, Array]]]


def _weighted(name: str, objective: base.Objective, weighing: base.Objective, weigh: Weigh) -> base.Objective:
  """The objective with its loss multiplied by a weight.

  Args:
    name: the name of the factory.
    objective: the objective whose loss is weighted.
    weighing: declares what the weight reads; its summary takes the metrics of the weight.
    weigh: returns the weight, [B] without gradient, and its metrics.
  """
  names = namespaces.Namespaces((name, 'inner'))
  both = weighing + objective  # unites what the two declare

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    weight, own = weigh(table, batch)
    loss, metrics = objective.apply(table, batch)
    return Term(weight * loss, names.join((own, metrics)))

  def summary(means: Mapping[str, Array]) -> Mapping[str, Array]:
    return names.join((weighing.summary(names.view(0, means)), objective.summary(names.view(1, means))))

  return dataclasses.replace(both, apply=apply, summary=summary)


def _require_objective(name: str, objective: object) -> None:
  base.require(isinstance(objective, base.Objective), name, 'the first argument must be an objective', objective)
