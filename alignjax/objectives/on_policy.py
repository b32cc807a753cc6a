"""Objectives over the policy's own samples: score-function surrogates whose value and gradient are both meaningful.

The N responses y_1, ..., y_N to a prompt x are independent samples of the current policy, at temperature 1 and without
truncation. The return is R_n = score_n - gamma log pi(y_n|x) - beta rho(y_n) with rho = log pi - log pi_ref, summed
over tokens. The objective is

  J = -E_{y ~ pi}[score(y)] - gamma H(pi(.|x)) + beta KL(pi(.|x) || pi_ref(.|x)) = -E_{y ~ pi}[R]

and the loss of a prompt, with b_n the mean return of the other N - 1 responses and sg for stop-gradient, is

  loss = -(1/N) sum_n [ sg(R_n - b_n) (log pi(y_n|x) - sg(log pi(y_n|x))) + sg(R_n) ]

Its value is an unbiased estimate of J, and its gradient an unbiased estimate of the gradient of J: b_n does not depend
on y_n, so it only reduces variance, and the terms that differentiate log pi itself have expectation 0. Entropy and KL
enter through one sample each, -log pi(y_n|x) and rho(y_n). They are exact in expectation even if several responses are
equal, so keep duplicates. With N = 1 there is no baseline.

A risk measure Phi of the lower tail replaces the mean of the score by a certainty equivalent. Let Phi_N be the measure
of the N scores, each with probability 1/N, and Phi_{-n} that of the other N - 1 scores. Entropy and KL keep the loss
above, with a return of their own, to which the score adds

  loss of the score = -sum_n sg(Phi_N - Phi_{-n}) (log pi(y_n|x) - sg(log pi(y_n|x))) - sg(Phi_N)

For the mean, Phi_N - Phi_{-n} is (score_n - b_n) / N, which gives the loss above for the score too. Value and gradient
are unbiased estimates of E[-Phi_N] and its gradient, because Phi_{-n} does not depend on y_n. E[Phi_N] exceeds
Phi_{y ~ pi}[score], the value for the whole policy, by a bias of order 1/N: N samples underestimate the tail. Finite N
also blurs the quantile of a CVaR, so Phi_N - Phi_{-n} interpolates between the scores on either side of it.

Entropy and KL cannot enter through Phi, as part of a return. The return depends on the parameters directly, and in the
tail that dependence no longer has expectation 0: the gradient would lack (beta + gamma) times the mean of grad log pi
over the tail.

Responses of another policy (older parameters, a dataset, a low temperature) are not reweighted here. The value is then
a mean over that policy. For N >= 2 and the mean score, the gradient is that of the sample variance of the returns among
the N responses, divided by 2 (beta + gamma): a regression (VarGrad, 2010.10436) with the same optimum if the returns of
all responses can be made equal, but no longer the gradient of J. For N = 1 it has no such meaning.
"""

from collections.abc import Callable
import functools
import math

import jax
import jax.numpy as jnp

from alignjax import stats
from alignjax.objectives import base, declarations
from alignjax.risk import measures
from alignjax.types import Array, PreferenceBatch, Term

_MEAN = measures.expectation()


