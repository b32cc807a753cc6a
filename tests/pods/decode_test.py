"""Sampling from an 8B model on 8 chips of 16 GiB: no weight travels for a token, and all of it fits."""

import functools

import jax
import jax.numpy as jnp
import pytest

from alignjax.models import transformer
from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from alignjax.sampling import layouts, sampler
from tests.pods import topologies
from tests.pods.transfers import transfers

pytestmark = pytest.mark.slow

CONFIG = transformer.TransformerConfig(  # Llama 3 8B
  vocab_size=128256,
  width=4096,
  layers=32,
  heads=32,
  kv_heads=8,
  head_width=128,
  mlp_width=14336,
  norm_epsilon=1e-5,
  rope_theta=5e5,
  tied_embeddings=False,
  max_positions=8192,
  compute_dtype='bfloat16',
)
MEMORY = 16 * 2**30  # of a chip
PROMPTS, SAMPLES, PROMPT, RESPONSE = 16, 4, 512, 256
SMALLEST_KERNEL = CONFIG.width * CONFIG.kv_heads * CONFIG.head_width


@pytest.fixture(scope='module')
def mesh():
  return parallel_mesh.make_mesh(devices=topologies.devices('v5e:2x4'))


@pytest.fixture(scope='module')
def layout(mesh):
  return layouts.choose(transformer.build(CONFIG), mesh, MEMORY)


@pytest.fixture(scope='module')
def sampling(layout):
  """The compiled sampler."""
  constrain = rules.constraint(layout.mesh)
  rows = [
    jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rules.batch_sharding(layout.mesh))
    for shape in [(PROMPTS, PROMPT), (PROMPTS,), (PROMPTS,)]
  ]
  key = jax.eval_shape(lambda: jax.random.key(0))
  key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=rules.replicated(layout.mesh))
  decoding = sampler.Decoding(SAMPLES, RESPONSE, end_ids=(2,), constrain=constrain)
  program = functools.partial(sampler.sample, transformer.build(CONFIG, constrain), decoding=decoding)
  return jax.jit(program).lower(layout.weights, sampler.Prompts(*rows), key).compile()


def test_all_chips_share_the_weights(layout):
  assert layout.mesh.devices.shape == (1, 1, 8)


def test_resharding_sends_each_weight_once_and_fits(mesh, layout):
  shapes = jax.eval_shape(transformer.build(CONFIG).init, jax.random.key(0))
  trained = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    shapes,
    rules.param_shardings(mesh, shapes),
  )
  program = layout.program.lower(trained).compile()
  assert {transfer.kind for transfer in transfers(program.as_text())} == {'all-to-all'}
  assert program.memory_analysis().peak_memory_in_bytes <= 0.5 * MEMORY  # the float32 weights are a quarter


def test_no_weight_is_gathered(sampling):
  found = transfers(sampling.as_text())
  inside = [transfer for transfer in found if transfer.in_loop]
  assert 'all-reduce' in {transfer.kind for transfer in inside}
  assert max(transfer.entries for transfer in inside if transfer.kind == 'all-gather') <= PROMPTS * SAMPLES
  # What travels for a token are activations, and the logits, each once.
  assert max(transfer.entries for transfer in inside) == PROMPTS * SAMPLES * CONFIG.vocab_size // 8 < SMALLEST_KERNEL
  # Before the loop, only activations of all prompts are as large as a kernel.
  assert {transfer.kind for transfer in found if transfer.entries >= SMALLEST_KERNEL} == {'all-reduce'}
  assert max(transfer.entries for transfer in found) == PROMPTS * PROMPT * CONFIG.width


def test_sampling_fits(sampling):
  assert sampling.memory_analysis().peak_memory_in_bytes <= 0.9 * MEMORY
