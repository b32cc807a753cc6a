"""Products with kernels of which each device of an fsdp axis holds a part.

  SplitKernel  A kernel of a layer, split by inputs or outputs. Each device gathers it for the product with its rows.
               The gradient goes the opposite way: each device sums over its rows, and a reduce-scatter gives it the
               sum over devices of its part.
  SplitHead    The head, split by vocabulary. Each device gathers the rows of all devices, and computes their logits for
               its part of the vocabulary. The gradient in the rows is summed over devices by a reduce-scatter.

Sums over devices are in float32. Left alone, the compiler sums whole gradients on every device, some of them in the
compute dtype, and throws most of each sum away.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from alignjax.types import Array


class Parts(NamedTuple):
  """The devices that share out an array."""

  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh  # the mesh, with one axis for each of `axes` instead of fsdp
  axes: tuple[str, ...]
  replicas: int  # rows of an array are those of so many replicas

  @classmethod
  def of(cls, mesh: jax.sharding.Mesh, replicas: int | None = None) -> 'Parts':
    """The fsdp axis of a mesh, by the dimensions of a TPU's torus.

    TPUs have no reduce-scatter over several dimensions of the torus: the compiler makes it an all-reduce of the whole.
    An abstract mesh has no torus, and its fsdp axis stays one.
    """
    data, fsdp, tensor = mesh.axis_sizes
    abstract = isinstance(mesh, jax.sharding.AbstractMesh)
    sizes = [fsdp] if abstract else _torus(mesh.devices[0, :, 0])
    axes = tuple(f'fsdp{i}' for i in range(len(sizes)))
    shape, names = (data, *sizes, tensor), ('data', *axes, 'tensor')
    types = (jax.sharding.AxisType.Auto,) * len(names)
    if abstract:
      split = jax.sharding.AbstractMesh(shape, names, axis_types=types)
    else:
      split = jax.sharding.Mesh(mesh.devices.reshape(shape), names, axis_types=types)
    return cls(split, axes, data if replicas is None else replicas)

  @property
  def size(self) -> int:
    """The number of parts."""
    return int(np.prod([self.mesh.shape[axis] for axis in self.axes]))

  def gathered(self, x: Array, axis: int) -> Array:
    """The whole array, from the part of a device."""
    return jax.lax.all_gather(x, self.axes, axis=axis, tiled=True)

  def summed(self, x: Array, axis: int) -> Array:
    """The part of a device of the sum over devices."""
    for name in self.axes:
      x = jax.lax.psum_scatter(x, name, scatter_dimension=axis, tiled=True)
    return x

  def run(
    self, function: Any, inputs: tuple[PartitionSpec, ...], outputs: Any, *, compiler: frozenset[str] = frozenset()
  ) -> Any:
    """Runs a function on the parts of each device; the compiler shards the axes in `compiler`."""
    return jax.shard_map(
      function,
      mesh=self.mesh,
      in_specs=inputs,
      out_specs=outputs,
      axis_names=set(self.mesh.axis_names) - compiler,
      check_vma=False,  # the products below have gradients of their own
    )


def total(x: Array, mesh: jax.sharding.Mesh | None) -> Array:
  """The sum over devices of a term of each batch shard, [shards, ...]; each device of an fsdp axis receives a part."""
  if mesh is None or x.ndim < 3 or x.shape[1] % mesh.shape['fsdp']:
    return jnp.sum(x, axis=0)
  parts = Parts.of(mesh)
  columns = 'tensor' if x.shape[2] % mesh.shape['tensor'] == 0 else None

  def own(term: Array) -> Array:
    return jax.lax.psum(parts.summed(term[0], 0), 'data')

  return parts.run(own, (PartitionSpec(('data', *parts.axes), None, columns),), PartitionSpec(parts.axes, columns))(x)


def _torus(devices: np.ndarray) -> list[int]:
  """The sizes of the dimensions of a torus that a row of devices runs through, in order; one size if it is no torus."""
  whole = [len(devices)]
  if not all(hasattr(device, 'coords') for device in devices):
    return whole
  places = np.asarray([device.coords for device in devices])
  sizes = [len(set(column)) for column in places.T]
  order = np.lexsort(places.T[::-1])
  if np.prod(sizes) != len(devices) or not np.array_equal(order, np.arange(len(devices))):
    return whole
  return [size for size in sizes if size > 1] or whole


class Split(NamedTuple):
  """How a kernel [D, F] and the rows that it multiplies are split."""

  parts: Parts
  axes: tuple[str | None, str | None]  # of the kernel: 'fsdp', 'tensor' or None

  @property
  def axis(self) -> int:
    """The axis of the kernel that is split over the fsdp axis."""
    return self.axes.index('fsdp')

  @property
  def kernel(self) -> PartitionSpec:
    """The kernel, [D, F]."""
    return PartitionSpec(*(self.parts.axes if axis == 'fsdp' else axis for axis in self.axes))

  def rows(self, ndim: int, axis: int) -> PartitionSpec:
    """Rows [replicas, rows, ..., D], with 0 for `axis`, or [replicas, rows, ..., F], with 1."""
    last = 'tensor' if self.axes[axis] == 'tensor' else None
    return PartitionSpec(None if self.compiler else 'data', self.parts.axes, *(None,) * (ndim - 3), last)

  @property
  def compiler(self) -> frozenset[str]:
    """The axes that the compiler shards: 'data', because it can move the sum over replicas out of a loop over layers.

    With a tensor axis, none: XLA's partitioner has computed wrong gradients where it had both axes left.
    """
    return frozenset({'data'} if self.parts.mesh.shape['tensor'] == 1 else ())

  def reduced(self, x: Array, axis: int) -> Array:
    """The sum of the terms of a product over `axis` of the kernel, which the tensor axis may have split."""
    split = self.axes[axis] == 'tensor' and self.parts.mesh.shape['tensor'] > 1
    return jax.lax.psum(x, 'tensor') if split else x


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SplitKernel:
  """A kernel [D, F] of a layer. `models.layers.Linear` multiplies by it as if it were an array."""

  array: Array
  split: Split = dataclasses.field(metadata={'static': True})

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of the kernel."""
    return self.array.shape

  def astype(self, dtype: Any) -> 'SplitKernel':
    """Returns the kernel unchanged, because products compute in the dtype of the other operand."""
    del dtype
    return self

  def __rmatmul__(self, x: Array) -> Array:
    parts = self.split.parts
    if x.shape[0] % (parts.replicas * parts.size):
      return x @ self.array.astype(x.dtype)
    y = _multiply(x.reshape(parts.replicas, -1, *x.shape[1:]), self.array, self.split)
    return y.reshape(*x.shape[:-1], -1)


