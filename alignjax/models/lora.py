"""Low-rank adapters: a small tree of parameters of their own, beside a base model that stays as it is.

  x (W + alpha / r A B) = x W + alpha / r (x A) B,   A [in, r], B [r, out]

A is random and B is 0 at first, so that the adapted model equals its base exactly: the base is the reference of the
same run, and needs no second copy. Adapters lie where the kernels lie that they adapt, stacked by layers:

  layers/attention/query/{lora_a [L, D, r], lora_b [L, r, heads * H]}

In the model, an adapted kernel takes the place of the kernel: `attach` puts it there, and `layers.Linear` multiplies by
it as by an array.

References:
  Hu et al., LoRA, https://arxiv.org/abs/2106.09685, section 4.1.
  Dettmers et al., QLoRA, https://arxiv.org/abs/2305.14314, section 3, for a base in few bits.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

import jax

from alignjax.models import base as base_lib
from alignjax.models import quantization
from alignjax.types import Array, Params

FACTORS = ('lora_a', 'lora_b')
# Uniform in +-1 / sqrt(in), as PEFT draws it.
_init_a = jax.nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform', batch_axis=0)


@dataclasses.dataclass(frozen=True)
class LoRA:
  """Which kernels are adapted, and how.

  Args:
    rank: r, columns of A and rows of B.
    alpha: the product of A and B counts alpha / rank times.
    targets: parts of a layer, joined by `+`: 'attention+mlp'; or projections, 'query+value', 'attention/output'.

  Raises:
    ValueError: naming the argument, for a rank or alpha that is not positive, or for no targets.
  """

  rank: int = 16
  alpha: float = 32.0
  targets: str = 'attention+mlp'

  def __post_init__(self):
    if type(self.rank) is not int or self.rank < 1:
      raise ValueError(f'rank={self.rank!r} must be an integer of at least 1')
    if isinstance(self.alpha, bool) or not isinstance(self.alpha, int | float) or not 0 < self.alpha < math.inf:
      raise ValueError(f'alpha={self.alpha!r} must be a positive number')
    if not isinstance(self.targets, str) or not all(self.names):
      raise ValueError(f"targets={self.targets!r} must be names joined by +, such as 'attention+mlp'")

  @property
  def names(self) -> tuple[str, ...]:
    """The targets one by one."""
    return tuple(name.strip() for name in self.targets.split('+'))

  @property
  def scale(self) -> float:
    """alpha / rank."""
    return self.alpha / self.rank


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
  """What stands in place of a kernel: x @ adapted = x @ kernel + scale (x @ lora_a) @ lora_b."""

  kernel: Any  # an array, or a kernel of `quantization`
  lora_a: Array  # [..., in, r]
  lora_b: Array  # [..., r, out]
  scale: float = dataclasses.field(metadata={'static': True})

  def astype(self, dtype: Any) -> 'Adapted':
    """All factors in the dtype to compute in."""
    factors = (self.kernel, self.lora_a, self.lora_b)
    return Adapted(*(factor.astype(dtype) for factor in factors), scale=self.scale)

  def __rmatmul__(self, x: Array) -> Array:
    return x @ self.kernel + self.scale * ((x @ self.lora_a) @ self.lora_b)

  def merged(self) -> Array:
    """kernel + scale lora_a @ lora_b, one array."""
    return quantization.dense(self.kernel) + self.scale * (self.lora_a @ self.lora_b)


def kernels(base: Params) -> dict[tuple[str, ...], Any]:
  """The kernels that can be adapted, [L, in, out], by the path of their projection."""
  paths, _ = jax.tree_util.tree_flatten_with_path(base, is_leaf=_is_kernel)
  named = {tuple(key.key for key in path): leaf for path, leaf in paths}
  return {path[:-1]: leaf for path, leaf in named.items() if path[-1] == 'kernel' and path[0] == 'layers'}


def init(key: Array, base: Params, lora: LoRA) -> Params:
  """Draws A and sets B to 0, in float32: exactly one factor is 0, so nothing changes at first and gradients flow.

  Args:
    key: a typed PRNG key.
    base: parameters of the model to adapt, or their shapes.
    lora: which of them, and how.

  Raises:
    ValueError: a target names no projection of the model; the message lists what there is.
  """
  every = kernels(base)
  known = {name for path in every for name in _target_names(path)}
  if unknown := [name for name in lora.names if name not in known]:
    raise ValueError(
      f'targets={lora.targets!r}: {", ".join(unknown)} is no part of a layer; known: {", ".join(sorted(known))}'
    )
  chosen = {path: leaf for path, leaf in every.items() if _target_names(path) & set(lora.names)}
  adapters: dict[str, Any] = {}
  for path, part in zip(chosen, jax.random.split(key, len(chosen)), strict=True):
    stack, inputs, outputs = chosen[path].shape
    place = adapters
    for name in path:
      place = place.setdefault(name, {})
    place['lora_a'] = _init_a(part, (stack, inputs, lora.rank))
    place['lora_b'] = jax.numpy.zeros((stack, lora.rank, outputs))
  return adapters


def attach(base: Params, adapters: Params, lora: LoRA) -> Params:
  """The parameters of the adapted model: those of the base, with adapted kernels in their places."""

  def replace(kernel: Any, factors: Mapping[str, Array]) -> Adapted:
    return Adapted(kernel, factors['lora_a'], factors['lora_b'], scale=lora.scale)

  return _at_kernels(base, adapters, replace)


def merge(base: Params, adapters: Params, lora: LoRA) -> Params:
  """An ordinary model that computes what the adapted one does: W + alpha / r A B, all kernels plain arrays."""
  return jax.tree.map(_merged, attach(base, adapters, lora), is_leaf=_is_kernel)


def bind(model: base_lib.LanguageModel, base: Params, lora: LoRA) -> base_lib.LanguageModel:
  """The adapted model, with adapters for its parameters: gradients go to them alone.

  Args:
    model: the base, as functions.
    base: its parameters, its kernels quantised or not.
    lora: as for `init`.
  """

  def attached(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda adapters, *args: function(attach(base, adapters, lora), *args)

  def merged(function: Callable[..., Any]) -> Callable[..., Any]:
    # Sampling takes weights of its own from `prefill`, in its own dtype, so it may as well have plain ones.
    return lambda adapters, *args, **options: function(merge(base, adapters, lora), *args, **options)

  return base_lib.LanguageModel(
    config=model.config,
    init=lambda key: init(key, base, lora),
    hidden=attached(model.hidden),
    head=attached(model.head),
    prefill=merged(model.prefill),
    decode=merged(model.decode),
  )


def _target_names(path: tuple[str, ...]) -> set[str]:
  """What a target may call the projection at `path`: 'attention', 'query' or 'attention/query'."""
  return {*path[1:], '/'.join(path[1:])}


def _at_kernels(base: Params, adapters: Params, replace: Callable[[Any, Mapping[str, Array]], Any]) -> Params:
  """`base` with the kernels replaced that `adapters` holds factors for."""
  if FACTORS[0] in adapters:
    return {**base, 'kernel': replace(base['kernel'], adapters)}
  return {**base, **{name: _at_kernels(base[name], inner, replace) for name, inner in adapters.items()}}


def _is_kernel(leaf: Any) -> bool:
  return isinstance(leaf, Adapted | quantization.Quantized)


def _merged(leaf: Any) -> Array:
  return leaf.merged() if isinstance(leaf, Adapted) else quantization.dense(leaf)
