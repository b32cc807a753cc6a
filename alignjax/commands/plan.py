"""Plans a training run: whether it fits on a machine, how long a step takes, and what the run costs.

  alignjax plan --model=models/smollm2 --topology=v5e:2x2 --batch_size=32 --compute_dtype=bfloat16
  alignjax plan --config=run.yaml --devices=h100:8 --rows=100000 --price_per_chip_hour=2.5
  alignjax plan --model=models/smollm2 --topology=v5e:4x4 --search=batch_size

It takes the settings of `alignjax train`, but needs no weights, no data and no accelerator: of the model, config.json
suffices. It builds the step that `alignjax train` runs. The memory of its arguments is exact, and that of its
temporaries an estimate, which --compile puts next to the compiler's own numbers (TPUs only; needs libtpu). If the run
does not fit, it tries out changes of the settings that need less memory. It prints the command that starts the run.

Exit codes: 0 the run fits, also tightly; 1 it does not fit, or the settings cannot be used.
"""

import contextlib
import dataclasses
import json
import pathlib

import jax

from alignjax import exit_codes, paths, transfers
from alignjax.commands import program
from alignjax.models import folders, naming
from alignjax.planning import hardware, machines, plan, report
from alignjax.planning import program as planned_program
from alignjax.run import command_line, fields, places, preparation, settings


@dataclasses.dataclass(frozen=True)
class PlanSettings:
  """Plan."""

  topology: str = fields.field(
    '', 'TPU slice, such as v5e:4x4 or v5p:4x4x4,slices=2; with --search=smallest_slice, a chip: v5e.'
  )
  devices: str = fields.field('', f'Chips by number, such as h100:8 or h100:4x8; known: {", ".join(hardware.CHIPS)}.')
  responses: int = fields.field(
    0, 'Responses to a prompt in the data; 0: as many as the objective needs, or 2.', at_least=0
  )
  compile: bool = fields.field(
    False, "Compile the step for the TPU slice, which takes minutes, and compare the compiler's memory; needs libtpu."
  )
  search: str = fields.field(
    '',
    'Look for the largest batch that fits on the machine, or for the smallest machine on which the run fits.',
    choices=('', 'batch_size', 'smallest_slice'),
  )
  mfu: str = fields.field('0.35:0.55', 'Range of the model FLOPs utilisation, from which seconds are computed.')
  rows: int = fields.field(0, 'Prompts in the data, to compute the length of the run; 0: unknown.', at_least=0)
  price_per_chip_hour: float = fields.field(
    0.0, 'Price of a chip for an hour, to compute the cost; 0: unknown.', at_least=0
  )
  json: str = fields.field('', 'File for the plan as JSON; empty: none.', path=paths.WRITTEN)

  def __post_init__(self):
    fields.check(self)


@dataclasses.dataclass(frozen=True)
class Invocation:
  """The parsed command line."""

  file: command_line.ConfigFile = dataclasses.field(
    default_factory=command_line.ConfigFile, metadata={'flag': ''}, kw_only=True
  )
  plan: PlanSettings = dataclasses.field(default_factory=PlanSettings, metadata={'flag': ''})
  config: settings.Config = dataclasses.field(default_factory=settings.Config, metadata={'flag': ''})
  notes: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)


def run(invocation: Invocation) -> int:
  """Plans a run, prints the plan, and returns the exit code."""
  with places.on_disk(invocation.plan) as options:
    return _run(invocation, options)


def _run(invocation: Invocation, options: PlanSettings) -> int:
  settings.require(invocation.config, 'model')
  config = _with_folders(invocation.config)
  preparation.check_settings(config)
  costs = report.Costs(_utilisation(options.mfu), options.rows, options.price_per_chip_hour)
  planned = _planned(config, options)
  mesh = machines.compilable(planned.config.mesh, planned.machine) if options.compile else None
  shown = dataclasses.replace(planned, config=_as_given(planned.config, invocation.config))
  print('\n'.join((*invocation.notes, report.text(shown, costs, _notes(config)))))
  failed = mesh is not None and not _compile(planned, mesh)
  if planned.verdict != 'fits' and not options.search:
    print(f'\n{report.changes(plan.changes(planned), planned.limit)}')
  if options.json:
    pathlib.Path(options.json).write_text(json.dumps(report.as_json(shown, costs), indent=2) + '\n')
  return exit_codes.REFUSED if failed or planned.verdict == 'does not fit' else exit_codes.DONE


def _planned(config: settings.Config, options: PlanSettings) -> plan.Plan:
  """The plan of the given machine, or the one that a search finds."""
  if bool(options.topology) == bool(options.devices):
    raise ValueError('give the machine as --topology=v5e:4x4 (a TPU slice) or as --devices=h100:8 (chips by number)')
  text = options.topology or options.devices
  if options.search == 'smallest_slice':
    return plan.smallest_machine(config, hardware.chip(text.partition(':')[0]), options.responses)
  machine = hardware.parse(text)
  if options.topology and not machine.topology:
    raise ValueError(f'--topology={text}: is not the shape of a TPU slice, such as v5e:4x4; give --devices={text}')
  if options.search == 'batch_size':
    return plan.largest_batch(config, machine, options.responses)
  return plan.make(config, machine, options.responses)


def _compile(planned: plan.Plan, mesh: jax.sharding.Mesh) -> bool:
  """Compiles the step and prints the memory that the compiler needs; returns whether it compiles."""
  step = planned_program.build(planned.config, mesh, planned.responses)
  try:
    compiled = step.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    print(f'compiler    does not fit: {str(error).splitlines()[0]}')
    return False
  print(report.compared(planned, report.compiled(compiled)))
  return True


def _utilisation(text: str) -> tuple[float, float]:
  low, _, high = text.partition(':')
  try:
    found = float(low), float(high or low)
  except ValueError:
    found = 0.0, 0.0
  if not 0 < found[0] <= found[1] <= 1:
    raise ValueError(f'--mfu={text}: must be a range between 0 and 1, such as 0.35:0.55')
  return found


_MODELS = ('model', 'reference')  # settings that name a model whose config.json the planner reads


def _with_folders(config: settings.Config) -> settings.Config:
  """The settings with a folder that holds config.json in place of each name or URL of a model."""
  folders_of = {name: _folder(getattr(config, name), f'--{name}') for name in _MODELS if getattr(config, name)}
  return dataclasses.replace(config, **folders_of)


def _folder(location: str, flag: str) -> str:
  if paths.scheme(location):
    return str(pathlib.Path(transfers.fetched(f'{location.rstrip("/")}/{folders.CONFIG}')).parent)
  return naming.resolve(location, flag, (folders.CONFIG,))


def _as_given(config: settings.Config, given: settings.Config) -> settings.Config:
  """The settings with the names of models as they were given."""
  return dataclasses.replace(config, **{name: getattr(given, name) for name in _MODELS})


def _notes(config: settings.Config) -> list[str]:
  if config.packing == 'off':
    return []
  return ['packing     is planned as --packing=off, which computes at least as many positions']


PROGRAM = program.Program(
  'plan',
  __doc__,
  Invocation,
  run,
  parse=command_line.parse_flags,
  # A plan needs no accelerator, which another program may be using.
  join=lambda invocation: jax.config.update('jax_platforms', 'cpu'),
  place=contextlib.nullcontext,  # a model's weights are not copied
)
