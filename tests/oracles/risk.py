"""Oracles of `alignjax.risk`, along one axis of float64 arrays: a full sort, and plain sums."""

import numpy as np


def expectation(d, p):
  return np.sum(p * d)


def upper_cvar_weights(d, p, level):
  """p / level from the largest value down until the mass is used up; equal values share in proportion to p."""
  _, atom = np.unique(-d, return_inverse=True)
  mass = np.bincount(atom, weights=p)  # of each distinct value, the largest first
  above = np.cumsum(mass) - mass
  share = np.clip(level - above, 0.0, mass) / np.where(mass > 0, mass, 1.0)
  weights = p * share[atom] / level
  return weights / weights.sum()


def cvar(d, p, level, tail='upper'):
  if tail == 'lower':
    return -cvar(-d, p, level)
  return np.sum(upper_cvar_weights(d, p, level) * d)


def entropic(d, p, kappa):
  if kappa == 0:
    return expectation(d, p)
  exponent = kappa * d[p > 0]
  shift = exponent.max()
  if shift < 1e-2:  # the same by its exact series-free form
    return np.log1p(np.sum(p[p > 0] * np.expm1(exponent))) / kappa
  return (shift + np.log(np.sum(p[p > 0] * np.exp(exponent - shift)))) / kappa


def worst_case(d, p, tail='upper'):
  return d[p > 0].max() if tail == 'upper' else d[p > 0].min()


def mean_semideviation(d, p, weight):
  mean = np.sum(p * d)
  return mean + weight * np.sum(p * np.maximum(d - mean, 0))


def along_last_axis(measure, d, p, *args, **kwargs):
  """[...] of [..., V]."""
  out = np.zeros(d.shape[:-1])
  for index in np.ndindex(*out.shape):
    out[index] = measure(d[index], p[index], *args, **kwargs)
  return out
