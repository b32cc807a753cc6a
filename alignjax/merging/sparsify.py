"""Sparsifies task vectors before they are added: by magnitude, by a band of magnitudes, or at random."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignjax import numerics
from alignjax.merging import base
from alignjax.types import Array

RESCALES = ('inverse', 'l1', 'none')
_DIGIT = 16  # bits that one pass determines; two passes determine all 32
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
  """Keeps the fraction `density` with the largest magnitude: exactly max(1, floor(density * entries)) of a tensor.

  Entries of equal magnitude are common: those of a bfloat16 model have few distinct values. They are ordered by a
  permutation of the positions that depends on the tensor's name and the model's index.
  """

  def start(tensor: base.Tensor, values: Mapping[str, tuple[float, ...]]) -> base.State:
    entries = tensor.rows * tensor.columns
    return _selection(tensor.name, [[_kept(density, entries)] for density in values['density']])

  def apply(block: base.Block, state: base.State) -> Array:
    return jnp.where(_reaches(block, state, 0), block.deltas(), 0.0)

  return Sparsifier(start, apply, _SELECT)


def band() -> Sparsifier:
  """Drops the fraction `gamma` with the largest magnitude, and the smallest entries until `density` is left.

  If density + gamma exceeds 1, fewer of the largest are dropped. Equal magnitudes are ordered as in `largest`.
  """

  def start(tensor: base.Tensor, values: Mapping[str, tuple[float, ...]]) -> base.State:
    entries, ranks = tensor.rows * tensor.columns, []
    for density, gamma in zip(values['density'], values['gamma'], strict=True):
      kept = _kept(density, entries)
      dropped = min(int(gamma * entries), entries - kept)
      ranks.append([dropped, dropped + kept])
    return _selection(tensor.name, ranks)

  def apply(block: base.Block, state: base.State) -> Array:
    return jnp.where(_reaches(block, state, 1) & ~_reaches(block, state, 0), block.deltas(), 0.0)

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


def _selection(name: str, ranks: list[list[int]]) -> base.State:
  """The state of a radix search for the entries at `ranks` [models, searches]; rank 1 is the largest, 0 is above all.

  `prefix` holds the bits found so far and `mask` marks them; ranks count among the entries that share these bits.
  `words` holds the keys that order equal magnitudes.
  """
  key, models = base.draw_key(0, name), jnp.arange(len(ranks))
  words = jax.random.key_data(jax.vmap(jax.random.fold_in, (None, 0))(key, models))[:, :2]
  return _search(jnp.asarray(np.asarray(ranks, np.uint32))) | {'words': words}


def _search(rank: Array) -> dict[str, Array]:
  """A search before its first pass."""
  return {'rank': rank, 'prefix': jnp.zeros_like(rank), 'mask': jnp.uint32(0), 'shift': jnp.uint32(32 - _DIGIT)}


def _order(block: base.Block, state: base.State) -> Array:
  """[models, rows, columns] uint32: distinct numbers in pseudorandom order, which depend on model and position."""
  rows, columns = block.models[0].shape
  row = jnp.asarray(block.row, jnp.uint32) + jnp.arange(rows, dtype=jnp.uint32)
  position = row[:, None] * jnp.uint32(columns) + jnp.arange(columns, dtype=jnp.uint32)[None]
  return jax.vmap(numerics.permuted, (None, 0))(position, state['words'])


def _reaches(block: base.Block, state: base.State, search: int) -> Array:
  """[models, rows, columns] bool: the entries that are at least as large as the one that a search found."""
  bits, found, least = _bits(block.deltas()), state['bits'][:, search], state['prefix'][:, search]
  tied = (bits == found[:, None, None]) & (_order(block, state) >= least[:, None, None])
  return (bits > found[:, None, None]) | tied


def _histogram(block: base.Block, state: base.State) -> Array:
  """[models, searches, digits]: among the entries that share the known bits, a histogram of the next digit."""

  def count(bits: Array, prefix: Array) -> Array:
    return _digits(bits, (bits & state['mask']) == prefix, state)

  return jax.vmap(jax.vmap(count, (None, 0)))(_bits(block.deltas()), state['prefix'])


def _histogram_of_ties(block: base.Block, state: base.State) -> Array:
  """[models, searches, digits]: the same for the order, among the entries with the magnitude that was found."""

  def count(bits: Array, order: Array, found: Array, prefix: Array) -> Array:
    return _digits(order, (bits == found) & ((order & state['mask']) == prefix), state)

  of_models = jax.vmap(jax.vmap(count, (None, None, 0, 0)))
  return of_models(_bits(block.deltas()), _order(block, state), state['bits'], state['prefix'])


def _digits(values: Array, counted: Array, state: base.State) -> Array:
  digit = (values >> state['shift']) & jnp.uint32(_DIGITS - 1)
  return jnp.zeros(_DIGITS, jnp.uint32).at[digit].add(counted.astype(jnp.uint32))


def _settle(histogram: Array, state: base.State) -> base.State:
  """Picks the largest digit such that enough entries are at least that large."""
  reached = jnp.cumsum(histogram[..., ::-1], axis=-1, dtype=jnp.uint32)[..., ::-1]
  rank, shift = state['rank'], state['shift']
  digit = jnp.sum(reached >= rank[..., None], axis=-1, dtype=jnp.uint32) - 1
  above, alike = (jnp.take_along_axis(x, digit[..., None], axis=-1)[..., 0] for x in (reached - histogram, histogram))
  return {
    **state,
    'rank': rank - above,
    'tied': jnp.any(rank - above < alike),  # whether more entries share this digit than are wanted
    'prefix': state['prefix'] + (digit << shift),
    'mask': state['mask'] | jnp.uint32(_DIGITS - 1) << shift,
    'shift': shift - jnp.uint32(_DIGIT),
  }


def _settle_magnitude(histogram: Array, state: base.State) -> base.State:
  """Ends the search for a magnitude and begins one among the entries that have it; at first, all of them reach it."""
  state = _settle(histogram, state)
  return {**state, 'bits': state['prefix'], **_search(state['rank'])}


# A radix search over the bits of float32 magnitudes, highest first. It is exact, needs no sort, and its counts add up
# over blocks and devices, so no tensor is gathered. The entries with the magnitude found are then searched by their
# order, but only if some of them are not wanted.
_SELECT = (
  base.Pass(jax.jit(_histogram), jax.jit(_settle)),
  base.Pass(jax.jit(_histogram), jax.jit(_settle_magnitude)),
  *(base.Pass(jax.jit(_histogram_of_ties), jax.jit(_settle), lambda state: state['tied']),) * 2,
)