def _product(x: Array, kernel: Array, split: Split) -> Array:
  """[replicas, rows, ..., D] @ [D, F], with rows and kernel split."""

  def own(x: Array, kernel: Array) -> Array:
    return split.reduced(x @ split.parts.gathered(kernel.astype(x.dtype), split.axis), 0)

  inputs, outputs = (split.rows(x.ndim, axis) for axis in (0, 1))
  return split.parts.run(own, (inputs, split.kernel), outputs, compiler=split.compiler)(x, kernel)


_multiply = jax.custom_vjp(_product, nondiff_argnums=(2,))


def _multiply_forward(x: Array, kernel: Array, split: Split) -> tuple[Array, tuple[Array, Array]]:
  # Not `_multiply`: rematerialisation that keeps products (remat='dots') does not look into custom derivatives.
  return _product(x, kernel, split), (x, kernel)


def _multiply_backward(split: Split, residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
  x, kernel = residuals

  def own(x: Array, kernel: Array, cotangent: Array) -> tuple[Array, Array]:
    d_x = jnp.einsum('...f,df->...d', cotangent, split.parts.gathered(kernel.astype(x.dtype), split.axis))
    d_kernel = jnp.einsum('...d,...f->df', x, cotangent, preferred_element_type=jnp.float32)
    d_kernel = split.parts.summed(d_kernel, split.axis)
    return split.reduced(d_x, 1), d_kernel if split.compiler else jax.lax.psum(d_kernel, 'data')

  inputs, outputs = (split.rows(x.ndim, axis) for axis in (0, 1))
  run = split.parts.run(own, (inputs, split.kernel, outputs), (inputs, split.kernel), compiler=split.compiler)
  d_x, d_kernel = run(x, kernel, cotangent)
  return d_x, d_kernel.astype(kernel.dtype)


_multiply.defvjp(_multiply_forward, _multiply_backward)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SplitHead:
  """The kernel of a head [D, V]. `stats.logits` multiplies by it as if it were an array.

  With `parts.replicas` 1, the rows are those of one replica, under a `vmap` over replicas with the name 'data'.
  """

  array: Array
  parts: Parts = dataclasses.field(metadata={'static': True})

  def __rmatmul__(self, states: Array) -> Array:
    """[B, ..., D] with rows split over devices -> [B, ..., V] float32, with the vocabulary split over devices."""
    rows = states.reshape(self.parts.replicas, -1, *states.shape[1:])
    return _project(rows, self.array, self.parts).reshape(*states.shape[:-1], -1)


class _Places(NamedTuple):
  """Where the arrays of a head are."""

  rows: PartitionSpec  # [replicas, rows, ..., D]
  kernel: PartitionSpec  # [D, V]
  logits: PartitionSpec  # [replicas, rows, ..., V]

  @classmethod
  def of(cls, parts: Parts, ndim: int) -> '_Places':
    replicas = 'data' if parts.replicas > 1 else None
    vocabulary = ('tensor', *parts.axes)  # parts of those that the tensor axis makes
    logits = PartitionSpec(replicas, *(None,) * (ndim - 2), vocabulary)
    return cls(PartitionSpec(replicas, parts.axes), PartitionSpec(None, vocabulary), logits)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _project(states: Array, kernel: Array, parts: Parts) -> Array:
  """[replicas, rows, ..., D] @ [D, V] in the dtype of the states, accumulated and returned in float32."""

  def own(states: Array, kernel: Array) -> Array:
    whole = parts.gathered(states, 1)
    return jnp.einsum('...d,dv->...v', whole, kernel.astype(states.dtype), preferred_element_type=jnp.float32)

  places = _Places.of(parts, states.ndim)
  return parts.run(own, (places.rows, places.kernel), places.logits)(states, kernel)


def _project_forward(states: Array, kernel: Array, parts: Parts) -> tuple[Array, tuple[Array, Array]]:
  return _project(states, kernel, parts), (states, kernel)


def _project_backward(parts: Parts, residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
  states, kernel = residuals

  def own(states: Array, kernel: Array, cotangent: Array) -> tuple[Array, Array]:
    cotangent = cotangent.astype(states.dtype)
    columns = kernel.astype(states.dtype).reshape(*_blocks(kernel.shape[0]), -1)

    def block(kernel: Array) -> Array:
      terms = jnp.einsum('...v,dv->...d', cotangent, kernel, preferred_element_type=jnp.float32)
      return jax.lax.psum(parts.summed(terms, 1), 'tensor')

    # One block after the other, because each is the float32 gradient of the rows of all devices.
    d_states = jnp.moveaxis(jax.lax.map(block, columns), 0, -2).reshape(states.shape)
    d_kernel = jnp.einsum('...d,...v->dv', parts.gathered(states, 1), cotangent, preferred_element_type=jnp.float32)
    return d_states, jax.lax.psum(d_kernel, 'data') if parts.replicas > 1 else d_kernel

  places = _Places.of(parts, states.ndim)
  run = parts.run(own, (places.rows, places.kernel, places.logits), (places.rows, places.kernel))
  d_states, d_kernel = run(states, kernel, cotangent)
  return d_states.astype(states.dtype), d_kernel.astype(kernel.dtype)


def _blocks(width: int) -> tuple[int, int]:
  """How many blocks of columns of how many columns."""
  size = next((size for size in (512, 1024) if width % size == 0), width)
  return width // size, size


_project.defvjp(_project_forward, _project_backward)
