"""Oracles of `alignjax.objectives.lengths`."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.objectives import lengths
from alignjax.types import PreferenceBatch
from tests.oracles.data import Case, expected, log_sigmoid

sampled_tokens = jax.jit(lengths.sampled_tokens)


def logistic(d, margin):
  return expected(lambda h: -log_sigmoid(h), margin, d.label)


def r_dpo(d, beta, alpha):
  return logistic(d, beta * d.h + alpha * (d.length[:, 0] - d.length[:, 1]))


def dpo_norm(d, beta):
  mean = d.rho / d.length
  return logistic(d, beta * (mean[:, 0] - mean[:, 1]))


def ld_dpo(d, beta, alpha):
  rho = np.zeros(d.length.shape)
  for row, column in np.ndindex(*d.length.shape):
    shared, size = d.length[row].min(), d.length[row, column]
    token = d.logp[row, column] - d.reference_logp[row, column]
    rho[row, column] = token[:shared].sum() + alpha * token[shared:size].sum()
  return logistic(d, beta * (rho[:, 0] - rho[:, 1]))


def sampo(d, beta):
  # Which tokens are drawn is the library's; that they are as many and as random as they should be, has its own tests.
  batch = PreferenceBatch(
    prompt=jnp.asarray(d.prompt),
    prompt_length=jnp.asarray(d.prompt_length),
    response=jnp.asarray(d.target),
    response_length=jnp.asarray(d.length),
    label=jnp.asarray(d.label, jnp.float32),
    weight=jnp.asarray(d.weight, jnp.float32),
  )
  drawn = np.asarray(sampled_tokens(batch))
  rho = np.where(drawn, d.logp - d.reference_logp, 0.0).sum(-1)
  return logistic(d, beta * (rho[:, 0] - rho[:, 1]))


CASES = (
  Case('r_dpo()', lambda d, _: r_dpo(d, 0.1, 0.01)),
  Case('r_dpo(beta=0.3, alpha=0.4)', lambda d, _: r_dpo(d, 0.3, 0.4)),
  Case('dpo_norm()', lambda d, _: dpo_norm(d, 5.0), at_reference=math.log(2)),
  Case('dpo_norm(beta=2.0)', lambda d, _: dpo_norm(d, 2.0), at_reference=math.log(2)),
  Case('ld_dpo()', lambda d, _: ld_dpo(d, 0.1, 0.5), at_reference=math.log(2)),
  Case('ld_dpo(beta=0.3, alpha=0.2)', lambda d, _: ld_dpo(d, 0.3, 0.2), at_reference=math.log(2)),
  Case('sampo(beta=0.3)', lambda d, _: sampo(d, 0.3), at_reference=math.log(2)),
)
