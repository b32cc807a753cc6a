"""Objectives of a preference pair: functions of the margin between the preferred and the dispreferred response.

Notation as in `preference`: h = rho(y_w) - rho(y_l) is the difference of the summed log-ratios, in nats. The label
enters as an expectation: with q = P(y_w is preferred) from `batch.label`, a loss f(h) becomes q f(h) + (1 - q) f(-h). A
hard label gives f(h).
"""

import math

import jax
import jax.numpy as jnp

from alignjax import stats
from alignjax.objectives import base, preference
from alignjax.types import Array

MAX_EXPONENT = 30.0  # exp(30) = 1e13: the square of a gradient of this size is still far from the largest float32


@base.factory
def dpo(beta: float = 0.1, label_smoothing: float = 0.0) -> base.Objective:
  """Direct preference optimisation; with label smoothing, conservative DPO.

  loss = -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h),   e = label_smoothing

  Use it when:
    you have pairs from a fixed dataset and want the standard baseline. Add label smoothing if you suspect that a share
    of the labels is wrong.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.
    label_smoothing: probability e in [0, 0.5) that a label is flipped.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0.

  Raises:
    ValueError: if beta <= 0, or label_smoothing is outside [0, 0.5).

  Defaults:
    beta from the paper's controlled experiments and released code; no smoothing.

  References:
    Rafailov et al. 2023, Direct Preference Optimization, https://arxiv.org/abs/2305.18290, equation 7.
    Mitchell 2023, A note on DPO with noisy preferences & relationship to IPO,
    https://ericmitchell.ai/cdpo.pdf, equation 3.
  """
  base.require(beta > 0, 'dpo', 'beta must be positive', beta)
  base.require(0 <= label_smoothing < 0.5, 'dpo', 'label_smoothing must be in [0, 0.5)', label_smoothing)
  return preference.of_log_ratio('dpo', beta, lambda margin: -jax.nn.log_sigmoid(beta * margin), label_smoothing)


@base.factory
def ipo(tau: float = 0.1, length_normalised: bool = False) -> base.Objective:
  """Identity preference optimisation: regresses the margin to a finite target.

  loss = (h - 1 / (2 tau))^2

  The paper's equation sums log-ratios over the tokens of a response, which is the default here and the choice of
  OpenRLHF and of DPO's released code. TRL and several other trainers set h = rho(y_w) / |y_w| - rho(y_l) / |y_l|: TRL's
  authors report that, according to the authors of the paper, the published runs average over tokens. For such runs use
  length_normalised=True. The two need different tau, because a margin of sums is about as many times larger as a
  response has tokens.

  Use it when:
    labels are nearly deterministic and DPO overfits: the target is finite, so a pair that has reached it no longer
    pushes the policy away from the reference.

  Args:
    tau: strength of the KL constraint to the reference, > 0, 1/nats; with length normalisation, tokens/nat. The optimum
      is h = 1 / (2 tau).
    length_normalised: whether log-ratios are averaged over the tokens of a response instead of summed.

  Returns:
    An objective; [B] nats^2, or (nats/token)^2. At policy == reference every loss is 1 / (4 tau^2). The implicit reward
    is tau * rho, averaged over tokens if h is.

  Raises:
    ValueError: if tau <= 0.

  Defaults:
    tau within the range {0.01, 0.1, 0.5, 1} that SimPO's comparison (2405.14734) searches.

  References:
    Azar et al. 2023, A General Theoretical Paradigm to Understand Learning from Human Preferences,
    https://arxiv.org/abs/2310.12036, equation 17.
    Rasul et al. 2024, Preference Tuning LLMs with Direct Preference Optimization Methods,
    https://huggingface.co/blog/pref-tuning, addendum (the average over tokens).
  """
  base.require(tau > 0, 'ipo', 'tau must be positive', tau)
  ratio = preference.mean_log_ratio if length_normalised else stats.StatTable.log_ratio
  return preference.of_log_ratio('ipo', tau, lambda margin: jnp.square(margin - 1.0 / (2.0 * tau)), ratio=ratio)


