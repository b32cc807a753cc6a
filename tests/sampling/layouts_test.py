"""Weights during decoding: how they are split, what travels for each token, and that the samples stay the same."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from alignjax.models import lora, quantization, transformer
from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from alignjax.sampling import layouts, sampler
from tests.models import token_batches
from tests.pods import transfers

# 8 divides all sizes, and each kernel has more entries than an activation of all prompts together.
CONFIG = dataclasses.replace(
  token_batches.CONFIG,
  vocab_size=64,
  width=64,
  layers=1,
  heads=8,
  kv_heads=8,
  head_width=8,
  mlp_width=128,
  tied_embeddings=False,
)
PROMPT = np.random.default_rng(0).integers(0, 64, (8, 2)).astype(np.int32)
KERNEL = 64 * 64
MODEL = transformer.build(CONFIG)


@functools.cache
def weights():
  return token_batches.params(MODEL)


def share(split):
  """A size of memory for which the weights fit when they are split by `split`, and not by less."""
  return int(1.1 * sum(leaf.nbytes for leaf in jax.tree.leaves(weights())) / split / layouts.SHARE)


def trained(mesh):
  return jax.device_put(weights(), rules.param_shardings(mesh, weights()))


def drawn(mesh, params):
  """The samples on a mesh, and the transfers for each token."""
  constrain = rules.constraint(mesh)
  decoding = sampler.Decoding(samples=2, max_new_tokens=4, end_ids=(2,), constrain=constrain)
  program = jax.jit(functools.partial(sampler.sample, MODEL.constrained(constrain), decoding=decoding))
  rows = (PROMPT, np.full(8, 2, np.int32), np.arange(8, dtype=np.int32))
  prompts = sampler.Prompts(*jax.device_put(rows, rules.batch_sharding(mesh)))
  compiled = program.lower(params, prompts, jax.random.key(3)).compile()
  found = [transfer for transfer in transfers.transfers(compiled.as_text()) if transfer.in_loop]
  return compiled(params, prompts, jax.random.key(3)), found


def largest(found, kind):
  return max((transfer.entries for transfer in found if transfer.kind == kind), default=0)


@functools.cache
def on_one_device():
  mesh = parallel_mesh.make_mesh(devices=jax.devices()[:1])
  return drawn(mesh, trained(mesh))[0]


@pytest.mark.parametrize(
  ('shape', 'split', 'expected'),
  [
    pytest.param((1, 8, 1), 1, (8, 1, 1), marks=pytest.mark.slow),
    ((1, 8, 1), 4, (2, 1, 4)),
    pytest.param((1, 8, 1), 8, (1, 1, 8), marks=pytest.mark.slow),
    pytest.param((2, 2, 2), 4, (2, 1, 4), marks=pytest.mark.slow),
    pytest.param((2, 4, 1), 2, (4, 1, 2), marks=pytest.mark.slow),
  ],
)
def test_no_weight_travels_for_a_token_and_the_samples_are_those_of_one_device(shape, split, expected, capfd):
  mesh = parallel_mesh.make_mesh(*shape)
  layout = layouts.choose(MODEL, mesh, share(split))
  assert layout.mesh.devices.shape == expected
  assert layout.mesh.devices.ravel().tolist() == mesh.devices.ravel().tolist()
  samples, found = drawn(layout.mesh, layout.place(trained(mesh)))
  assert largest(found, 'all-gather') <= 16  # the tokens drawn
  assert max((transfer.entries for transfer in found), default=0) < KERNEL
  assert bool(found) == (split > 1)
  np.testing.assert_array_equal(samples.response, on_one_device().response)
  np.testing.assert_allclose(samples.logp, on_one_device().logp, atol=1e-5)
  assert 'rematerialization' not in capfd.readouterr().err  # the compiler would gather all weights on each device


def test_weights_that_travel_in_a_loop_would_be_seen():
  mesh = parallel_mesh.make_mesh()
  kernels = jax.ShapeDtypeStruct(
    (3, 64, 64), 'float32', sharding=jax.sharding.NamedSharding(mesh, jax.P(None, 'fsdp', None))
  )
  rows = jax.ShapeDtypeStruct((8, 64), 'float32', sharding=rules.batch_sharding(mesh))
  program = jax.jit(lambda rows, kernels: jax.lax.scan(lambda x, kernel: (x @ kernel, None), rows, kernels)[0])
  found = transfers.transfers(program.lower(rows, kernels).compile().as_text())
  assert [(transfer.entries, transfer.in_loop) for transfer in found] == [(KERNEL, True)]


def test_kernels_are_cast_once_and_nothing_else_is():
  config = dataclasses.replace(CONFIG, compute_dtype='bfloat16')
  mesh = parallel_mesh.make_mesh()
  layout = layouts.choose(transformer.build(config), mesh, share(1))
  placed = layout.place(trained(mesh))
  dtypes = {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf.dtype
    for path, leaf in jax.tree.leaves_with_path(placed)
  }
  assert {path for path, dtype in dtypes.items() if dtype == 'bfloat16'} == {
    path for path in dtypes if path.startswith('layers/') and path.endswith('kernel/array')
  }
  assert jax.tree.all(jax.tree.map(lambda leaf, wanted: leaf.sharding == wanted.sharding, placed, layout.weights))
  assert layout.place(placed) is placed
  layout.place(trained(mesh))
  assert layout.program._cache_size() == 1


@pytest.mark.parametrize('split', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_weights_laid_out_one_by_one_are_those_of_the_program_and_free_their_memory(split):
  layout = layouts.choose(MODEL, parallel_mesh.make_mesh(), share(split))
  stacked = jax.tree.map(lambda leaf, sharding: jax.device_put(leaf, sharding), weights(), layout.shardings)
  expected, kernel = layout.place(stacked), stacked['layers']['mlp']['up']['kernel']
  found = layout.lay_out(stacked)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert layout.place(found) is found
  assert kernel.is_deleted()


def test_adapted_and_quantised_kernels_are_merged():
  layout = layouts.choose(MODEL, parallel_mesh.make_mesh(), share(1))
  settings = lora.LoRA(rank=2, alpha=4.0)
  base = quantization.quantize(weights(), 'int8')
  shapes = jax.eval_shape(lambda key: lora.init(key, base, settings), jax.random.key(0))
  rng = np.random.default_rng(0)
  factors = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)
  placed = layout.place(lora.attach(base, factors, settings))
  merged = MODEL.lay_out(jax.jit(lora.merge, static_argnums=2)(base, factors, settings))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), placed, merged)


def test_the_split_is_the_smallest_that_fits():
  mesh = parallel_mesh.make_mesh(1, 4, 2)
  sizes = [layouts.choose(MODEL, mesh, share(split)).mesh.shape['tensor'] for split in (2, 3, 4, 8, 1000)]
  assert sizes == [2, 4, 4, 8, 8]
  assert layouts.choose(MODEL, mesh).mesh.shape['tensor'] == 2  # a host has memory for a tiny model
