"""Other shapes f(beta h) of the loss of a margin, to compare with the logistic loss of DPO.

Notation and soft labels as in `pairwise`.
"""

import jax
import jax.numpy as jnp

from alignjax.objectives import base, pairwise, preference


@base.factory
def spo(beta: float = 0.1) -> base.Objective:
  """Self preference optimisation: the SiLU function replaces the logistic loss, with a finite optimal margin.

  loss = SiLU(-beta h) = -beta h sigmoid(-beta h)

  DPO's loss equals this one plus the entropy of a coin with probability sigmoid(beta h). So this loss plus log 2 is an
  upper bound of DPO's. Its minimum is at beta h = 1.278. The loss is also quoted as -SiLU(beta h), but that form has no
  lower bound and rewards ever larger margins. The paper compares with reference-free methods; here beta h is the margin
  of log-ratios.

  Use it when:
    you want a loss that stops pushing the margin at a finite value without a target to tune.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.

  Returns:
    An objective; [B]. At policy == reference every loss and every reward is 0.

  Raises:
    ValueError: if beta <= 0.

  Defaults:
    beta as for DPO.

  References:
    Sun et al. 2025, SPO: Self Preference Optimization with Self Regularization,
    https://aclanthology.org/2025.findings-emnlp.300/.
  """
  base.require(beta > 0, 'spo', 'beta must be positive', beta)
  return preference.of_log_ratio('spo', beta, lambda margin: jax.nn.silu(-beta * margin))


@base.factory
def exponential_po(beta: float = 0.1) -> base.Objective:
  """Generalised preference optimisation with the exponential loss of boosting.

  loss = exp(-beta h)

  The exponent is clipped at 30: a pair with beta h < -30 has a constant loss and no gradient.

  Use it when:
    you compare loss shapes, or want wrongly ranked pairs to dominate. Labels must be clean, since one outlier has a
    huge gradient.

  Args:
    beta: strength of the constraint to the reference, > 0, 1/nats.

  Returns:
    An objective; [B]. At policy == reference every loss is 1 and every reward 0.

  Raises:
    ValueError: if beta <= 0.

  Defaults:
    beta as for DPO.

  References:
    Tang et al. 2024, Generalized Preference Optimization: A Unified Approach to Offline Alignment,
    https://arxiv.org/abs/2402.05749, the exponential loss of its table of convex functions.
  """
  base.require(beta > 0, 'exponential_po', 'beta must be positive', beta)
  return preference.of_log_ratio(
    'exponential_po', beta, lambda margin: jnp.exp(jnp.minimum(-beta * margin, pairwise.MAX_EXPONENT))
  )


@base.factory
def truncated_quadratic_po(beta: float = 0.1) -> base.Objective:
  """Generalised preference optimisation with the truncated quadratic loss, the square of the hinge loss.

  loss = max(0, 1 - beta h)^2

  Use it when:
    you want the hinge loss with a smooth gradient at its corner.

  Args:
    beta: inverse of the margin, in nats, beyond which a pair has no gradient; > 0.

  Returns:
    An objective; [B]. At policy == reference every loss is 1 and every reward 0.

  Raises:
    ValueError: if beta <= 0.

  Defaults:
    beta as for DPO.

  References:
    Tang et al. 2024, Generalized Preference Optimization: A Unified Approach to Offline Alignment,
    https://arxiv.org/abs/2402.05749, the truncated quadratic loss of its table of convex functions.
  """
  base.require(beta > 0, 'truncated_quadratic_po', 'beta must be positive', beta)
  return preference.of_log_ratio(
    'truncated_quadratic_po', beta, lambda margin: jnp.square(jax.nn.relu(1.0 - beta * margin))
  )


@base.factory
def savage_po(beta: float = 0.1) -> base.Objective:
  """Generalised preference optimisation with the Savage loss, which is bounded, so outliers lose their influence.

  loss = sigmoid(-beta h)^2 = 1 / (1 + exp(beta h))^2

  Use it when:
    a share of the labels is wrong and should not dominate the gradient.

  Args:
    beta: strength of the constraint to the reference, > 0, 1/nats.

  Returns:
    An objective; [B]. At policy == reference every loss is 1/4 and every reward 0.

  Raises:
    ValueError: if beta <= 0.

  Defaults:
    beta as for DPO.

  References:
    Tang et al. 2024, Generalized Preference Optimization: A Unified Approach to Offline Alignment,
    https://arxiv.org/abs/2402.05749, the Savage loss of its table of functions.
  """
  base.require(beta > 0, 'savage_po', 'beta must be positive', beta)
  return preference.of_log_ratio('savage_po', beta, lambda margin: jnp.square(jax.nn.sigmoid(-beta * margin)))
