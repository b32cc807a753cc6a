"""The interface of a merge method, and how a method runs over a tensor that may not fit in memory.

A tensor is read in blocks of rows, once per pass: first for its statistics (a threshold, a norm, an angle), which add
up over blocks, then for the merged values, which need only their own rows. Merging parameter trees in memory uses one
block per leaf; merging files uses many small blocks. Both give the same values.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import inspect
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from alignjax.merging import per_tensor, task_vectors
from alignjax.types import Array, Params

State = Mapping[str, Any]  # arrays by name: the statistics of a tensor collected so far
MAX_ENTRIES = 2**32  # statistics count entries in 32 bits


class Block(NamedTuple):
  """Consecutive rows of one tensor in every model: arrays [rows, columns] of any floating dtype."""

  base: Array | None
  models: tuple[Array, ...]
  row: Any = 0  # index of the first row, so that random draws do not depend on how a tensor is split into blocks

  def deltas(self) -> Array:
    """[models, rows, columns] float32: the task vectors."""
    base = jnp.asarray(self.base, jnp.float32)
    return jnp.stack([jnp.asarray(model, jnp.float32) - base for model in self.models])


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One tensor across all models, readable any number of times.

  Attributes:
    name: the tensor's name; it selects per-tensor settings and seeds random methods.
    rows: product of all axes but the last; 1 for a vector.
    columns: the last axis.
    blocks: reads all rows once, in order.
  """

  name: str
  rows: int
  columns: int
  blocks: Callable[[], Iterable[Block]]

  def __post_init__(self):
    if not 0 < self.rows * self.columns < MAX_ENTRIES:
      raise ValueError(f'tensor {self.name}: {self.rows} x {self.columns} entries cannot be merged')


class Pass(NamedTuple):
  """One pass over a tensor to compute a statistic."""

  reduce: Callable[[Block, State], Any]  # returns a tree of arrays that add up over blocks
  finish: Callable[[Any, State], State]  # turns their sums into the next state
  is_needed: Callable[[State], Any] = lambda state: True  # whether to read the tensor at all


@dataclasses.dataclass(frozen=True)
class Method:
  """A rule that merges models.

  Attributes:
    name: the expression that builds the method.
    start: builds the initial state of a tensor from its name, size and settings.
    passes: the passes that compute statistics, in order.
    merge: maps a block and the statistics to merged rows, [rows, columns] float32.
    needs_base: whether the method works on differences from a base model.
    takes_weights: whether each model can have a weight.
    settings: the settings that may vary by tensor, by name.
    verify: called with a tensor's name and settings; raises a ValueError for invalid values.
    fewest: the smallest number of models that the method merges.
    most: the largest number of models that the method merges; None for no limit.
  """

  name: str
  start: Callable[[Tensor, Mapping[str, tuple[float, ...]]], State]
  merge: Callable[[Block, State], Array]
  passes: tuple[Pass, ...] = ()
  needs_base: bool = True
  takes_weights: bool = True
  settings: Mapping[str, per_tensor.Setting] = dataclasses.field(default_factory=dict)
  verify: Callable[[str, Mapping[str, tuple[float, ...]]], None] = lambda name, values: None
  fewest: int = 1
  most: int | None = None

  def __str__(self) -> str:
    return self.name

  def check(self, names: Iterable[str], models: int, has_base: bool, weights: per_tensor.Given | None) -> None:
    """Checks that the method can merge the given models.

    Raises:
      ValueError: too few or too many models, a base that is missing or unused, weights that are invalid or unused, or
        an invalid pattern.
    """
    wanted = f'{self.fewest}' if self.most == self.fewest else f'at least {self.fewest}'
    if models < self.fewest or (self.most is not None and models > self.most):
      raise ValueError(f'{self.name} merges {wanted} models, got {models}')
    if has_base != self.needs_base:
      problem = (
        'merges differences from a base model: give the model before fine-tuning (--base)'
        if self.needs_base
        else 'takes no base model; list it among the models instead'
      )
      raise ValueError(f'{self.name} {problem}')
    if weights is not None and not self.takes_weights:
      raise ValueError(f'{self.name} takes no weights')
    names = list(names)
    for setting in self._all_settings(weights).values():
      setting.check(names, models)
    for name in names:
      self._resolve(name, models, weights)

  def run(self, tensor: Tensor, models: int, weights: per_tensor.Given | None = None) -> Iterator[Array]:
    """Yields the merged blocks of one tensor, [rows, columns] float32."""
    state = self.start(tensor, self._resolve(tensor.name, models, weights))
    for reading in self.passes:
      if not reading.is_needed(state):
        continue
      # Wait for each block: dispatch is asynchronous, and unprocessed blocks would fill the memory.
      parts = (jax.block_until_ready(reading.reduce(block, state)) for block in tensor.blocks())
      state = reading.finish(functools.reduce(functools.partial(jax.tree.map, jnp.add), parts), state)
    for block in tensor.blocks():
      yield self.merge(block, state)

  def _all_settings(self, weights: per_tensor.Given | None) -> dict[str, per_tensor.Setting]:
    if not self.takes_weights:
      return dict(self.settings)
    return {**self.settings, 'weight': per_tensor.setting('weights', 1.0 if weights is None else weights)}

  def _resolve(self, name: str, models: int, weights: per_tensor.Given | None) -> dict[str, tuple[float, ...]]:
    values = {key: setting.resolve(name, models) for key, setting in self._all_settings(weights).items()}
    self.verify(name, values)
    return values


