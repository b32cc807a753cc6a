"""Low-rank adapters: a small, separate tree of parameters on top of a frozen base model.

  x (W + alpha / r A B) = x W + alpha / r (x A) B,   A [in, r], B [r, out]

A is initialised randomly and B to 0, so the adapted model initially equals its base exactly. The base therefore serves
as the reference of the same run without a second copy. Adapters have the paths of the kernels that they adapt, stacked
by layer:

  layers/attention/query/{lora_a [L, D, r], lora_b [L, r, heads * H]}

The score head of a reward model is trained as a whole, beside the adapters, as score/kernel [D, 1].

`attach` replaces each kernel by an adapted kernel, and `layers.Linear` multiplies by it as if it were an array.

References:
  Hu et al., LoRA, https://arxiv.org/abs/2106.09685, section 4.1.
  Dettmers et al., QLoRA, https://arxiv.org/abs/2305.14314, section 3 (quantised base).
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

import jax

from alignjax.models import base, layers, quantization, unrolled
from alignjax.types import Array, Params

FACTORS = ('lora_a', 'lora_b')
SCORE = 'score'  # the head of a reward model
# Uniform in +-1 / sqrt(in), as in PEFT.
_init_a = jax.nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform', batch_axis=0)


@dataclasses.dataclass(frozen=True)
class LoRA:
  """Which kernels are adapted, and how.

  Args:
    rank: r, the number of columns of A and rows of B.
    alpha: the product A B is scaled by alpha / rank.
    targets: the parts of a layer to adapt, joined by `+`: modules ('attention+mlp') or projections ('query+value',
      'attention/output').

  Raises:
    ValueError: the rank or alpha is not positive, or there are no targets; the message names the argument.
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
    """The targets as a tuple."""
    return tuple(name.strip() for name in self.targets.split('+'))

  @property
  def scale(self) -> float:
    """alpha / rank."""
    return self.alpha / self.rank


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
  """A kernel with its adapter: x @ adapted = x @ kernel + scale (x @ lora_a) @ lora_b."""

  kernel: Any  # an array, or a kernel of `quantization`
  lora_a: Array  # [..., in, r]
  lora_b: Array  # [..., r, out]
  scale: float = dataclasses.field(metadata={'static': True})

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of the kernel."""
    return self.kernel.shape

  def astype(self, dtype: Any) -> 'Adapted':
    """Casts the kernel and both factors to the compute dtype."""
    factors = (self.kernel, self.lora_a, self.lora_b)
    return Adapted(*(factor.astype(dtype) for factor in factors), scale=self.scale)

  def __rmatmul__(self, x: Array) -> Array:
    return x @ self.kernel + self.scale * ((x @ self.lora_a) @ self.lora_b)

  def merged(self) -> Array:
    """kernel + scale lora_a @ lora_b, as one array."""
    return quantization.dense(self.kernel) + self.scale * (self.lora_a @ self.lora_b)


def kernels(base_params: Params) -> dict[tuple[str, ...], Any]:
  """The kernels that can be adapted, [L, in, out], by the path of their projection."""
  paths, _ = jax.tree_util.tree_flatten_with_path(base_params, is_leaf=is_kernel)
  named = {tuple(key.key for key in path): leaf for path, leaf in paths}
  return {path[:-1]: leaf for path, leaf in named.items() if path[-1] == 'kernel' and path[0] == 'layers'}


def init(key: Array, base_params: Params, lora: LoRA) -> Params:
  """Draws A and sets B to 0, in float32. Only one factor is 0, so the model is unchanged but gradients are not 0.

  Args:
    key: a typed PRNG key.
    base_params: the parameters of the model to adapt, or their shapes.
    lora: which kernels are adapted, and how.

  Raises:
    ValueError: a target does not name a projection of the model; the message lists the known names.
  """
  every = kernels(base_params)
  known = {name for path in every for name in _target_names(path)}
  if unknown := [name for name in lora.names if name not in known]:
    raise ValueError(
      f'targets={lora.targets!r}: {", ".join(unknown)} is not a part of a layer; known: {", ".join(sorted(known))}'
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
  if SCORE in base_params:
    width = base_params[SCORE]['kernel'].shape[0]
    adapters[SCORE] = {'kernel': layers.score_kernel(jax.random.fold_in(key, 1), width)}
  return adapters


def attach(base_params: Params, adapters: Params, lora: LoRA) -> Params:
  """The parameters of the adapted model: the base parameters with adapted kernels in place of the originals."""

  def replace(kernel: Any, factors: Mapping[str, Array]) -> Adapted:
    return Adapted(kernel, factors['lora_a'], factors['lora_b'], scale=lora.scale)

  factors = {name: inner for name, inner in adapters.items() if name != SCORE}
  own = {SCORE: adapters[SCORE]} if SCORE in adapters else {}
  return {**_at_kernels(base_params, factors, replace), **own}


def merge(base_params: Params, adapters: Params, lora: LoRA) -> Params:
  """Merges adapters into the base: the kernels become plain arrays, W + alpha / r A B."""
  return jax.tree.map(dense, attach(base_params, adapters, lora), is_leaf=is_kernel)


def bind(model: base.LanguageModel, base_params: Params, lora: LoRA) -> base.LanguageModel:
  """The adapted model as a function of its adapters, so that only they receive gradients.

  Args:
    model: the base model.
    base_params: the parameters of the base model, with quantised or plain kernels.
    lora: which kernels are adapted, and how.
  """

  def attached(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda adapters, *args: function(attach(base_params, adapters, lora), *args)

  def lay_out(adapters: Params) -> Params:
    """Decoding reads copies of the weights anyway, so it uses merged kernels."""
    return adapters if unrolled.is_laid_out(adapters) else model.lay_out(merge(base_params, adapters, lora))

  return base.LanguageModel(
    config=model.config,
    init=lambda key: init(key, base_params, lora),
    hidden=attached(model.hidden),
    packed=model.packed and attached(model.packed),
    head=attached(model.head),
    lay_out=lay_out,
    prefill=lambda params, *args, **options: model.prefill(lay_out(params), *args, **options),
    decode=lambda params, *args: model.decode(lay_out(params), *args),
  )


def _target_names(path: tuple[str, ...]) -> set[str]:
  """The target names that select the projection at `path`: 'attention', 'query' and 'attention/query'."""
  return {*path[1:], '/'.join(path[1:])}


def _at_kernels(params: Params, adapters: Params, replace: Callable[[Any, Mapping[str, Array]], Any]) -> Params:
  """Applies `replace` to the kernels of `params` that `adapters` holds factors for."""
  if FACTORS[0] in adapters:
    return {**params, 'kernel': replace(params['kernel'], adapters)}
  return {**params, **{name: _at_kernels(params[name], inner, replace) for name, inner in adapters.items()}}


def dense(leaf: Any) -> Array:
  """A plain, adapted or quantised kernel as a plain array."""
  return leaf.merged() if isinstance(leaf, Adapted) else quantization.dense(leaf)


def is_kernel(leaf: Any) -> bool:
  """Whether a node of a tree of parameters is an adapted or a quantised kernel."""
  return isinstance(leaf, Adapted | quantization.Quantized)


def merged_part(leaf: Any, place: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
  """One part of a stacked leaf, such as a layer, as part of a plain array, and its place there.

  A plain leaf is returned whole. An adapted or quantised kernel is merged in this layer alone.
  """
  if not is_kernel(leaf) or not place:
    return leaf, place
  return dense(_at_layer(leaf, place[0])), (0,)


@jax.jit
def _at_layer(leaf: Any, layer: Array) -> Any:
  return jax.tree.map(lambda part: jax.lax.dynamic_slice_in_dim(part, layer, 1), leaf)
