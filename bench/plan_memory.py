"""The planner's memory against that of the TPU compiler: compiles the cells of tests/planning/cells.json again.

  PYTHONPATH=.venv/pods python -m bench.plan_memory                   # all cells, 2 to 6 minutes each on two cores
  PYTHONPATH=.venv/pods python -m bench.plan_memory --only=dpo,lora

A cell is a run with the shape of Llama-3-8B, or fewer of its layers, on a TPU slice. Each measurement is the training
step, compiled by libtpu without a TPU: `make pods` installs it in .venv/pods. The file is rewritten with the results,
and tests/planning/cells_test.py compares the planner with them.
"""

import importlib.metadata
import json
import pathlib
import tempfile

from absl import app, flags, logging
import jax

from alignjax.planning import hardware, machines, memory, program, report
from alignjax.run import fields, settings
from tests.planning import folders

FILE = pathlib.Path(__file__).parents[1] / 'tests' / 'planning' / 'cells.json'
_ONLY = flags.DEFINE_list('only', [], 'Names of cells to compile; empty: all.')


def config_of(cell: dict, folder: pathlib.Path) -> settings.Config:
  """The settings of a cell, with a model folder that is written for it."""
  model = folders.write(folder / str(cell['layers']), num_hidden_layers=cell['layers'])
  return settings.from_dict(fields.nested({'model': model, **cell['settings']}))


def measure(cell: dict, folder: pathlib.Path) -> report.Compiled:
  """Compiles a cell."""
  config, machine = config_of(cell, folder), hardware.parse(cell['topology'])
  planned = program.build(config, machines.compilable(config.mesh, machine))
  found = report.compiled(planned.lower().compile())
  estimate = memory.estimate(planned, config)
  print(f'{found}, planned {estimate.argument_bytes:.0f} and {estimate.peak:.0f}', flush=True)
  return found


def row(name: str, cell: dict, planned: float) -> str:
  """The row of a cell in docs/planning.md; sizes in GiB, and how far the plan is from the compiler's peak."""
  peak, allocated = (cell['measured'][key] for key in ('peak', 'allocated'))
  sizes = ' | '.join(f'{size / 2**30:.2f}' for size in (planned, peak, allocated))
  return f'| {name} | {cell["topology"]} | {cell["layers"]} | {sizes} | {planned / peak - 1:+.1%} |'


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
