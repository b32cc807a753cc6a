"""The memory of a planned step: its arguments are those that training places, and more of anything needs more."""

import dataclasses
import itertools

import jax
import pytest

from alignjax.parallel import mesh as parallel_mesh
from alignjax.planning import hardware, memory, plan, program
from alignjax.run import examination, preparation
from alignjax.training import placement
from tests import runs
from tests.planning import folders

DARE = 'chain(adamw(1e-6), online_dare(reserve=0.5, alpha=1e-6))'
RUNS = {
  'live': {},
  'fewer moments': {'optimizer': 'sgd(0.1)', 'microbatches': 2, 'batch_size': 16},
  'no reference': {'objective': 'orpo()'},
  'cached numbers': {'reference_cache': 'cache'},
  'cached states': {'reference_cache': 'cache', 'objective': 'ra_dpo(risk=cvar(0.9))', 'compute_dtype': 'bfloat16'},
  'adapter': {'adapter': 'lora(rank=4)'},
  'delta': {'optimizer': DARE, 'base_model': 'base'},
  'memory': {'objective': "alpha_dpo(normaliser='ema')"},
}


@pytest.fixture(name='folder', scope='module')
def write_folder(tmp_path_factory):
  return folders.write(tmp_path_factory.mktemp('model'), **folders.TINY)


def placed_bytes(arguments):
  """The compiler's count of the bytes of arguments on a device."""
  program = jax.jit(lambda *arguments: 0.0, keep_unused=True).lower(*arguments).compile()
  return program.memory_analysis().argument_size_in_bytes


@pytest.mark.parametrize(
  'shape', [pytest.param((1, 8, 1), marks=pytest.mark.slow), (2, 2, 2)], ids=['fsdp', 'all axes']
)
def test_arguments_are_as_large_as_the_compiler_counts(folder, shape):
  for name, values in RUNS.items():
    planned = program.build(folders.configure(folder, **values), folders.mesh_of(*shape))
    assert sum(memory.arguments(planned).values()) == placed_bytes(planned.arguments), name


def test_an_abstract_mesh_gives_the_same_arguments(folder):
  config = folders.configure(folder)
  real = program.build(config, folders.mesh_of(2, 2, 2))
  abstract = program.build(config, parallel_mesh.abstract_mesh((2, 2, 2), 8))
  assert memory.arguments(real) == memory.arguments(abstract)


@pytest.mark.parametrize(
  'name',
  ['live', *(pytest.param(name, marks=pytest.mark.slow) for name in ('cached numbers', 'cached states', 'adapter'))],
)
def test_training_places_what_is_planned(name, tmp_path):
  """Shapes, dtypes and shardings, of every array that the loop passes to the step."""
  folder = runs.write_folder(tmp_path)
  values = {key: str(tmp_path / value) if key == 'reference_cache' else value for key, value in RUNS[name].items()}
  config = dataclasses.replace(runs.make_config(folder, ''), eval_data=(), **values)
  prepared = preparation.prepare(config, [].append)
  planned = program.build(config, prepared.mesh)
  base, params = preparation.load_base(config, prepared), preparation.initial_params(config, prepared)
  tx = examination.build_optimizer(prepared)
  initial = prepared.objective.memory.initial
  state = placement.create_state(prepared.mesh, params, tx, jax.random.key(0), initial)
  frozen = preparation.load_frozen(config, prepared, base)
  batch = placement.to_global(prepared.mesh, next(iter(prepared.training.batches)).data)

  def described(tree):
    return {
      jax.tree_util.keystr(path): (leaf.shape, leaf.dtype, leaf.sharding.shard_shape(leaf.shape))
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }

  assert described((planned.state.params, planned.frozen, planned.batch)) == described((state.params, frozen, batch))
  assert memory.bytes_of(planned.state.opt_state) - memory.bytes_of(state.opt_state) in (0, 4)  # a schedule counts


@pytest.fixture(name='large', scope='module')
def write_large(tmp_path_factory):
  return folders.write(tmp_path_factory.mktemp('model'))


def peaks(model, machines=('v5e:8x8',), **lists):
  """The planned peaks for each value of one setting, or each machine."""
  ((name, values),) = lists.items() if lists else (('batch_size', [64]),)
  usual = {'compute_dtype': 'bfloat16', 'batch_size': 64, 'max_prompt': 512, 'max_response': 512}
  return [
    plan.make(folders.configure(model, **usual | {name: value}), hardware.parse(machine)).memory.peak
    for machine in machines
    for value in values
  ]


def increases(values):
  return all(a < b for a, b in itertools.pairwise(values))


def test_larger_batches_need_more_memory(large):
  assert increases(peaks(large, batch_size=[64, 128, 256, 512]))


@pytest.mark.slow  # each value is traced
def test_more_tokens_and_more_kept_activations_need_more_memory(large):
  assert increases(peaks(large, max_response=[128, 512, 2048]))
  assert increases(peaks(large, remat=['full', 'dots', 'none']))


def test_more_devices_and_more_steps_in_sequence_need_less(large):
  assert increases(peaks(large, machines=('v5e:8x8', 'v5e:4x8', 'v5e:4x4', 'v5e:2x4')))
  assert increases(peaks(large, batch_size=[256], machines=('v5e:16x16', 'v5e:8x16', 'v5e:8x8')))


def test_a_device_has_a_whole_head_only_for_more_tokens_than_the_vocabulary(large):
  usual = {'compute_dtype': 'bfloat16', 'max_prompt': 512, 'max_response': 512}
  split, whole = (
    plan.make(folders.configure(large, **usual, batch_size=size), hardware.parse('v5e:8x8')).memory.stages['head']
    for size in (64, 128)
  )
  assert whole['term of a group of tokens'] == 64 * split['term of a group of tokens'] == 4 * 4096 * 128256


def test_verdicts():
  estimate = memory.Estimate({'parameters': 50.0}, {'one': {'logits': 10.0}, 'other': {'logits': 40.0, 'none': 0.0}})
  assert (estimate.stage, estimate.peak, estimate.parts) == ('other', 90.0, {'parameters': 50.0, 'logits': 40.0})
  assert [estimate.verdict(limit) for limit in (100, 99, 90, 89)] == ['fits', 'tight', 'tight', 'does not fit']


@pytest.mark.parametrize(
  ('chunk', 'rows', 'expected'),
  [(1024, 4, (1024, 4)), (4096, 4, (4096, 1)), (3072, 4, (2048, 2)), (256, 4, (256, 16)), (1, 1, (2, 512))],
)
def test_tokens_whose_logits_exist_at_once(chunk, rows, expected):
  assert memory._at_once(chunk, rows, responses=2, response=512) == expected
