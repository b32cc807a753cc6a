"""The training step, compiled for TPU slices: gradients arrive in parts, and only their sum crosses between slices."""

import jax
import jax.numpy as jnp
import optax
import pytest

from alignjax import objectives
from alignjax.models import transformer
from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from alignjax.training import instrumentation, placement, references, step
from alignjax.training import state as training_state
from alignjax.training.policy import Policy
from alignjax.types import PreferenceBatch
from tests.pods import topologies
from tests.pods.transfers import transfers

pytestmark = pytest.mark.slow  # about a minute for each program

CONFIG = transformer.TransformerConfig(
  vocab_size=2048,
  width=256,
  layers=2,
  heads=2,
  kv_heads=2,
  head_width=128,
  mlp_width=512,
  norm_epsilon=1e-5,
  rope_theta=1e4,
  tied_embeddings=False,
  max_positions=4096,
  compute_dtype='bfloat16',
  remat='none',
)
FSDP = 16  # chips of a slice
SMALL = 2048  # entries: norms and metrics have fewer, every kernel has more on each chip


def compiled(mesh, *, prompts=32, size=128):
  """Compiles the training step, with a live reference and Adam, for a TPU mesh. No TPU is needed.

  Returns the compiled text, and the number of entries of all large kernels.
  """
  model = transformer.build(CONFIG, rules.constraint(mesh))
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  params = jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    shapes,
    rules.param_shardings(mesh, shapes),
  )
  objective = objectives.dpo()
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6))
  state = placement.abstract_state(mesh, shapes, tx, jax.random.key(0))

  def array(*shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=rules.batch_sharding(mesh))

  batch = PreferenceBatch(
    prompt=array(prompts, size),
    prompt_length=array(prompts),
    response=array(prompts, 2, size),
    response_length=array(prompts, 2),
    label=array(prompts, dtype=jnp.float32),
    weight=array(prompts, dtype=jnp.float32),
  )
  function = instrumentation.instrumented(
    step.build_train_step(Policy(model), objective, tx, chunk=128, mesh=mesh), None
  )
  out = (jax.tree.map(lambda leaf: leaf.sharding, state), rules.replicated(mesh))
  frozen = training_state.Frozen(references.Live(params))
  program = jax.jit(function, donate_argnums=0, out_shardings=out).lower(state, frozen, batch).compile()
  return program.as_text(), sum(leaf.size for leaf in jax.tree.leaves(shapes) if leaf.ndim > 1 and leaf.size > SMALL)


@pytest.fixture(scope='module')
def two_slices():
  mesh = parallel_mesh.make_mesh(data=2, devices=topologies.devices('v5e:4x4', slices=2))
  assert [{device.slice_index for device in part.flat} for part in mesh.devices] == [{0}, {1}]
  text, entries = compiled(mesh)
  return transfers(text), entries


def test_only_sums_cross_slices_each_gradient_once(two_slices):
  found, entries = two_slices
  between = [transfer for transfer in found if transfer.between_slices]
  assert {transfer.kind for transfer in between} == {'ALL_REDUCE SUM'}
  assert {transfer.partners for transfer in between} == {'{1,2}x{0:15}'}
  assert not any(transfer.in_loop for transfer in between)
  # A chip sends its own part of every kernel's gradient, once.
  assert sum(transfer.entries for transfer in between if transfer.entries > SMALL) == entries // FSDP


def test_collectives_stay_inside_a_slice(two_slices):
  found, _ = two_slices
  inside = [transfer for transfer in found if not transfer.between_slices]
  assert {'all-gather', 'all-reduce', 'reduce-scatter'} <= {transfer.kind for transfer in inside}
  chips = range(FSDP)  # each slice runs a program of its own, which numbers its 16 chips
  lines = [[chips[4 * i : 4 * i + 4] for i in range(4)], [chips[i::4] for i in range(4)]]
  groups = [[[*line] for line in lines_of_torus] for lines_of_torus in ([chips], *lines)]
  written = {str(group).replace('[', '{').replace(']', '}').replace(' ', '') for group in groups}
  assert {transfer.partners for transfer in inside if 'permute' not in transfer.kind} <= written


def test_no_chip_receives_a_whole_gradient_or_head():
  """The response tokens of a batch are fewer than the ids of the vocabulary, so chips share it out."""
  text, _ = compiled(parallel_mesh.make_mesh(devices=topologies.devices('v5e:4x4')), prompts=FSDP, size=32)
  large = [transfer for transfer in transfers(text) if transfer.entries > SMALL]
  assert {transfer.kind for transfer in large} == {'all-gather', 'all-to-all', 'reduce-scatter'}
  head = CONFIG.vocab_size * CONFIG.width
  assert max(transfer.entries for transfer in large) < head
