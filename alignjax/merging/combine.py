"""Combines task vectors, sparsified or not: sums, averages and sign election."""

from collections.abc import Mapping
import math

import jax
import jax.numpy as jnp

from alignjax.merging import base, per_tensor, sparsify
from alignjax.types import Array

Values = Mapping[str, tuple[float, ...]]  # settings of one tensor by name, one number for each model
CONSENSUS = ('linear', 'ties')


def require(condition: bool, method: str, requirement: str, value: object) -> None:
  if not condition:
    raise ValueError(f'{method}: {requirement}, got {value!r}')


def weights_state(tensor: base.Tensor, values: Values) -> base.State:
  del tensor
  return {'weight': jnp.asarray(values['weight'], jnp.float32)}


def shares_state(tensor: base.Tensor, values: Values) -> base.State:
  del tensor
  total = math.fsum(values['weight'])
  return {'weight': jnp.asarray([weight / total for weight in values['weight']], jnp.float32)}


def weighted_sum(values: tuple[Array, ...], state: base.State) -> Array:
  return sum(state['weight'][i] * value for i, value in enumerate(values))


def _accept(name: str, values: Values) -> None:
  del name, values


def check_total(name: str, values: Values) -> None:
  total = math.fsum(values['weight'])
  require(abs(total) >= 1e-8, f'weights of the tensor {name}', 'a sum other than 0 is needed to divide by', total)


def _check_signs(name: str, values: Values) -> None:
  # With weights of both signs, the average could have the sign that lost the election.
  least = min(values['weight'])
  require(
    least >= 0, f'weights of the tensor {name}', 'they must not be negative in an average of those that agree', least
  )


def added(
  name: str,
  thinned: sparsify.Sparsifier,
  shares: Mapping[str, per_tensor.Setting],
  consensus: str,
  normalize: bool,
  scale: float,
) -> base.Method:
  """theta_0 + scale * (the weighted sum or average of the sparsified task vectors)."""
  require(consensus in CONSENSUS, name, f'consensus must be one of {", ".join(CONSENSUS)}', consensus)
  finite = isinstance(scale, int | float) and not isinstance(scale, bool) and math.isfinite(scale)
  require(finite, name, 'scale must be a finite number', scale)
  elects = consensus == 'ties'
  initial = shares_state if normalize and not elects else weights_state

  def start(tensor: base.Tensor, values: Values) -> base.State:
    return {**thinned.start(tensor, values), **initial(tensor, values)}

  def merge(block: base.Block, state: base.State) -> Array:
    deltas = thinned.apply(block, state)
    mixed = _elected(deltas, state['weight'], normalize) if elects else weighted_sum(tuple(deltas), state)
    return jnp.asarray(block.base, jnp.float32) + scale * mixed

  verify = (_check_signs if elects else check_total) if normalize else _accept
  return base.Method(name, start, jax.jit(merge), thinned.passes, settings=shares, verify=verify)


def _elected(deltas: Array, weight: Array, normalize: bool) -> Array:
  """[rows, columns]: the sum or average of the entries whose sign agrees with the weighted sum."""
  weight = weight[:, None, None]
  weighted = weight * deltas
  elected = jnp.where(jnp.sum(weighted, axis=0) >= 0, 1.0, -1.0)
  agrees = jnp.sign(weighted) == elected[None]
  mixed = jnp.sum(jnp.where(agrees, weighted, 0.0), axis=0)
  if not normalize:
    return mixed
  divisor = jnp.sum(jnp.where(agrees, weight, 0.0), axis=0)
  return mixed / jnp.where(divisor > 0, divisor, 1.0)
