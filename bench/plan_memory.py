"""The planner's memory against that of the TPU compiler: compiles the cells of tests/planning/cells.json again.

  PYTHONPATH=.venv/pods python -m bench.plan_memory                   # all cells, 2 to 6 minutes each on two cores
  PYTHONPATH=.venv/pods python -m bench.plan_memory --only=dpo

A cell is a run with the shape of Llama-3-8B, or another number of layers or width, on a TPU slice. Each measurement is
the training step, compiled by libtpu without a TPU: `make pods` installs it in .venv/pods. If the step does not fit,
the compiler states only what it would allocate. The file is rewritten with the results, and
tests/planning/cells_test.py compares the planner with them. `predicted` is the peak in GiB that was planned before the
cell was compiled for the first time.
"""

import importlib.metadata
import json
import pathlib
import re
import tempfile

from absl import app, flags, logging
import jax

from alignjax.planning import hardware, machines, memory, plan, program, report
from alignjax.run import fields, settings
from tests.planning import folders

FILE = pathlib.Path(__file__).parents[1] / 'tests' / 'planning' / 'cells.json'
_ONLY = flags.DEFINE_multi_string('only', [], 'Name of a cell to compile; repeat it for several. Without it, all.')


def config_of(cell: dict, folder: pathlib.Path) -> settings.Config:
  """The settings of a cell, with a model folder that is written for it."""
  model = folders.write(folder / 'model', **cell['model'])
  return settings.from_dict(fields.nested({'model': model, **cell['settings']}))


def measure(cell: dict, folder: pathlib.Path) -> report.Compiled:
  """Compiles a cell; arguments and peak are 0 if it does not fit."""
  config, machine = config_of(cell, folder), hardware.parse(cell['topology'])
  planned = program.build(config, machines.compilable(config.mesh, machine))
  try:
    found = report.compiled(planned.lower().compile())
  except jax.errors.JaxRuntimeError as error:
    found = report.Compiled(0, 0, exceeding(str(error)))
  estimate = memory.estimate(planned, config)
  print(f'{found}, planned {estimate.argument_bytes:.0f} and {estimate.peak:.0f}', flush=True)
  return found


def exceeding(message: str) -> int:
  """The bytes that a program would use, from the compiler's message that it does not fit.

  Raises:
    ValueError: the message says something else.
  """
  found = re.search(r'Used ([\d.]+)([MG]) of', message)
  if found is None:
    raise ValueError(f'the compiler failed with another message: {message}')
  return int(float(found[1]) * {'M': 2**20, 'G': 2**30}[found[2]])


def row(name: str, cell: dict, planned: plan.Plan) -> str:
  """The row of a cell in docs/planning.md; sizes in GiB, and how far the plan is from the compiler's peak."""
  peak, allocated = (cell['measured'][key] for key in ('peak', 'allocated'))
  size = planned.memory.peak
  sizes = ' | '.join(f'{each / 2**30:.2f}' if each else '-' for each in (size, peak, allocated))
  ratio = f'{size / peak - 1:+.1%}' if peak else '-'
  predicted = f'{cell["predicted"]:.2f}' if 'predicted' in cell else '-'
  return f'| {name} | {cell["topology"]} | {predicted} | {sizes} | {ratio} | {planned.verdict} |'


def main(argv: list[str]) -> None:
  """Compiles cells, and writes the file after each of them."""
  del argv
  logging.set_verbosity(logging.WARNING)
  jax.config.update('jax_platforms', 'cpu')
  stored = json.loads(FILE.read_text())
  with tempfile.TemporaryDirectory() as folder:
    for name, cell in stored['cells'].items():
      if _ONLY.value and name not in _ONLY.value:
        continue
      print(name, flush=True)
      cell['measured'] = measure(cell, pathlib.Path(folder))._asdict()
      cell['versions'] = {package: importlib.metadata.version(package) for package in ('jax', 'libtpu')}
      FILE.write_text(json.dumps(stored, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