@base.factory
def hinge(beta: float = 0.1) -> base.Objective:
  """Hinge loss on the log-ratio margin.

  loss = max(0, 1 - beta h)

  Use it when:
    pairs should stop contributing once they are ranked with a fixed margin.

  Args:
    beta: inverse of the margin, in nats, beyond which a pair has no gradient; > 0.

  Returns:
    An objective; [B]. At policy == reference every loss is 1.

  Raises:
    ValueError: if beta <= 0.

  Defaults:
    beta as for DPO, as trainers offer it; the paper tunes gamma.

  References:
    Liu et al. 2023, Statistical Rejection Sampling Improves Preference Optimization (RSO),
    https://arxiv.org/abs/2309.06657, equation 10 (the hinge loss normalised by the reference, gamma = beta).
  """
  base.require(beta > 0, 'hinge', 'beta must be positive', beta)
  return preference.of_log_ratio('hinge', beta, lambda margin: jax.nn.relu(1.0 - beta * margin))


@base.factory
def robust_dpo(beta: float = 0.1, label_smoothing: float = 0.1) -> base.Objective:
  """Robust DPO: an unbiased estimate of the DPO loss on clean labels, from labels flipped at a known rate.

  loss = (-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)) / (1 - 2 e),   e = label_smoothing

  With labels flipped with probability e, its expectation is the DPO loss of the clean pair. It equals the DPO loss
  minus e beta h / (1 - 2 e), so it has no lower bound.

  Use it when:
    you know the rate at which labels are flipped, and want the loss to be unbiased under that noise. Label smoothing in
    `dpo` is the conservative alternative with a finite optimum.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.
    label_smoothing: probability e in [0, 0.5) that a label is flipped.

  Returns:
    An objective; [B] nats. At policy == reference every loss is log 2 and every reward 0.

  Raises:
    ValueError: if beta <= 0, or label_smoothing is outside [0, 0.5).

  Defaults:
    beta as for DPO; label_smoothing as in the paper's experiments.

  References:
    Chowdhury et al. 2024, Provably Robust DPO: Aligning Language Models with Noisy Feedback,
    https://arxiv.org/abs/2403.00409, the loss in its section 3.1.
  """
  base.require(beta > 0, 'robust_dpo', 'beta must be positive', beta)
  base.require(0 <= label_smoothing < 0.5, 'robust_dpo', 'label_smoothing must be in [0, 0.5)', label_smoothing)

  def loss(margin: Array) -> Array:
    right, flipped = -jax.nn.log_sigmoid(beta * margin), -jax.nn.log_sigmoid(-beta * margin)
    return ((1.0 - label_smoothing) * right - label_smoothing * flipped) / (1.0 - 2.0 * label_smoothing)

  return preference.of_log_ratio('robust_dpo', beta, loss)


@base.factory
def exo(beta: float = 0.1, label_smoothing: float = 1e-3) -> base.Objective:
  """Efficient exact optimisation of a pair: the reverse KL divergence from the policy's preference to the label's.

  loss = p log(p / (1 - e)) + (1 - p) log((1 - p) / e),   p = sigmoid(beta h),   e = label_smoothing

  The loss is 0 exactly at beta h = log((1 - e) / e). It diverges as e goes to 0, so the label must be smoothed.

  Use it when:
    you want the mode-seeking behaviour of reverse KL, as in RLHF, from pairs alone.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.
    label_smoothing: probability e in (0, 0.5) that a label is flipped.

  Returns:
    An objective; [B] nats. At policy == reference every loss is -log(2) - log(e (1 - e)) / 2 and every reward 0.

  Raises:
    ValueError: if beta <= 0, or label_smoothing is outside (0, 0.5).

  Defaults:
    beta as for DPO; label_smoothing is TRL's fallback for an unset value.

  References:
    Ji et al. 2024, Towards Efficient Exact Optimization of Language Model Alignment,
    https://arxiv.org/abs/2402.00856, the loss for preference pairs.
  """
  base.require(beta > 0, 'exo', 'beta must be positive', beta)
  base.require(0 < label_smoothing < 0.5, 'exo', 'label_smoothing must be in (0, 0.5)', label_smoothing)
  log_right, log_flipped = math.log1p(-label_smoothing), math.log(label_smoothing)

  def loss(margin: Array) -> Array:
    logit = beta * margin
    right = jax.nn.sigmoid(logit) * (jax.nn.log_sigmoid(logit) - log_right)
    return right + jax.nn.sigmoid(-logit) * (jax.nn.log_sigmoid(-logit) - log_flipped)

  return preference.of_log_ratio('exo', beta, loss)


