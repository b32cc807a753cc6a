"""Objectives of a preference pair: functions of one margin between the preferred and the dispreferred response.

Notation as in `preference`: h = rho(y_w) - rho(y_l), the difference of summed log-ratios, nats. Every loss f(h) is
taken in expectation over the label: with q = P(y_w is preferred) from `batch.label`, it is q f(h) + (1 - q) f(-h); a
hard label gives f(h).
"""

import jax
import jax.numpy as jnp

from alignjax.objectives import base, preference


@base.factory
def dpo(beta: float = 0.1, label_smoothing: float = 0.0) -> base.Objective:
  """Direct preference optimisation, -log sigmoid(beta h); with label smoothing, conservative DPO.

  loss = -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h),   e = label_smoothing

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.
    label_smoothing: probability e in [0, 0.5) that a label is flipped.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0.

  Raises:
    ValueError: for beta <= 0 or a label_smoothing outside [0, 0.5).

  Defaults:
    beta of the paper's controlled experiments and released code; no smoothing.

  References:
    Rafailov et al. 2023, Direct Preference Optimization, https://arxiv.org/abs/2305.18290, equation 7.
    Mitchell 2023, A note on DPO with noisy preferences & relationship to IPO,
    https://ericmitchell.ai/cdpo.pdf, equation 3.
  """
  base.require(beta > 0, 'dpo', 'beta must be positive', beta)
  base.require(0 <= label_smoothing < 0.5, 'dpo', 'label_smoothing must lie in [0, 0.5)', label_smoothing)
  return preference.of_log_ratio('dpo', beta, lambda margin: -jax.nn.log_sigmoid(beta * margin), label_smoothing)


@base.factory
def ipo(tau: float = 0.1) -> base.Objective:
  """Identity preference optimisation, (h - 1 / (2 tau))^2.

  h is made of log-probabilities summed over tokens, as in the paper; several trainers average them over tokens instead.

  Args:
    tau: strength of the KL constraint to the reference, > 0, 1/nats. The optimum lies at h = 1 / (2 tau).

  Returns:
    An objective; [B] nats^2. At policy == reference every loss is 1 / (4 tau^2). The implicit reward is tau * rho.

  Raises:
    ValueError: for tau <= 0.

  Defaults:
    tau within the range {0.01, 0.1, 0.5, 1} of SimPO's comparison (2405.14734, table 7).

  References:
    Azar et al. 2023, A General Theoretical Paradigm to Understand Learning from Human Preferences,
    https://arxiv.org/abs/2310.12036, equation 17.
  """
  base.require(tau > 0, 'ipo', 'tau must be positive', tau)
  return preference.of_log_ratio('ipo', tau, lambda margin: jnp.square(margin - 1.0 / (2.0 * tau)))


@base.factory
def hinge(beta: float = 0.1) -> base.Objective:
  """Hinge loss on the log-ratio margin, max(0, 1 - beta h).

  Args:
    beta: inverse of the margin, in nats, beyond which a pair no longer counts; > 0.

  Returns:
    An objective; [B]. At policy == reference every loss is 1.

  Raises:
    ValueError: for beta <= 0.

  Defaults:
    beta as for DPO, which is how trainers offer it; the paper tunes gamma.

  References:
    Liu et al. 2023, Statistical Rejection Sampling Improves Preference Optimization (RSO),
    https://arxiv.org/abs/2309.06657, equation 10 (the hinge loss normalised by the reference, gamma = beta).
  """
  base.require(beta > 0, 'hinge', 'beta must be positive', beta)
  return preference.of_log_ratio('hinge', beta, lambda margin: jax.nn.relu(1.0 - beta * margin))
