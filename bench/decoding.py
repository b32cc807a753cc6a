"""Times the products of a decoding step for kernels stored by inputs, [D, F], and by outputs, [F, D].

  python -m bench.decoding --rows=1,8,64

A step multiplies a row for each response by all kernels of the layers of SmolLM2-135M, which are random here. Both
layouts run in alternation; a ratio is taken within a round, and reported as the median over rounds with its range.
"""

from collections.abc import Callable
import statistics
import time

from absl import app, flags
import jax
import jax.numpy as jnp

from alignjax.models import transposed
from alignjax.run import arithmetic
from alignjax.types import Array
from bench import shapes

_ROWS = flags.DEFINE_list('rows', ['1', '8', '64'], 'Numbers of rows.')
_STEPS = flags.DEFINE_integer('steps', 8, 'Steps of a program.', lower_bound=1)
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Rounds.', lower_bound=1)

Layer = dict[str, Array | transposed.Transposed]


def layers(dtype: str) -> list[Layer]:
  """The kernels of all layers, stored by inputs."""
  config = shapes.SMOLLM2_135M
  wide, narrow = config.heads * config.head_width, config.kv_heads * config.head_width
  sizes = {
    'query': (config.width, wide),
    'key': (config.width, narrow),
    'value': (config.width, narrow),
    'output': (wide, config.width),
    'gate': (config.width, config.mlp_width),
    'up': (config.width, config.mlp_width),
    'down': (config.mlp_width, config.width),
  }
  keys = jax.random.split(jax.random.key(0), (config.layers, len(sizes)))
  draw = jax.jit(lambda key, size: (0.02 * jax.random.normal(key, size)).astype(dtype), static_argnums=1)
  return [{name: draw(key, size) for key, (name, size) in zip(row, sizes.items(), strict=True)} for row in keys]


def steps(kernels: list[Layer], x: Array) -> Array:
  """The products of some decoding steps, one after another."""

  def step(_: int, x: Array) -> Array:
    for layer in kernels:
      both = x @ layer['query'], x @ layer['key'] + x @ layer['value']
      x = x + both[0] @ layer['output'] + jnp.tanh(both[1][:, :1])
      x = jnp.tanh(x + (jax.nn.silu(x @ layer['gate']) * (x @ layer['up'])) @ layer['down'])
    return x

  return jax.lax.fori_loop(0, _STEPS.value, step, x)


def seconds(call: Callable[[], Array]) -> float:
  """Seconds of one step."""
  start = time.perf_counter()
  call().block_until_ready()
  return (time.perf_counter() - start) / _STEPS.value


def main(_):
  run = jax.jit(steps)
  print('| dtype | rows | by inputs, ms | by outputs, ms | by inputs / by outputs | range |\n|---|---|---|---|---|---|')
  for dtype in ('float32', 'bfloat16'):
    by_inputs = layers(dtype)
    by_outputs = jax.jit(lambda kernels: jax.tree.map(transposed.Transposed.of, kernels))(by_inputs)
    for rows in map(int, _ROWS.value):
      x = jnp.full((rows, shapes.SMOLLM2_135M.width), 0.1, dtype)
      calls = [lambda kernels=kernels, x=x: run(kernels, x) for kernels in (by_inputs, by_outputs)]
      for call in calls:
        call().block_until_ready()  # compiles
      times = [[seconds(call) for call in calls] for _ in range(_ROUNDS.value)]
      ratios = sorted(inputs / outputs for inputs, outputs in times)
      middle = [1e3 * statistics.median(column) for column in zip(*times, strict=True)]
      print(
        f'| {dtype} | {rows} | {middle[0]:.1f} | {middle[1]:.1f} | {statistics.median(ratios):.2f} | '
        f'{ratios[0]:.2f} to {ratios[-1]:.2f} |',
        flush=True,
      )


if __name__ == '__main__':
  arithmetic.prepare()
  app.run(main)
