"""Sparsifies task vectors before they are added: by magnitude, by a band of magnitudes, or at random."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.merging import base
from alignjax.types import Array

RESCALES = ('inverse', 'l1', 'none')
_DIGIT = 16  # bits of the threshold that one pass determines
_DIGITS = 2**_DIGIT
_SMALL = 1e-7  # tensors with an L1 norm below this are not rescaled


class Sparsifier(NamedTuple):
  """A way to sparsify task vectors: initial state, statistics passes, and the function applied to a block."""

  start: Callable[[base.Tensor, Mapping[str, tuple[float, ...]]], base.State]
  apply: Callable[[base.Block, base.State], Array]  # returns [models, rows, columns] float32
  passes: tuple[base.Pass, ...] = ()


def dense() -> Sparsifier:
  """Keeps everything."""
  return Sparsifier(lambda tensor, values: {}, lambda block, state: block.deltas())


def largest() -> Sparsifier:
  """Keeps the fraction `density` with the largest magnitude: floor(density * entries), at least one.

  Entries that tie with the smallest one kept are kept too, so the result does not depend on the order of entries.
  """

  def start(tensor: base.Tensor, values: Mapping[str, tuple[float, ...]]) -> base.State:
    entries = tensor.rows * tensor.columns
    return _selection([[_kept(density, entries)] for density in values['density']])

  def apply(block: base.Block, state: base.State) -> Array:
    deltas = block.deltas()
    return jnp.where(_bits(deltas) >= state['prefix'][:, 0, None, None], deltas, 0.0)

  return Sparsifier(start, apply, _SELECT)


def band() -> Sparsifier:
  """Drops the fraction `gamma` with the largest magnitude, and the smallest entries until `density` is left.

  If density + gamma exceeds 1, fewer of the largest are dropped. Entries that tie with either end of the band are kept.
  """

  def start(tensor: base.Tensor, values: Mapping[str, tuple[float, ...]]) -> base.State:
    entries, ranks = tensor.rows * tensor.columns, []
    for density, gamma in zip(values['density'], values['gamma'], strict=True):
      kept = _kept(density, entries)
      dropped = min(int(gamma * entries), entries - kept)
      ranks.append([dropped + 1, dropped + kept])
    return _selection(ranks)

  def apply(block: base.Block, state: base.State) -> Array:
    deltas = block.deltas()
    bits, ends = _bits(deltas), state['prefix'][:, :, None, None]
    return jnp.where((bits <= ends[:, 0]) & (bits >= ends[:, 1]), deltas, 0.0)

  return Sparsifier(start, apply, _SELECT)


def bernoulli(seed: int, rescale: str) -> Sparsifier:
  """Keeps every entry with probability `density`."""

  def probability(deltas: Array, state: base.State) -> Array:
    return jnp.broadcast_to(state['density'][:, None, None], deltas.shape)

  return _random(seed, rescale, probability)


def by_rank(seed: int, rescale: str) -> Sparsifier:
  """Keeps an entry with a probability that increases with the rank of its magnitude within its row.

  The probability is linear in the rank, from density - epsilon at the smallest entry to density + epsilon at the
  largest. A density of 1 keeps everything.
  """

  def probability(deltas: Array, state: base.State) -> Array:
    columns = deltas.shape[-1]
    places = jax.lax.broadcasted_iota(jnp.float32, deltas.shape, 2)
    order = jnp.argsort(jnp.abs(deltas), axis=-1)
    rank = jnp.put_along_axis(places, order, places, axis=-1, inplace=False)
    place = 2.0 * rank / (columns - 1) - 1.0 if columns > 1 else jnp.zeros_like(deltas)
    density = state['density']
    epsilon = jnp.where(density < 1.0, state['epsilon'], 0.0)
    return density[:, None, None] + epsilon[:, None, None] * place

  return _random(seed, rescale, probability)


def _random(seed: int, rescale: str, probability: Callable[[Array, base.State], Array]) -> Sparsifier:
  """Keeps entries at random and rescales them.

  'inverse' divides by the probability, so that the expectation is the task vector; 'l1' restores the L1 norm of each
  tensor; 'none' does not rescale.
  """

  def start(tensor: base.Tensor, values: Mapping[str, tuple[float, ...]]) -> base.State:
    state = {name: jnp.asarray(values[name], jnp.float32) for name in ('density', 'epsilon') if name in values}
    return state | {'key': base.draw_key(seed, tensor.name)}

  def thin(block: base.Block, state: base.State) -> Array:
    deltas = block.deltas()
    chance = probability(deltas, state)
    kept = _uniform(state['key'], block.row, deltas.shape) < chance
    return jnp.where(kept, deltas / chance if rescale == 'inverse' else deltas, 0.0)

  def norms(block: base.Block, state: base.State) -> Array:
    return jnp.stack([jnp.sum(jnp.abs(part), axis=(1, 2)) for part in (block.deltas(), thin(block, state))])

  def ratio(sums: Array, state: base.State) -> base.State:
    before, after = sums
    usable = (before >= _SMALL) & (after >= _SMALL)
    return {**state, 'ratio': jnp.where(usable, before / jnp.where(usable, after, 1.0), 1.0)}

  if rescale != 'l1':
    return Sparsifier(start, thin)
  passes = (base.Pass(jax.jit(norms), ratio),)
  return Sparsifier(start, lambda block, state: thin(block, state) * state['ratio'][:, None, None], passes)


def _uniform(key: Array, row: Array, shape: tuple[int, ...]) -> Array:
  """[models, rows, columns] in [0, 1): a draw depends on the model and the row, not on the block boundaries."""
  models, rows, columns = shape

  def of_row(key: Array, index: Array) -> Array:
    return jax.random.uniform(jax.random.fold_in(key, index), (columns,))

  of_rows = jax.vmap(of_row, (None, 0))
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(models))
  return jax.vmap(of_rows, (0, None))(keys, row + jnp.arange(rows, dtype=jnp.uint32))


def _kept(density: float, entries: int) -> int:
  return max(1, int(density * entries))


def _bits(values: Array) -> Array:
  """Magnitudes as integers that sort in the same order."""
  return jax.lax.bitcast_convert_type(jnp.abs(values), jnp.uint32)


def _selection(ranks: list[list[int]]) -> base.State:
  """The state of a radix search for the magnitudes at `ranks` [models, searches]; rank 1 is the largest.

  `prefix` holds the bits found so far and `mask` marks them; ranks count among the entries that share these bits.
  """
  rank = jnp.asarray(np.asarray(ranks, np.uint32))
  return {'rank': rank, 'prefix': jnp.zeros_like(rank), 'mask': jnp.uint32(0), 'shift': jnp.uint32(32 - _DIGIT)}


def _histogram(block: base.Block, state: base.State) -> Array:
  """[models, searches, digits]: among the entries that share the known bits, a histogram of the next digit."""
  bits = _bits(block.deltas())

  def count(bits: Array, prefix: Array) -> Array:
    digit = (bits >> state['shift']) & jnp.uint32(_DIGITS - 1)
    shares = (bits & state['mask']) == prefix
    return jnp.zeros(_DIGITS, jnp.uint32).at[digit].add(shares.astype(jnp.uint32))

  return jax.vmap(jax.vmap(count, (None, 0)))(bits, state['prefix'])


def _settle(histogram: Array, state: base.State) -> base.State:
  """Picks the largest digit such that enough entries are at least that large."""
  reached = jnp.cumsum(histogram[..., ::-1], axis=-1, dtype=jnp.uint32)[..., ::-1]
  rank, shift = state['rank'], state['shift']
  digit = jnp.sum(reached >= rank[..., None], axis=-1, dtype=jnp.uint32) - 1
  above = jnp.take_along_axis(reached - histogram, digit[..., None], axis=-1)[..., 0]
  return {
    **state,
    'rank': rank - above,
    'prefix': state['prefix'] + (digit << shift),
    'mask': state['mask'] | jnp.uint32(_DIGITS - 1) << shift,
    'shift': shift - jnp.uint32(_DIGIT),
  }


# A radix search over the bits of float32 magnitudes, highest first. It is exact, needs no sort, and its counts add up
# over blocks and devices, so no tensor is gathered.
_SELECT = (base.Pass(jax.jit(_histogram), jax.jit(_settle)),) * (32 // _DIGIT)
