"""Further shapes f(beta h) of the loss of a margin, to be compared with the logistic one of DPO.

Notation and treatment of soft labels as in `pairwise`.
"""

import jax
import jax.numpy as jnp

from alignjax.objectives import base, pairwise, preference


@base.factory
def spo(beta: float = 0.1) -> base.Objective:
  """Self preference optimisation: the SiLU function in place of the logistic loss, with a finite optimal margin.

  loss = SiLU(-beta h) = -beta h sigmoid(-beta h)

  DPO's loss is this one plus the entropy of a coin of probability sigmoid(beta h), so this one plus log 2 bounds DPO's
  from above. It has its minimum at beta h = 1.278, unlike -SiLU(beta h), as which the loss is also quoted: that one has
  no lower bound and rewards an ever larger margin. The paper compares with methods that have no reference; here beta h
  is the margin of log-ratios.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.

  Returns:
    An objective; [B]. At policy == reference every loss and every reward is 0.

  Raises:
    ValueError: for beta <= 0.

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

  Args:
    beta: strength of the constraint to the reference, > 0, 1/nats.

  Returns:
    An objective; [B]. At policy == reference every loss is 1 and every reward 0.

  Raises:
    ValueError: for beta <= 0.

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

  Args:
    beta: inverse of the margin, in nats, beyond which a pair no longer counts; > 0.

  Returns:
    An objective; [B]. At policy == reference every loss is 1 and every reward 0.

  Raises:
    ValueError: for beta <= 0.

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
  """Generalised preference optimisation with the Savage loss, which is bounded: outliers lose their pull.

  loss = sigmoid(-beta h)^2 = 1 / (1 + exp(beta h))^2

  Args:
    beta: strength of the constraint to the reference, > 0, 1/nats.

  Returns:
    An objective; [B]. At policy == reference every loss is 1/4 and every reward 0.

  Raises:
    ValueError: for beta <= 0.

  Defaults:
    beta as for DPO.

  References:
    Tang et al. 2024, Generalized Preference Optimization: A Unified Approach to Offline Alignment,
    https://arxiv.org/abs/2402.05749, the Savage loss of its table of functions.
  """
  base.require(beta > 0, 'savage_po', 'beta must be positive', beta)
  return preference.of_log_ratio('savage_po', beta, lambda margin: jnp.square(jax.nn.sigmoid(-beta * margin)))
