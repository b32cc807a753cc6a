"""Oracles of `alignjax.objectives.adaptive`, where nothing is remembered yet."""

import dataclasses
import math

import numpy as np

from tests.oracles.data import Case, expected, log_sigmoid


def moments(margin, f):
  """(mean, deviation) of margins [B]: every pair in both orders, each as often as its weight says."""
  values, counts = np.r_[margin, -margin], np.r_[f.weight * f.label, f.weight * (1 - f.label)]
  mean = np.average(values, weights=counts)
  return mean, math.sqrt(np.sum(counts * (values - mean) ** 2) / (counts.sum() - 1))


def likelihood(d, normalised):
  return d.sum_logp / (d.length if normalised else 1)


def drift_margin(f, normalised=True):
  rho = f.rho / (f.length if normalised else 1)
  return rho[:, 0] - rho[:, 1]


def alpha_dpo(d, f, beta, gamma, alpha, normalised=True, smoothing=0.0, started=1.0):
  """`started`: share of their limit that the averages have reached."""
  margin, likely = drift_margin(f, normalised), likelihood(d, normalised)
  mean, deviation = moments(margin, f)
  margins = margin, started * mean, started * deviation
  return adaptive_margin(beta * (likely[:, 0] - likely[:, 1]), margins, d.label, (gamma, alpha, smoothing))


def alpha_dpo_by_groups(d, f, beta, gamma, alpha, rows):
  """Each group of rows updates the averages, which start at zero, and then uses them."""
  margin, likely = drift_margin(f), likelihood(d, True)
  mean = deviation = 0.0
  means, deviations = np.zeros_like(margin), np.full_like(margin, np.inf)
  for start in range(0, margin.size, rows):
    group = slice(start, start + rows)
    if f.weight[group].sum() > 1:
      own = moments(margin[group], dataclasses.replace(f, weight=f.weight[group], label=f.label[group]))
      mean, deviation = 0.9 * mean + 0.1 * own[0], 0.9 * deviation + 0.1 * own[1]
    if deviation:
      means[group], deviations[group] = mean, deviation
  margins = margin, means, deviations
  return adaptive_margin(beta * (likely[:, 0] - likely[:, 1]), margins, d.label, (gamma, alpha, 0.0))


def adaptive_margin(reward, margins, label, settings):
  (margin, mean, deviation), (gamma, alpha, smoothing), loss = margins, settings, 0.0
  for share, sign in ((label, 1), (1 - label, -1)):
    target = gamma + alpha * (sign * margin - mean) / deviation
    logit = sign * reward - target
    loss = loss + share * -((1 - smoothing) * log_sigmoid(logit) + smoothing * log_sigmoid(-logit))
  return loss


def beta_dpo(d, f, beta, alpha, kept=None):
  kept = np.ones(len(f.label)) if kept is None else kept
  mean, _ = moments(f.h, f)
  kept_mean = np.sum(kept * f.weight * (2 * f.label - 1) * f.h) / np.sum(kept * f.weight)
  strength = max(beta * (1 + alpha * (kept_mean - mean)), 1e-3)
  scale = f.weight.sum() / np.sum(kept * f.weight)
  return kept * scale * expected(lambda h: -log_sigmoid(strength * h), d.h, d.label)


CASES = (
  Case('alpha_dpo()', lambda d, f: alpha_dpo(d, f, 2.5, 1.5, 0.5)),
  Case("alpha_dpo(beta=1.5, gamma=0.4, alpha=0.3, normaliser='ema')", lambda d, f: alpha_dpo(d, f, 1.5, 0.4, 0.3)),
  Case(
    'alpha_dpo(beta=0.2, gamma=0.1, alpha=0.7, length_normalised=False)',
    lambda d, f: alpha_dpo(d, f, 0.2, 0.1, 0.7, normalised=False),
  ),
  Case(
    'alpha_dpo_released(beta=2.0, gamma_beta_ratio=0.3, alpha=0.1)',
    lambda d, f: alpha_dpo(d, f, 2.0, 0.6, 0.2, started=0.1),
  ),
  Case(
    'alpha_dpo_released(label_smoothing=0.2)',
    lambda d, f: alpha_dpo(d, f, 2.5, 1.5, 0.5, smoothing=0.2, started=0.1),
  ),
  Case(
    'alpha_dpo_released(beta=2.0, gamma_beta_ratio=0.3, alpha=0.05, statistics_rows=2)',
    lambda d, f: alpha_dpo_by_groups(d, f, 2.0, 0.6, 0.1, rows=2),
  ),
  Case(
    'alpha_dpo_released(alpha=0.05, statistics_rows=4)',
    lambda d, f: alpha_dpo_by_groups(d, f, 2.5, 1.5, 0.125, rows=4),
  ),
  Case('beta_dpo(beta=0.2, alpha=0.3, ratio=1.0)', lambda d, f: beta_dpo(d, f, 0.2, 0.3), at_reference=math.log(2)),
)