@base.factory
def reverse_kl(gamma: float = 0.01, beta: float = 0.05, risk: measures.RiskMeasure = _MEAN) -> base.Objective:
  """Reverse KL minimisation: reward maximisation with an entropy bonus, the reverse KL to the reward's distribution.

  loss = -(1/N) sum_n [ sg(R_n - b_n) (log pi(y_n|x) - sg(log pi(y_n|x))) + sg(R_n) ]
  R_n = score_n - gamma log pi(y_n|x) - beta rho(y_n),   b_n = mean_{m != n} R_m
  where b_n is 0 for N = 1

  In expectation over y_n ~ pi this is -E[score] - gamma H(pi) + beta KL(pi || pi_ref), value and gradient. With beta =
  0 it is gamma KL(pi || pi*) up to a constant, with pi* proportional to exp(score / gamma). In general its optimum is
  proportional to pi_ref^(beta / (beta + gamma)) exp(score / (beta + gamma)). The responses must be the current policy's
  own samples; the module docstring explains what happens otherwise.

  The per-response metric `kl` estimates KL(pi || pi_ref) and `entropy` estimates the entropy of the whole response,
  both from one sample each. `return_spread` is the standard deviation of the returns among the responses of a prompt.

  With `risk`, for example `cvar(0.25, tail='lower')`, a measure of the scores replaces their mean; entropy and KL stay
  means. The module docstring has the loss. The metric `score_risk` is the measure of the N scores, and `return_spread`
  is left out. See `rlhf`.

  Use it when:
    you train on-policy with a reward model, and want to fit its distribution instead of collapsing onto the best
    response as `rlhf` does at low beta.

  Args:
    gamma: temperature: the weight of the entropy of whole responses, >= 0, units of score per nat; 0 gives `rlhf`.
    beta: strength of the KL penalty to the reference, >= 0, units of score per nat; 0 reads no reference.
    risk: the measure of the scores: `expectation()`, `cvar(level, tail='lower')` or `entropic(-kappa)`.

  Returns:
    An objective for any N >= 1; `cvar(level, tail='lower')` needs N level >= 2, and `entropic(-kappa)` N >= 2. [B]
    units of score. At policy == reference the KL adds 0.

  Raises:
    ValueError: if gamma < 0 or beta < 0, or risk is not one of these measures.

  Defaults:
    gamma and beta from the paper's summarisation (TL;DR) experiments, whose reverse KL runs are PPO with entropy
    coefficient 0.01 and KL coefficient 0.05. Whether PPO's entropy coefficient transfers to gamma, which weights the
    entropy of whole responses, is not known. risk: the mean score of the paper.

  References:
    Yun et al. 2025, Alignment as Distribution Learning, https://arxiv.org/abs/2506.01523, reverse KL minimisation.
    Ahmadian et al. 2024, Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in
    LLMs, https://arxiv.org/abs/2402.14740 (the leave-one-out baseline).
  """
  return _reward('reverse_kl', gamma, beta, risk)


@base.factory
def rlhf(beta: float = 0.05, risk: measures.RiskMeasure = _MEAN) -> base.Objective:
  """Reward maximisation under a KL penalty to the reference, by policy gradient with a leave-one-out baseline (RLOO).

  loss = -(1/N) sum_n [ sg(R_n - b_n) (log pi(y_n|x) - sg(log pi(y_n|x))) + sg(R_n) ]
  R_n = score_n - beta rho(y_n),   b_n = mean_{m != n} R_m
  where b_n is 0 for N = 1

  In expectation over y_n ~ pi this is -E[score] + beta KL(pi || pi_ref), value and gradient. The optimum is
  proportional to pi_ref exp(score / beta), and collapses to the best response as beta -> 0. For N = 2 the gradient is
  that of `rebel(eta=1/beta)` divided by 4 beta. The responses must be the current policy's own samples; the module
  docstring explains what happens otherwise.

  `risk` is a measure of the scores of a prompt's responses that replaces their mean; KL stays a mean. `cvar(0.25,
  tail='lower')` maximises the mean score of the worst quarter of the responses, and `entropic(-kappa)` the certainty
  equivalent -(1 / kappa) log E[exp(-kappa score)]. In expectation the gradient is that of the measure of N samples,
  which exceeds the value for the whole policy by a bias of order 1/N: N samples underestimate the tail. The module
  docstring has the loss. The metric `score_risk` is the measure of the N scores, and `return_spread` is left out.

  The `risk` of `ra_dpo` is a penalty on the drift of next-token distributions, not a measure of reward. The two add as
  objectives do.

  Use it when:
    you train on-policy with a reward model and want the standard RLHF objective without a value network.

  Args:
    beta: strength of the KL penalty to the reference, >= 0, units of score per nat; 0 reads no reference.
    risk: the measure of the scores: `expectation()`, `cvar(level, tail='lower')` or `entropic(-kappa)`.

  Returns:
    An objective for any N >= 1; `cvar(level, tail='lower')` needs N level >= 2, and `entropic(-kappa)` N >= 2. [B]
    units of score. At policy == reference every loss is minus the mean score, or minus the measure of the scores.

  Raises:
    ValueError: if beta < 0, or risk is not one of these measures.

  Defaults:
    beta from the summarisation (TL;DR) experiments of Yun et al. 2025, which use PPO; risk: the mean score of RLOO.

  References:
    Ahmadian et al. 2024, Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in
    LLMs, https://arxiv.org/abs/2402.14740 (REINFORCE leave-one-out).
    Yun et al. 2025, Alignment as Distribution Learning, https://arxiv.org/abs/2506.01523 (the comparison).
    Tamar et al. 2015, Policy Gradient for Coherent Risk Measures, https://arxiv.org/abs/1502.03919 (the gradient of a
    risk measure in the probabilities).
  """
  return _reward('rlhf', 0.0, beta, risk)


