"""Searches and changes: each answer, planned again, is what it claims to be."""

import dataclasses

import pytest

from alignjax import objectives
from alignjax.planning import hardware, plan
from tests.planning import folders

USUAL = {'compute_dtype': 'bfloat16', 'remat': 'full', 'max_prompt': 512, 'max_response': 512, 'batch_size': 64}


@pytest.fixture(name='model', scope='module')
def write_model(tmp_path_factory):
  return folders.write(tmp_path_factory.mktemp('model'))


def make(model, machine, **values):
  return plan.make(folders.configure(model, **USUAL | values), hardware.parse(machine))


def test_the_largest_batch_fits_and_the_next_does_not(model):
  config = folders.configure(model, **USUAL | {'microbatches': 2})
  found = plan.largest_batch(config, hardware.parse('v5e:8x8'))
  unit = 64 * 2
  assert found.config.batch_size % unit == 0
  assert found.verdict == 'fits'
  more = dataclasses.replace(found.config, batch_size=found.config.batch_size + unit)
  assert plan.make(more, found.machine).verdict != 'fits'


def test_no_batch_fits_on_a_small_machine(model):
  with pytest.raises(ValueError, match=r'^no batch fits on v5e:2x2, 4 chips: the smallest, batch_size=4, needs \d'):
    plan.largest_batch(folders.configure(model, **USUAL), hardware.parse('v5e:2x2'))


def test_the_smallest_machine_fits_and_smaller_ones_do_not(model):
  config = folders.configure(model, **USUAL)
  found = plan.smallest_machine(config, hardware.chip('v5e'))
  assert found.verdict == 'fits'
  smaller = [machine for machine in hardware.sizes(hardware.chip('v5e')) if machine.chips < found.machine.chips]
  assert smaller
  assert all(plan.make(config, machine).verdict != 'fits' for machine in smaller[-2:])


def test_a_batch_that_no_machine_divides_is_an_error(model):
  config = folders.configure(model, **USUAL | {'batch_size': 3, 'microbatches': 2})
  with pytest.raises(ValueError, match=r'^config.batch_size = 3: must be a multiple of 2'):
    plan.smallest_machine(config, hardware.chip('v5e'))


@pytest.mark.slow
def test_changes_need_less_memory_and_can_be_planned(model):
  before = make(model, 'v5e:4x4', remat='dots')
  assert before.verdict == 'does not fit'
  found = plan.changes(before)
  assert {'--remat=full', '--reference_cache=reference_cache'} <= {change.flags for change in found}
  assert any('lora(' in change.flags and change.plan.verdict == 'fits' for change in found)
  for change in found:
    assert change.plan.memory.peak < before.memory.peak
    again = plan.make(change.plan.config, change.plan.machine)
    assert again.memory == change.plan.memory


@pytest.mark.slow
def test_every_objective_can_be_planned(tmp_path):
  small = folders.write(tmp_path, **folders.TINY)
  inner = {'importance_weighted', 'tis', 'wpo_weighted'}  # they weight another objective
  for name in objectives.OBJECTIVES:
    expression = f'{name}(dpo())' if name in inner else f'{name}()'
    planned = plan.make(folders.configure(small, objective=expression), hardware.parse('v5e:2x2'))
    assert planned.verdict == 'fits', name


@pytest.mark.parametrize('edge', [0, 1, 2, 3, 7, 8, 20])
def test_bisection_finds_the_edge(edge):
  assert plan.largest(lambda number: number <= edge, 20) == edge


@pytest.mark.slow  # commands/plan_test.py prints seconds and the size of a checkpoint
def test_time_is_useful_work_over_speed(model):
  planned = make(model, 'v5e:8x8')
  assert planned.flops.recomputed > 0
  assert planned.seconds(0.5) == pytest.approx(planned.flops.useful / (64 * 197e12 * 0.5))
  assert planned.tokens == 64 * (512 + 2 * 512)
  assert planned.checkpoint_bytes == 3 * 4 * 8_030_261_248 + 8  # parameters, two moments, two counters


@pytest.mark.parametrize(
  ('machine', 'values', 'message'),
  [
    ('v5e:4x4', {'batch_size': 24}, r'config.batch_size = 24: must be a multiple of 16'),
    ('v5e:4x4', {'mesh': {'data': 1, 'fsdp': 8}}, r'a mesh of data=1, fsdp=8, tensor=1 does not fit 16 devices'),
    ('v5e:4x4,slices=2', {}, r'.* fsdp=32 would cross slices'),
    ('v5e:4x4', {'mesh': {'slices': 2}}, r'mesh.slices=2, but v5e:4x4, 16 chips has 1: set mesh.slices=1'),
    ('v5e:4x4', {'prompts': ('p.jsonl',)}, r"config.prompts = \('p.jsonl',\): the planner covers updates on data"),
    ('v5e:4x4', {'model': 'nowhere'}, r'nowhere/config.json'),
  ],
)
def test_what_cannot_be_planned_is_refused(model, machine, values, message):
  mesh = values.pop('mesh', None)
  config = folders.configure(values.pop('model', model), **USUAL | values)
  if mesh:
    config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, **mesh))
  with pytest.raises(ValueError, match=f'^{message}'):
    plan.make(config, hardware.parse(machine))