def factory[**P](build: Callable[P, Method]) -> Callable[P, Method]:
  """Names a method by the expression that builds it: `ties(density=0.5, normalize=True, scale=1.0)`."""
  signature = inspect.signature(build)

  @functools.wraps(build)
  def named(*args: P.args, **kwargs: P.kwargs) -> Method:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    method = build(*args, **kwargs)
    written = {key: setting.argument() for key, setting in method.settings.items()}
    arguments = ', '.join(f'{key}={written.get(key) or repr(value)}' for key, value in bound.arguments.items())
    return dataclasses.replace(method, name=f'{build.__name__}({arguments})')

  return named


def draw_key(seed: int, name: str) -> Array:
  """The PRNG key of a tensor; it depends on the tensor's name, not on the order of tensors or their sharding."""
  digest = hashlib.sha256(name.encode()).digest()
  return jax.random.fold_in(jax.random.key(seed), int.from_bytes(digest[:4], 'little'))


def merge(
  method: Method,
  models: Sequence[Params],
  base: Params | None = None,
  *,
  weights: per_tensor.Given | None = None,
  dtype: Any = None,
) -> Params:
  """Merges trees of parameters, leaf by leaf, in float32.

  Each leaf is one tensor: if a leaf stacks the layers of a model, densities are fractions of the whole stack.

  Args:
    method: the merge method, such as `ties(density=0.5)`.
    models: parameter trees with the same names and shapes, with any sharding.
    base: the tree that the models were trained from, for methods that need it.
    weights: one weight for all models, one per model, or a mapping from name patterns to either; 1 by default.
    dtype: the dtype of the result; None keeps the dtype of each leaf of the first model.

  Returns:
    A tree like the first model.

  Raises:
    ValueError: the models differ or do not suit the method, a leaf is not floating point, or a setting is invalid; the
      message names it.
  """
  if not models:
    raise ValueError(f'{method.name}: there is no model to merge')
  for i, other in enumerate([*models[1:], *([] if base is None else [base])]):
    task_vectors.check_alike(models[0], other, f'model {i + 1}' if i + 1 < len(models) else 'base')
  leaves, treedef = task_vectors.named_leaves(models[0])
  method.check(leaves, len(models), base is not None, weights)
  others = [task_vectors.named_leaves(model)[0] for model in models]
  bases = None if base is None else task_vectors.named_leaves(base)[0]
  merged = []
  for name, leaf in leaves.items():
    tensor = _whole(name, None if bases is None else bases[name], [other[name] for other in others])
    (rows,) = method.run(tensor, len(models), weights)
    merged.append(rows.reshape(jnp.shape(leaf)).astype(jnp.asarray(leaf).dtype if dtype is None else dtype))
  return jax.tree.unflatten(treedef, merged)


def _whole(name: str, base: Array | None, models: Sequence[Array]) -> Tensor:
  """Wraps a tensor in memory as one block."""

  def as_rows(leaf: Array) -> Array:
    leaf = jnp.asarray(leaf)
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise ValueError(f'parameter {name}: only floating types are merged, got {leaf.dtype}')
    return leaf.reshape(rows_and_columns(leaf.shape))

  block = Block(None if base is None else as_rows(base), tuple(map(as_rows, models)))
  return Tensor(name, *block.models[0].shape, lambda: [block])


def rows_and_columns(shape: Sequence[int]) -> tuple[int, int]:
  """The shape of a tensor viewed as a matrix: the last axis is kept, the others are merged; a vector is one row."""
  return (math.prod(shape[:-1]), shape[-1]) if shape else (1, 1)