@base.factory
def kl_penalty(beta: float = 1e-5) -> base.Objective:
  """KL penalty to the reference, estimated on the policy's own samples: a term to add to another objective.

  loss = (1/N) sum_n [ beta sg(rho(y_n) - b_n) (log pi(y_n|x) - sg(log pi(y_n|x))) + beta sg(rho(y_n)) ]
  b_n = mean_{m != n} rho(y_m)
  where b_n is 0 for N = 1

  In expectation over y_n ~ pi this is beta KL(pi || pi_ref), value and gradient; no score is read. Differentiating the
  mean of rho directly, without the surrogate, would give a gradient of expectation 0.

  `pmle(gamma=0.01) + kl_penalty(beta=1e-05)` is the complete objective of the paper. Both terms see the same responses,
  so the labelled pairs must be samples of the current policy. On pairs from a dataset the penalty becomes the
  regression described in the module docstring, with the gradient of beta h^2 / 4 for N = 2: it keeps the margins of
  these pairs near the reference's, and does not constrain responses outside the data.

  Use it when:
    you train on samples of the current policy with an objective that has no reference, such as `pmle`, and want to
    limit its drift.

  Args:
    beta: strength of the penalty, > 0, in units of the other terms per nat.

  Returns:
    An objective for any N >= 1; [B] nats. At policy == reference every loss and every gradient is 0.

  Raises:
    ValueError: if beta <= 0.

  Defaults:
    beta from the maximum-likelihood runs in the summarisation (TL;DR) experiments of Yun et al. 2025.

  References:
    Yun et al. 2025, Alignment as Distribution Learning, https://arxiv.org/abs/2506.01523, the penalty of its
    objectives.
    Song et al. 2024, The Importance of Online Data: Understanding Preference Fine-tuning via Coverage (HyPO),
    https://arxiv.org/abs/2406.01462 (an offline preference loss with an on-policy KL).
  """
  base.require(beta > 0, 'kl_penalty', 'beta must be positive', beta)
  return _score_function('kl_penalty', 0.0, beta)


def _reward(name: str, gamma: float, beta: float, risk: measures.RiskMeasure) -> base.Objective:
  """The score under a risk measure, with entropy and KL."""
  base.require(
    isinstance(risk, measures.RiskMeasure) and risk.tail != 'upper' and risk.mass > 0,
    name,
    "risk must be expectation(), cvar(level, tail='lower') or entropic(-kappa) with kappa > 0, because the risk of a "
    'score is its lower tail',
    risk,
  )
  if risk.tail == 'neither':
    return _score_function(name, gamma, beta, functools.partial(base.require_score, name))
  penalties = _score_function(name, gamma, beta)

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    score = base.require_score(name, batch)
    _require_tail(name, risk, score.shape[1])
    value, weights = _risk_of_samples(risk, score)
    logp = table.sum(stats.logp)
    surrogate = jnp.sum(weights * (logp - jax.lax.stop_gradient(logp)), axis=1)
    loss, metrics = penalties.apply(table, batch)
    metrics = {key: metrics[key] for key in metrics if key != 'return_spread'}
    return Term(loss - surrogate - value, metrics | {'score': jnp.mean(score, axis=1), 'score_risk': value})

  fewest = declarations.at_least(_fewest(risk.mass))
  return base.Objective(penalties.needs, apply, reads=base.SCORE, responses=fewest, on_policy=True)


