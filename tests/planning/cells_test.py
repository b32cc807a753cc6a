"""The planner against the TPU compiler: the measurements that `python -m bench.plan_memory` stores in cells.json."""

import json
import pathlib

import pytest

from alignjax.planning import hardware, memory, plan
from bench import plan_memory

CELLS = json.loads(plan_memory.FILE.read_text())['cells']
QUICK = ('dpo',)


PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'planning.md'


@pytest.fixture(
  name='cell',
  scope='module',
  params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CELLS],
)
def plan_cell(request, tmp_path_factory):
  """A cell's plan, and what the compiler has measured."""
  cell = CELLS[request.param]
  config = plan_memory.config_of(cell, tmp_path_factory.mktemp('model'))
  planned = plan.make(config, hardware.parse(cell['topology']))
  assert plan_memory.row(request.param, cell, planned) in PAGE.read_text()
  return planned, cell['measured']


def test_the_peak_is_near_that_of_the_compiler(cell):
  planned, measured = cell
  if measured['peak']:  # the step fits
    assert planned.memory.argument_bytes == pytest.approx(measured['arguments'], rel=0.01)
    assert planned.memory.peak == pytest.approx(measured['peak'], rel=0.1)


def test_what_fits_is_allocated(cell):
  """However large the device is: the plan fits if it needs 90 % of it."""
  planned, measured = cell
  assert memory.MOST * measured['allocated'] <= planned.memory.peak
  assert planned.verdict != 'fits' or 0 < measured['allocated'] <= planned.limit


def test_the_size_of_a_program_that_does_not_fit():
  message = 'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 16.50G of 15.75G hbm.'
  assert plan_memory.exceeding(message) == 16.5 * 2**30
