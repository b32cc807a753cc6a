"""Baselines for online merging: sparsified gradients and averages of the parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from alignjax.optim import random_bits
from alignjax.types import Array, Params


class ChildTuningState(NamedTuple):
  count: Array  # [] int32, updates done
  key: Array  # [2] uint32


def child_tuning(reserve: float, seed: int = 0) -> optax.GradientTransformation:
  """ChildTuning-F: keeps a fresh random subset of the gradient's entries, before the optimizer.

  g <- g B / p,   B ~ Bernoulli(p) for each entry and step

  Chain it before the base optimizer, `optax.chain(child_tuning(0.1), optax.adam(1e-6))`, so that the moments see the
  sparse gradient. `online_dare` with alpha = 0 is different: it masks the finished update and leaves the moments dense.

  Args:
    reserve: fraction of entries to keep, p in (0, 1]. May be a traced scalar under `optax.inject_hyperparams`; then its
      range is not checked.
    seed: seed of the masks, which are the same on every mesh.

  Raises:
    ValueError: reserve is out of range.

  References:
    Xu et al. 2021, Raise a Child in Large Language Model, https://arxiv.org/abs/2109.05687.
  """
  if not isinstance(reserve, jax.Array) and not 0 < reserve <= 1:
    raise ValueError(f'reserve={reserve} must be in (0, 1]: the fraction of gradient entries to keep')

  def init(params: Params) -> ChildTuningState:
    del params
    return ChildTuningState(jnp.zeros((), jnp.int32), random_bits.key_words(seed))

  def update(updates: Params, state: ChildTuningState, params: Params | None = None) -> tuple[Params, ChildTuningState]:
    del params
    leaves, structure = jax.tree.flatten(updates)
    sparse = []
    for index, leaf in enumerate(leaves):
      word, _ = random_bits.bits(random_bits.fold(state.key, index, state.count), leaf.shape)
      kept = jnp.where(random_bits.bernoulli(word, reserve), leaf.astype(jnp.float32) / reserve, 0.0)
      sparse.append(kept.astype(leaf.dtype))
    return structure.unflatten(sparse), state._replace(count=optax.safe_increment(state.count))

  return optax.GradientTransformation(init, update)


class MovingAverageState(NamedTuple):
  average: Params | None  # float32, with history='average'


def moving_average(rate: float = 1e-3, history: str = 'average') -> optax.GradientTransformation:
  """An exponential moving average of the parameters, the paper's baseline "EMA"; the last link of a chain.

  The paper gives a rate c, best at 1e-3, but does not define what is averaged or which side c weights, and its released
  code lacks this optimizer. With theta' the parameters after the update, both readings are available:

    'average'   phi <- (1 - c) phi + c theta'. Training continues from theta'; `averaged` returns phi, the model to
                export. This is the usual moving average with decay 1 - c, initialised at the first parameters.
    'previous'  theta <- (1 - c) theta' + c theta, the literal reading: c weights the parameters before the step. It is
                equivalent to scaling the learning rate by 1 - c, and needs no memory.

  Args:
    rate: c in [0, 1].
    history: 'average', which takes 4 bytes per parameter, or 'previous'.

  Raises:
    ValueError: the rate is out of range, the history is unknown, or `update` is called without parameters.

  References:
    Lu et al. 2024, Online Merging Optimizers, https://arxiv.org/abs/2405.17931 (a baseline there).
  """
  if history not in ('average', 'previous'):
    raise ValueError(f"history={history!r} is not one of 'average', 'previous'")
  if not isinstance(rate, jax.Array) and not 0 <= rate <= 1:
    raise ValueError(f'rate={rate} must be in [0, 1]')

  def init(params: Params) -> MovingAverageState:
    # A copy, because parameters and state are both donated to the training step and a buffer can be donated only once.
    def copied(param: Array) -> Array:
      return jnp.array(param, jnp.float32, copy=True)

    return MovingAverageState(jax.tree.map(copied, params) if history == 'average' else None)

  def update(
    updates: Params, state: MovingAverageState, params: Params | None = None
  ) -> tuple[Params, MovingAverageState]:
    if history == 'previous':
      return jax.tree.map(lambda u: ((1.0 - rate) * u).astype(u.dtype), updates), state
    if params is None:
      raise ValueError('moving_average needs the parameters: call update(updates, state, params)')

    def averaged_leaf(average: Array, param: Array) -> Array:
      return average + rate * (param.astype(jnp.float32) - average)

    after = optax.apply_updates(params, updates)
    return updates, MovingAverageState(jax.tree.map(averaged_leaf, state.average, after))

  return optax.GradientTransformation(init, update)


def averaged(opt_state: optax.OptState, params: Params) -> Params:
  """Returns phi, the average that `moving_average` keeps in an optimizer's state, in the dtypes of `params`.

  Raises:
    ValueError: the state holds no average, or more than one.
  """

  def is_average(node: Any) -> bool:
    return isinstance(node, MovingAverageState) and node.average is not None

  found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_average) if is_average(node)]
  if len(found) != 1:
    raise ValueError(
      f"the optimizer keeps {len(found)} averages of parameters: chain one moving_average('average') last"
    )
  return jax.tree.map(lambda average, param: average.astype(param.dtype), found[0].average, params)
