"""The type of activations that suits a machine: bfloat16 on accelerators, the faster of two on a CPU."""

from collections.abc import Callable
import importlib.metadata
import importlib.util
import os
import pathlib
import time

import jax
import jax.numpy as jnp

from alignjax.training import processes

AUTO = 'auto'
DTYPES = ('float32', 'bfloat16')
CHOICES = (AUTO, *DTYPES)

# Rounds to bfloat16 at every cast. Otherwise each compiled function skips different roundings, and the loss of a policy
# that equals its reference is not exactly log 2. The experimental oneDNN flags of XLA are not set: jaxlib 0.12.0.1
# computes w + c * (a @ b) wrongly with them.
FLAG = '--xla_allow_excess_precision=false'
_INSTRUCTIONS = {'avx512_bf16', 'amx_bf16'}  # products of bfloat16; without them, every product is emulated
_SHAPE = (512, 1024, 1024)  # of the product that is timed: rows, inputs, outputs
_ROUNDS = 5
_WORTH = 1.2  # bfloat16 must be this many times as fast as float32, because it rounds


def prepare() -> None:
  """Sets the XLA flag that bfloat16 needs on a CPU. Call it before anything uses a device.

  With an accelerator, nothing changes: there, casts that are skipped save time, and nothing else depends on them.
  """
  if not _has_accelerator() and FLAG not in os.environ.get('XLA_FLAGS', '').split():
    os.environ['XLA_FLAGS'] = ' '.join([*os.environ.get('XLA_FLAGS', '').split(), FLAG])


def _has_accelerator() -> bool:
  """Whether JAX may find a device other than a CPU: it has a plugin for one, and is not told to leave it alone."""
  if os.environ.get('JAX_PLATFORMS') == 'cpu':
    return False
  plugins = importlib.metadata.entry_points(group='jax_plugins')
  return bool(plugins) or any(importlib.util.find_spec(name) for name in ('libtpu', 'jax_plugins'))


def resolve(wanted: str) -> str:
  """The type of activations that a setting means on this machine; on all processes, that of process 0.

  Args:
    wanted: 'float32', 'bfloat16', or 'auto' for the faster one.
  """
  return processes.from_first(lambda alive: faster()) if wanted == AUTO else wanted


def faster() -> str:
  """'bfloat16' on accelerators, and on CPUs that multiply it faster, which takes 0.1 s to measure; else 'float32'."""
  if jax.default_backend() != 'cpu':
    return 'bfloat16'
  if not _INSTRUCTIONS & cpu_features():
    return 'float32'
  calls = {dtype: _product(dtype) for dtype in DTYPES}
  # The shortest of several times, taken in turn, is the one that other programs have disturbed least.
  times = [{dtype: _seconds(call) for dtype, call in calls.items()} for _ in range(_ROUNDS)]
  exact, rounded = (min(each[dtype] for each in times) for dtype in DTYPES)
  return 'bfloat16' if exact > _WORTH * rounded else 'float32'


def _product(dtype: str) -> Callable[[], jax.Array]:
  rows, inputs, outputs = _SHAPE
  x, kernel = jnp.ones((rows, inputs), dtype), jnp.ones((inputs, outputs), dtype)
  multiply = jax.jit(jnp.matmul)
  multiply(x, kernel).block_until_ready()
  return lambda: multiply(x, kernel).block_until_ready()


def _seconds(call: Callable[[], jax.Array]) -> float:
  start = time.perf_counter()
  call()
  return time.perf_counter() - start


def cpu_features(cpuinfo: pathlib.Path = pathlib.Path('/proc/cpuinfo')) -> set[str]:
  """The features that every core reports; empty if the system does not list them."""
  if not cpuinfo.exists():
    return set()
  lines = cpuinfo.read_text(encoding='utf-8', errors='replace').splitlines()
  return next((set(line.partition(':')[2].split()) for line in lines if line.startswith('flags')), set())