@base.factory
def discopop(beta: float = 0.05, temperature: float = 0.05) -> base.Objective:
  """DiscoPOP, the log-ratio modulated loss: logistic for wrongly ranked pairs, exponential for rightly ranked ones.

  loss = -(1 - m) log sigmoid(beta h) + m exp(-beta h),   m = sigmoid(beta h / temperature)

  The loss is not convex. m exp(-beta h) is computed as one exponential whose exponent is clipped at 30. The clip
  matters only for a temperature above 1, where the product grows for wrongly ranked pairs.

  Use it when:
    you compare loss shapes: this one was found by a language-model search over losses and blends the logistic with the
    exponential loss.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.
    temperature: width of the transition between the two losses, > 0.

  Returns:
    An objective; [B] nats. At policy == reference every loss is (log(2) + 1) / 2 and every reward 0.

  Raises:
    ValueError: if beta <= 0 or temperature <= 0.

  Defaults:
    beta and temperature as in the paper's experiments and TRL.

  References:
    Lu et al. 2024, Discovering Preference Optimization Algorithms with and for Large Language Models,
    https://arxiv.org/abs/2406.08414, the loss LRML.
  """
  base.require(beta > 0, 'discopop', 'beta must be positive', beta)
  base.require(temperature > 0, 'discopop', 'temperature must be positive', temperature)

  def loss(margin: Array) -> Array:
    logit = beta * margin
    exponential = jnp.exp(jnp.minimum(jax.nn.log_sigmoid(logit / temperature) - logit, MAX_EXPONENT))
    return -jax.nn.sigmoid(-logit / temperature) * jax.nn.log_sigmoid(logit) + exponential

  return preference.of_log_ratio('discopop', beta, loss)


@base.factory
def focal_po(beta: float = 0.1, gamma: float = 0.05) -> base.Objective:
  """FocalPO: the DPO loss with less weight on pairs that the policy ranks wrongly.

  loss = -sigmoid(beta h)^gamma log sigmoid(beta h)

  The factor carries gradient. For gamma > 0 the loss falls again below log sigmoid(beta h) = -1 / gamma: pairs ranked
  that wrongly are given up.

  Use it when:
    many pairs are too hard or mislabelled, and you want the model to refine the rankings that it already gets right.

  Args:
    beta: strength of the KL constraint to the reference, > 0, 1/nats.
    gamma: strength of the modulation, >= 0; 0 gives DPO.

  Returns:
    An objective; [B] nats. At policy == reference every loss is 2^-gamma log 2 and every reward 0.

  Raises:
    ValueError: if beta <= 0 or gamma < 0.

  Defaults:
    beta as for DPO; gamma is our choice, small enough to reverse the gradient of hopeless pairs only.

  References:
    Liu et al. 2025, FocalPO: Enhancing Preference Optimizing by Focusing on Correct Preference Rankings,
    https://arxiv.org/abs/2501.06645.
  """
  base.require(beta > 0, 'focal_po', 'beta must be positive', beta)
  base.require(gamma >= 0, 'focal_po', 'gamma must not be negative', gamma)

  def loss(margin: Array) -> Array:
    log_probability = jax.nn.log_sigmoid(beta * margin)
    return -jnp.exp(gamma * log_probability) * log_probability

  return preference.of_log_ratio('focal_po', beta, loss)