def _fewest(mass: float) -> int:
  """The smallest N of which a share `mass` is at least 2 responses."""
  return math.ceil(2.0 / mass - 1e-9)  # 2 / level may be rounded up


def _require_tail(name: str, risk: measures.RiskMeasure, responses: int) -> None:
  """Raises a ValueError, at trace time, if the measure depends on fewer than 2 of the N responses."""
  if responses >= _fewest(risk.mass):
    return
  remedy = f'sample N >= {_fewest(risk.mass)} responses'
  if responses >= 2:
    remedy += f' or raise the level to {math.ceil(2000 / responses) / 1000}'
  raise ValueError(
    f'{name}: {risk} depends on a share {risk.mass:g} of the N = {responses} responses to a prompt, which is '
    f'{responses * risk.mass:.3g} of them, and needs at least 2: {remedy}'
  )


def _risk_of_samples(risk: measures.RiskMeasure, score: Array) -> tuple[Array, Array]:
  """The measure Phi_N of the scores [B, N], [B], and the weight of each response, Phi_N - Phi_{-n}, [B, N]."""
  prompts, count = score.shape
  mean = jnp.mean(score, axis=1)
  # The measures are translation equivariant: centred scores keep the digits of the differences below.
  values = jnp.broadcast_to((score - mean[:, None])[:, None], (prompts, count + 1, count))
  every = jnp.full((1, count), -math.log(count))
  others = jnp.where(jnp.eye(count, dtype=bool), -jnp.inf, -math.log(count - 1))
  found = risk(values, jnp.broadcast_to(jnp.concatenate([every, others]), values.shape))
  return mean + found[:, 0], found[:, :1] - found[:, 1:]


def _score_function(
  name: str, gamma: float, beta: float, read_score: Callable[[PreferenceBatch], Array] | None = None
) -> base.Objective:
  """The surrogate of the module docstring; without scores, a return consists of entropy and KL alone."""
  base.require(gamma >= 0, name, 'gamma must not be negative', gamma)
  base.require(beta >= 0, name, 'beta must not be negative', beta)
  # If beta = 0 the objective needs no reference model, and no model is loaded for it.
  needs = frozenset({stats.logp, stats.reference_logp} if beta > 0 else {stats.logp})

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    logp = table.sum(stats.logp)
    fixed = jax.lax.stop_gradient(logp)
    returns = -gamma * fixed
    metrics = {'entropy': -jnp.mean(fixed, axis=1)}
    if read_score is not None:
      score = read_score(batch)
      returns += score
      metrics['score'] = jnp.mean(score, axis=1)
    if beta > 0:
      log_ratio = jax.lax.stop_gradient(table.log_ratio())
      returns -= beta * log_ratio
      metrics['kl'] = jnp.mean(log_ratio, axis=1)
    metrics['return_spread'] = jnp.std(returns, axis=1)
    surrogate = (returns - _leave_one_out(returns)) * (logp - fixed)
    return Term(-jnp.mean(surrogate + returns, axis=1), metrics)

  return base.Objective(needs, apply, reads=base.SCORE if read_score is not None else frozenset(), on_policy=True)


def _leave_one_out(returns: Array) -> Array:
  """[B, N]: the mean return of the other responses to the prompt; 0 if there are none."""
  others = returns.shape[1] - 1
  if others == 0:
    return jnp.zeros_like(returns)
  return (jnp.sum(returns, axis=1, keepdims=True) - returns) / others
