"""The rate of matrix products in JAX on this machine, as JSON: GFLOP/s by dtype.

  python -m bench.peers.products

It is that of the fastest of a few shapes: a square one, and those of a feed-forward layer and of an output head.
"""

import json
import statistics
import time

import jax
import jax.numpy as jnp

from alignjax.run import arithmetic

SHAPES = ((2048, 2048, 2048), (1792, 384, 1024), (1536, 384, 32_000))  # rows, inputs, outputs
SECONDS = 1.0  # of each shape


def rate(shape: tuple[int, int, int], dtype: str) -> float:
  """GFLOP/s: 2 m k n over the median time."""
  rows, inputs, outputs = shape
  x, kernel = jnp.ones((rows, inputs), dtype), jnp.ones((inputs, outputs), dtype)
  multiply = jax.jit(jnp.matmul).lower(x, kernel).compile()
  multiply(x, kernel).block_until_ready()
  times = []
  while sum(times) < SECONDS or len(times) < 5:
    start = time.perf_counter()
    multiply(x, kernel).block_until_ready()
    times.append(time.perf_counter() - start)
  return 2e-9 * rows * inputs * outputs / statistics.median(times)


if __name__ == '__main__':
  arithmetic.prepare()
  print(json.dumps({dtype: max(rate(shape, dtype) for shape in SHAPES) for dtype in arithmetic.DTYPES}))
