"""DPO under a divergence other than the reverse KL: the derivative f' of the divergence replaces the logarithm.

For the constraint D_f(pi || pi_ref) = E_{pi_ref}[f(pi / pi_ref)] the implicit reward is beta f'(u) with
u = pi(y|x) / pi_ref(y|x) = exp(rho(y)); DPO has f'(u) = log(u). Rewards are reported relative to the reference's,
beta (f'(u) - f'(1)), which does not change their differences. Notation as in `preference`.
"""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp

from alignjax.objectives import base, pairwise, preference
from alignjax.types import Array

MAX_CHI_EXPONENT = 20.0


def _of_divergence(
  name: str, beta: float, derivative: Callable[[Array], Array], max_margin: float = math.inf
) -> base.Objective:
  """The objective -log sigmoid(clip(beta (f'(u_w) - f'(u_l)))); `derivative` is f' as a function of rho = log(u)."""

  return preference.of_reward(
    name,
    preference.LOG_RATIO_NEEDS,
    lambda table, batch: beta * derivative(table.log_ratio()),
    lambda margin: preference.logistic(jnp.clip(margin, -max_margin, max_margin)),
  )


def _alpha_derivative(alpha: float) -> Callable[[Array], Array]:
  """(1 - u^-alpha) / alpha as a function of log(u), accurate for small alpha."""
  return lambda log_ratio: -jnp.expm1(jnp.minimum(-alpha * log_ratio, pairwise.MAX_EXPONENT)) / alpha


@base.factory
def forward_kl_dpo(beta: float = 0.1) -> base.Objective:
  """f-DPO with the forward KL divergence KL(pi_ref || pi), which keeps the policy from forgetting.

  loss = -log sigmoid(beta (f'(u_w) - f'(u_l))),   f'(u) = 1 - 1/u,   u = exp(rho(y))

  The exponent -rho is clipped at 30. Beyond the clip a response has a constant reward and no gradient.

  Use it when:
    the policy should keep covering all responses of the reference: the forward KL preserves diversity.

  Args:
    beta: strength of the divergence constraint to the reference, > 0.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0.

  Raises:
    ValueError: if beta <= 0.

  Defaults:
    beta as for DPO.

  References:
    Wang et al. 2023, Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence
    Constraints, https://arxiv.org/abs/2309.16240, the forward KL row of its table of divergences.
  """
  base.require(beta > 0, 'forward_kl_dpo', 'beta must be positive', beta)
  return _of_divergence('forward_kl_dpo', beta, _alpha_derivative(1.0))


@base.factory
def jensen_shannon_dpo(beta: float = 0.1) -> base.Objective:
  """f-DPO with the Jensen-Shannon divergence, between the two directions of the KL divergence.

  loss = -log sigmoid(beta (f'(u_w) - f'(u_l))),   f'(u) = log(2 u / (1 + u)),   u = exp(rho(y))

  The reward cannot exceed beta log 2.

  Use it when:
    you want a compromise between the mode-seeking reverse KL of DPO and the mass-covering forward KL.

  Args:
    beta: strength of the divergence constraint to the reference, > 0.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0.

  Raises:
    ValueError: if beta <= 0.

  Defaults:
    beta as for DPO.

  References:
    Wang et al. 2023, Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence
    Constraints, https://arxiv.org/abs/2309.16240, the Jensen-Shannon row of its table of divergences.
  """
  base.require(beta > 0, 'jensen_shannon_dpo', 'beta must be positive', beta)
  return _of_divergence(
    'jensen_shannon_dpo', beta, lambda log_ratio: jax.nn.log_sigmoid(log_ratio) - jax.nn.log_sigmoid(0.0)
  )


@base.factory
def alpha_divergence_dpo(beta: float = 0.1, alpha: float = 0.5) -> base.Objective:
  """f-DPO with an alpha divergence, between the reverse KL of DPO (alpha to 0) and the forward KL (alpha = 1).

  loss = -log sigmoid(beta (f'(u_w) - f'(u_l))),   f'(u) = (1 - u^-alpha) / alpha,   u = exp(rho(y))

  TRL's coefficient is 1 - alpha. The exponent -alpha rho is clipped at 30. Beyond the clip a response has a constant
  reward and no gradient.

  Use it when:
    you want to tune the balance of alignment and diversity continuously from DPO to the forward KL.

  Args:
    beta: strength of the divergence constraint to the reference, > 0.
    alpha: order of the divergence, in (0, 1]; DPO is the limit 0, the forward KL is 1.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0.

  Raises:
    ValueError: if beta <= 0, or alpha is outside (0, 1].

  Defaults:
    beta as for DPO; alpha in the middle, like TRL's.

  References:
    Wang et al. 2023, Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence
    Constraints, https://arxiv.org/abs/2309.16240, the alpha divergence row of its table of divergences.
  """
  base.require(beta > 0, 'alpha_divergence_dpo', 'beta must be positive', beta)
  base.require(0 < alpha <= 1, 'alpha_divergence_dpo', 'alpha must be in (0, 1]', alpha)
  return _of_divergence('alpha_divergence_dpo', beta, _alpha_derivative(alpha))


@base.factory
def chi_po(beta: float = 0.1, r_max: float = 5.0) -> base.Objective:
  """Chi-squared preference optimisation: DPO with a chi-squared term added to the KL, against over-optimisation.

  loss = -log sigmoid(clip(beta (phi(u_w) - phi(u_l)), -2 r_max, 2 r_max)),   phi(u) = u + log(u),   u = exp(rho(y))

  A pair whose clipped difference is at either end has no gradient. rho is clipped at 20 in u, not in log(u).

  Use it when:
    DPO over-optimises because the data cover only part of the responses: the chi-squared term penalises probability
    mass where the reference has little.

  Args:
    beta: strength of the divergence constraint to the reference, > 0.
    r_max: bound on the rewards, positive and finite.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0; the gradient there is twice
    that of DPO.

  Raises:
    ValueError: if beta <= 0, or r_max is not positive and finite.

  Defaults:
    beta as for DPO; r_max is our choice, large enough that only pairs ranked beyond doubt lose their gradient.

  References:
    Huang et al. 2024, Correcting the Mythos of KL-Regularization: Direct Alignment without Overoptimization via
    Chi-Squared Preference Optimization, https://arxiv.org/abs/2407.13399, its algorithm 1.
  """
  base.require(beta > 0, 'chi_po', 'beta must be positive', beta)
  base.require(0 < r_max < math.inf, 'chi_po', 'r_max must be positive and finite', r_max)

  def derivative(log_ratio: Array) -> Array:
    return jnp.expm1(jnp.minimum(log_ratio, MAX_CHI_EXPONENT)) + log_ratio

  return _of_divergence('chi_po', beta, derivative, 2.0 * r_max)
