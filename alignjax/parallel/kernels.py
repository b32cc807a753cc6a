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

  def run(self, function: Any, inputs: tuple[int, ...], outputs: Any) -> Any:
    """Runs a function on the parts of each device.

    Args:
      function: maps parts to parts.
      inputs: for each array, the axis that is split. The compiler shards the other axes.
      outputs: the same for the results.
    """

    def spec(axis: int) -> PartitionSpec:
      return PartitionSpec(*(None,) * axis, self.axes)

    return jax.shard_map(
      function,
      mesh=self.mesh,
      in_specs=jax.tree.map(spec, inputs),
      out_specs=jax.tree.map(spec, outputs),
      axis_names=set(self.axes),
      check_vma=False,  # the products below have gradients of their own
    )


def total(x: Array, mesh: jax.sharding.Mesh | None) -> Array:
  """The sum over devices of a term of each batch shard, [shards, ...]; each device of an fsdp axis receives a part."""
  if mesh is None or x.ndim < 3 or x.shape[1] % mesh.shape['fsdp']:
    return jnp.sum(x, axis=0)
  parts = Parts.of(mesh)

  def own(term: Array) -> Array:
    return jax.lax.psum(parts.summed(term[0], 0), 'data')

  return jax.shard_map(
    own,
    mesh=parts.mesh,
    in_specs=PartitionSpec(('data', *parts.axes)),
    out_specs=PartitionSpec(parts.axes),
    axis_names={'data', *parts.axes},
    check_vma=False,
  )(x)


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SplitKernel:
  """A kernel [D, F] of a layer. `models.layers.Linear` multiplies by it as if it were an array."""

  array: Array
  parts: Parts = dataclasses.field(metadata={'static': True})
  axis: int = dataclasses.field(metadata={'static': True})  # the axis that is split

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of the kernel."""
    return self.array.shape

  def astype(self, dtype: Any) -> 'SplitKernel':
    """Returns the kernel unchanged, because products compute in the dtype of the other operand."""
    del dtype
    return self

  def __rmatmul__(self, x: Array) -> Array:
    if x.shape[0] % (self.parts.replicas * self.parts.size):
      return x @ self.array.astype(x.dtype)
    y = _multiply(x.reshape(self.parts.replicas, -1, *x.shape[1:]), self.array, self.parts, self.axis)
    return y.reshape(*x.shape[:-1], -1)


def _product(x: Array, kernel: Array, parts: Parts, axis: int) -> Array:
  """[replicas, rows, ..., D] @ [D, F], with rows and kernel split."""

  def own(x: Array, kernel: Array) -> Array:
    return x @ parts.gathered(kernel.astype(x.dtype), axis)

  return parts.run(own, (1, axis), 1)(x, kernel)


_multiply = jax.custom_vjp(_product, nondiff_argnums=(2, 3))


def _multiply_forward(x: Array, kernel: Array, parts: Parts, axis: int) -> tuple[Array, tuple[Array, Array]]:
  # Not `_multiply`: rematerialisation that keeps products (remat='dots') does not look into custom derivatives.
  return _product(x, kernel, parts, axis), (x, kernel)


def _multiply_backward(
  parts: Parts, axis: int, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
  x, kernel = residuals

  def own(x: Array, kernel: Array, cotangent: Array) -> tuple[Array, Array]:
    d_x = jnp.einsum('...f,df->...d', cotangent, parts.gathered(kernel.astype(x.dtype), axis))
    d_kernel = jnp.einsum('...d,...f->df', x, cotangent, preferred_element_type=jnp.float32)
    return d_x, parts.summed(d_kernel, axis)

  d_x, d_kernel = parts.run(own, (1, axis, 1), (1, axis))(x, kernel, cotangent)
  return d_x, d_kernel.astype(kernel.dtype)


_multiply.defvjp(_multiply_forward, _multiply_backward)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SplitHead:
  """The kernel of a head [D, V]. `stats.logits` multiplies by it as if it were an array."""

  array: Array
  parts: Parts = dataclasses.field(metadata={'static': True})

  def __rmatmul__(self, states: Array) -> Array:
    """[B, ..., D] with rows split over devices -> [B, ..., V] float32, with the vocabulary split over devices."""
    rows = states.reshape(self.parts.replicas, -1, *states.shape[1:])
    return _project(rows, self.array, self.parts).reshape(*states.shape[:-1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _project(states: Array, kernel: Array, parts: Parts) -> Array:
  """[replicas, rows, ..., D] @ [D, V] in the dtype of the states, accumulated and returned in float32."""

  def own(states: Array, kernel: Array) -> Array:
    return jnp.einsum(
      '...d,dv->...v',
      parts.gathered(states, 1),
      kernel.astype(states.dtype),
      preferred_element_type=jnp.float32,
    )

  return parts.run(own, (1, 1), states.ndim - 1)(states, kernel)


def _project_forward(states: Array, kernel: Array, parts: Parts) -> tuple[Array, tuple[Array, Array]]:
  return _project(states, kernel, parts), (states, kernel)


def _project_backward(parts: Parts, residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
  states, kernel = residuals

  def own(states: Array, kernel: Array, cotangent: Array) -> tuple[Array, Array]:
    cotangent = cotangent.astype(states.dtype)
    columns = kernel.astype(states.dtype).reshape(*_blocks(kernel.shape[0]), -1)

    def block(kernel: Array) -> Array:
      return parts.summed(jnp.einsum('...v,dv->...d', cotangent, kernel, preferred_element_type=jnp.float32), 1)

    # One block after the other, because each is the float32 gradient of the rows of all devices.
    d_states = jnp.moveaxis(jax.lax.map(block, columns), 0, -2).reshape(states.shape)
    d_kernel = jnp.einsum('...d,...v->dv', parts.gathered(states, 1), cotangent, preferred_element_type=jnp.float32)
    return d_states, d_kernel

  vocabulary = states.ndim - 1
  d_states, d_kernel = parts.run(own, (1, 1, vocabulary), (1, 1))(states, kernel, cotangent)
  return d_states.astype(states.dtype), d_kernel.astype(kernel.dtype)


def _blocks(width: int) -> tuple[int, int]:
  """How many blocks of columns of how many columns."""
  size = next((size for size in (512, 1024) if width % size == 0), width)
  return width // size, size


_project.defvjp(_project_forward, _project_backward)
