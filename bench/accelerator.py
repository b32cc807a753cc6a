"""Measures one accelerator: the training step and sampling of a 1B model in bfloat16. bench/gpu.sh runs everything.

  python -m bench.accelerator                      the step, as one row of a table
  python -m bench.accelerator --attention=cudnn --remat=full
  python -m bench.accelerator --what=products      matrix products, in TFLOP/s
  python -m bench.accelerator --what=sampling      tokens per second
  python -m bench.accelerator --tiny               a tiny model, to see on any machine whether the program works

The model has the shape of Llama 3.2 1B and random weights, the batch random tokens of full length. The step is that of
`alignjax train`, compiled from the same settings. `of products` is the share of the rate of a large matrix product on
this device that the useful FLOPs of the step reach; recomputation is left out. Memory in GiB: as the planner expects
it, as the compiler states it, and the most that the device has had in use.
"""

import dataclasses
import pathlib
import statistics
import tempfile
import time
from typing import Any

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np

from alignjax.parallel import mesh as parallel_mesh
from alignjax.planning import compute, memory, program, report
from alignjax.run import arithmetic, settings
from alignjax.sampling import sampler, sharded
from tests.planning import folders

LLAMA_1B = {
  'vocab_size': 128_256,
  'hidden_size': 2048,
  'num_hidden_layers': 16,
  'num_attention_heads': 32,
  'num_key_value_heads': 8,
  'head_dim': 64,
  'intermediate_size': 8192,
  'tie_word_embeddings': True,
}
HEADS = (
  'step',
  'seconds',
  'range',
  'tokens/s',
  'TFLOP/s',
  'of products',
  'planned',
  'compiler',
  'in use',
  'compiling, s',
)

_WHAT = flags.DEFINE_enum('what', 'step', ['products', 'step', 'sampling'], 'What to measure.')
_OBJECTIVE = flags.DEFINE_string('objective', 'dpo(beta=0.1)', 'Expression of objectives.')
_ATTENTION = flags.DEFINE_enum('attention', 'xla', ['xla', 'cudnn'], 'Implementation of attention.')
_REMAT = flags.DEFINE_enum('remat', 'dots', ['none', 'dots', 'full'], 'What the backward pass computes again.')
_BATCH = flags.DEFINE_integer('batch', 8, 'Prompts, with two responses each in a step and four when sampling.')
_PROMPT = flags.DEFINE_integer('prompt', 512, 'Tokens per prompt.')
_RESPONSE = flags.DEFINE_integer('response', 512, 'Tokens per response.')
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Measured repetitions.', lower_bound=1)
_RATE = flags.DEFINE_float('rate', 0.0, 'TFLOP/s of matrix products; 0: measured first.')
_LABEL = flags.DEFINE_string('label', '', 'Name of the row; empty: its settings.')
_TINY = flags.DEFINE_bool('tiny', False, 'A tiny model.')


def seconds(call: Any) -> list[float]:
  """The times of repetitions, after two that are not measured."""
  times = []
  for _ in range(_ROUNDS.value + 2):
    start = time.perf_counter()
    jax.block_until_ready(call())
    times.append(time.perf_counter() - start)
  return times[2:]


def products() -> float:
  """TFLOP/s of the fastest of a few large matrix products in bfloat16."""
  multiply, rates = jax.jit(jnp.matmul), []
  for size in (256,) if _TINY.value else (4096, 8192):
    x = jnp.ones((size, size), jnp.bfloat16)
    rates.append(2e-12 * size**3 / statistics.median(seconds(lambda x=x: multiply(x, x))))
  return max(rates)


def configure(folder: pathlib.Path) -> settings.Config:
  """The settings of the run."""
  entries = folders.TINY if _TINY.value else LLAMA_1B
  scale = 16 if _TINY.value else 1
  return settings.Config(
    model=folders.write(folder, **entries),
    objective=_OBJECTIVE.value,
    batch_size=_BATCH.value,
    max_prompt=_PROMPT.value // scale,
    max_response=_RESPONSE.value // scale,
    attention=_ATTENTION.value,
    remat=_REMAT.value,
    compute_dtype='bfloat16',
  )


