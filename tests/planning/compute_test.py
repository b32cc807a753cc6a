"""FLOPs of a step against XLA's own count, for one unrolled layer, because XLA counts the body of a loop once."""

import jax
import jax.numpy as jnp
import pytest

from alignjax.parallel import mesh as parallel_mesh
from alignjax.planning import compute, program
from tests.planning import folders

WIDE = {
  'vocab_size': 4096,
  'hidden_size': 512,
  'num_hidden_layers': 1,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'intermediate_size': 1024,
}
PROMPTS = 16  # so many that the optimizer, which multiplies no matrices, counts little
RUNS = {
  'dpo': {},
  'recomputed': {'remat': 'full'},
  'adapter': {'adapter': 'lora()'},
  'cached': {'reference_cache': 'cache'},
  'no reference': {'objective': 'orpo()'},
  'both distributions': {'objective': 'ra_dpo(risk=cvar(0.9))'},
  'coupled': {'objective': 'alpha_dpo()'},
}


@pytest.fixture(name='folder', scope='module')
def write_folder(tmp_path_factory):
  return folders.write(tmp_path_factory.mktemp('model'), **WIDE)


def built(folder, mesh=(1, 1, 1), **values):
  usual = {
    'scan_layers': False,
    'remat': 'none',
    'chunk': 4096,
    'max_prompt': 64,
    'max_response': 64,
    'batch_size': PROMPTS,
  }
  return program.build(folders.configure(folder, **usual | values), folders.mesh_of(*mesh))


@pytest.mark.slow  # the parts below are exact
@pytest.mark.parametrize('name', RUNS)
def test_the_total_is_that_of_xla(folder, name):
  planned = built(folder, **RUNS[name])
  counted = planned.lower().cost_analysis()['flops']  # elementwise operations included
  assert 0.98 * counted <= compute.of_step(planned).total <= counted


def test_parts_of_a_step_without_recomputation(folder):
  """Each product with a weight runs once forward and twice backward; embeddings need none."""
  flops = compute.of_step(built(folder, max_prompt=64, max_response=32))
  tokens, responses = PROMPTS * (64 + 2 * 32), PROMPTS * 2 * 32
  width, kv, feed_forward, vocabulary = 512, 256, 1024, 4096
  layer = width * (2 * width + 2 * kv + 3 * feed_forward)
  last = PROMPTS * 64 * width * (2 * width + 3 * feed_forward)  # the last layer needs no queries of prompts
  assert flops.forward == flops.reference == 2 * (tokens * layer - last)
  assert flops.backward == 2 * flops.forward
  assert flops.head == 4 * 2 * responses * width * vocabulary
  assert flops.recomputed == 0
  assert flops.attention == 4 * 4 * responses * (64 + 32) * width  # forward, twice backward, reference
  assert flops.useful == flops.total == sum(flops)


def test_loops_count_every_iteration_and_unused_results_nothing():
  def function(x, y):
    unused = x @ y
    del unused
    _, ys = jax.lax.scan(lambda carry, row: (carry, row @ y), 0.0, x[None].repeat(3, axis=0))
    return ys, jnp.einsum('bij,bjk->bik', x[None], y[None])

  found = compute.count(function, jnp.ones((2, 4)), jnp.ones((4, 8)))
  assert found == compute.Count(weights=3 * 2 * 2 * 4 * 8, attention=2 * 2 * 4 * 8)


@pytest.mark.slow
def test_devices_and_depth_change_no_product_but_their_number(tmp_path):
  layers = [
    program.build(
      folders.configure(folders.write(tmp_path / str(count), **folders.TINY | {'num_hidden_layers': count})), mesh
    )
    for count, mesh in ((2, parallel_mesh.abstract_mesh((2, 2, 2), 8)), (6, folders.mesh_of(1, 1, 1)))
  ]
  two, six = (compute.of_step(planned) for planned in layers)
  assert six.forward == 3 * two.forward
  assert six.backward == 3 * two.backward
  assert six.head == two.head


def test_the_devices_of_a_mesh_share_the_flops_of_one(folder):
  """Also what is recomputed: `dots` keeps the products with split kernels."""
  one, shared = (
    compute.of_step(built(folder, mesh, remat='dots', scan_layers=True)) for mesh in ((1, 1, 1), (1, 4, 2))
  )
  assert shared == one