def filled(shapes: Any, vocabulary: int) -> Any:
  """Arrays of these shapes: random weights and tokens; everything of the optimizer is zero."""

  def fill(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jax.random.key(0)
    if jnp.issubdtype(leaf.dtype, jnp.floating) and 'opt_state' not in name:
      draw = jax.jit(lambda key: 0.02 * jax.random.normal(key, leaf.shape, leaf.dtype), out_shardings=leaf.sharding)
      return draw(jax.random.key(len(name)))
    whole = jnp.issubdtype(leaf.dtype, jnp.integer) and leaf.ndim > 1
    values = np.random.default_rng(len(name)).integers(vocabulary, size=leaf.shape) if whole else np.zeros(leaf.shape)
    return jax.device_put(values.astype(leaf.dtype), leaf.sharding)

  return jax.tree_util.tree_map_with_path(fill, shapes)


def step(config: settings.Config) -> str:
  """Measures the step and returns a row."""
  rate = _RATE.value or products()
  planned = program.build(config, parallel_mesh.make_mesh(devices=jax.devices()[:1]))
  start = time.perf_counter()
  compiled = planned.lower().compile()
  compiling = time.perf_counter() - start
  state, frozen, batch = filled(planned.arguments, planned.built.policy.model.config.vocab_size)
  sizes = {'prompt_length': batch.prompt.shape[1], 'response_length': batch.response.shape[2]}
  ones = {
    name: jnp.full_like(getattr(batch, name), value) for name, value in {**sizes, 'label': 1, 'weight': 1}.items()
  }
  batch, losses = dataclasses.replace(batch, **ones), []

  def update() -> Any:
    nonlocal state
    state, (metrics, _) = compiled(state, frozen, batch)
    losses.append(metrics['loss'])
    return state

  times = seconds(update)
  if not np.all(np.isfinite(np.asarray(losses))):
    raise SystemExit(f'the losses are not finite: {losses}')
  middle, useful = statistics.median(times), 1e-12 * compute.of_step(planned).useful
  used = (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use', float('nan'))
  gib = [each / 2**30 for each in (memory.estimate(planned, config).peak, report.compiled(compiled).peak, used)]
  tokens = batch.prompt.size + batch.response.size
  cells = [
    _LABEL.value or f'{config.objective}, {config.attention}, remat {config.remat}',
    f'{middle:.3f}',
    f'{min(times):.3f} to {max(times):.3f}',
    f'{tokens / middle:.0f}',
    f'{useful / middle:.1f}',
    f'{useful / middle / rate:.0%}',
    *(f'{each:.2f}' for each in gib),
    f'{compiling:.0f}',
  ]
  return f'| {" | ".join(cells)} |'


def sampling(config: settings.Config) -> str:
  """Measures sampling and returns a line."""
  planned = program.build(config, parallel_mesh.make_mesh(devices=jax.devices()[:1]))
  model, mesh = planned.built.policy.model, planned.built.mesh
  vocabulary, count = model.config.vocab_size, config.batch_size
  drawing = sampler.Decoding(samples=4, max_new_tokens=config.max_response // 4)
  draws = sharded.ShardedSampler(model, mesh, drawing)
  weights = draws.place(filled(planned.state.params, vocabulary))
  tokens = np.random.default_rng(0).integers(vocabulary, size=(count, config.max_prompt), dtype=np.int32)
  prompts = sampler.Prompts(tokens, np.full(count, config.max_prompt, np.int32), np.arange(count))
  middle = statistics.median(seconds(lambda: draws.draw(weights, jax.random.key(0), prompts)))
  read = draws.layout.bytes_on_device * drawing.max_new_tokens / middle
  drawn = count * drawing.samples * drawing.max_new_tokens
  return (
    f'sampling: {drawn / middle:.0f} tokens/s ({count} prompts x {drawing.samples} x {drawing.max_new_tokens} after '
    f'{config.max_prompt}); reads the weights at {read / 1e9:.0f} GB/s'
  )


def main(_):
  device = jax.devices()[0]
  if _WHAT.value == 'products':
    print(f'{device.device_kind}, jax {jax.__version__}: products in bfloat16 at {products():.1f} TFLOP/s')
    print(f'\n| {" | ".join(HEADS)} |\n|{"---|" * len(HEADS)}')
    return
  with tempfile.TemporaryDirectory() as folder:
    config = configure(pathlib.Path(folder))
    print(step(config) if _WHAT.value == 'step' else sampling(config), flush=True)


if __name__ == '__main__':
  arithmetic.prepare()
  app.run(main)
