"""Trains a grid of runs, and compares them: a table with errors over seeds, and a figure.

  alignjax sweep --grid='beta=0.01,0.1;seed=0,1,2' --out=runs/sweep --model=runs/sft/model --data=pairs.jsonl \\
      --config=experiments/configs/is_daa_tldr.py:is_dpo
  alignjax sweep --grid='tau=0.1,0.5;seed=0,1' --out=runs/ipo --objective='ipo(tau={tau})' --model=... --data=...

All other flags are those of `alignjax train`. A name of the grid replaces {name} in them; else it is a setting of
`alignjax train`; else a parameter of the variant in --config=file.py:variant. Runs that differ in `seed` alone are
repetitions: the table shows their mean and its standard error.

The folder gets the work directory of each run, its output as <name>.log, sweep.json, sweep.md and sweep.png. If a run
fails, the error is reported and the other runs continue. Rerunning the command resumes interrupted runs, retries failed
runs and skips finished ones. With --print, the commands are only printed, one per line, for example for a Slurm array.

Exit codes: 0 done, 1 an error in flags or a run that failed.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import math
import pathlib
import shlex

from absl import flags
import numpy as np

from alignjax import exit_codes, files, paths
from alignjax.commands import compare, data_lengths, program
from alignjax.run import about, command_line, fields, grids, hints, history, program_flags, sweeping


@dataclasses.dataclass(frozen=True)
class Sweep:
  """Sweep."""

  grid: str = fields.field('', 'Names with values, such as beta=0.01,0.1;seed=0,1,2.', required=True)
  out: str = fields.field('', 'Folder of the sweep.', required=True, path=paths.DISK)
  jobs: int = fields.field(1, 'Runs at a time; each takes the memory and the devices of one run.', at_least=1)
  metrics: tuple[str, ...] = fields.field(
    (), 'Metrics of the table and the figure, such as eval/loss; empty: up to six that most runs have.'
  )
  print: bool = fields.field(False, 'Print the commands of the runs instead of running them.')
  arguments: tuple[str, ...] = ()  # of `alignjax train`, as given
  points: tuple[grids.Point, ...] = ()  # the runs

  def __post_init__(self):
    fields.check(self)


def parse_flags(kind: type[Sweep], argv: Sequence[str], values: flags.FlagValues) -> Sweep:
  """The sweep that a command line describes. Every run's command line is parsed, so that none fails later for a typo.

  Raises:
    ValueError: a setting of the sweep or of a run is invalid; the message names the run.
    flags.Error: a flag of the sweep has an invalid value.
  """
  program_flags.define(kind, values)
  own = {leaf.flag for leaf in fields.leaves(kind)}
  mine = [argument for argument in argv[1:] if argument.lstrip('-').partition('=')[0].removeprefix('no') in own]
  others = [argument for argument in argv[1:] if argument not in mine]
  program_flags.parse(kind, [argv[0], *mine], values)
  sweep = fields.build(kind, program_flags.given(kind, values))
  if any(argument.lstrip('-').partition('=')[0] in ('workdir', 'config.workdir') for argument in others):
    raise ValueError('--workdir: each run of a sweep has its own, in the folder --out')
  points = tuple(grids.points(grids.parse(sweep.grid), others))
  for point in points:
    _check(point, sweep.out)
  return dataclasses.replace(sweep, arguments=tuple(others), points=points)


def _check(point: grids.Point, folder: str) -> None:
  """Raises a ValueError if `alignjax train` would not accept the command line of a run."""
  line = ['alignjax train', *point.arguments, f'--workdir={folder}']
  try:
    command_line.parse_flags(command_line.Invocation, line, flags.FlagValues())
  except flags.UnrecognizedFlagError as error:
    name = error.flagname.partition('=')[0]
    known = [leaf.flag for kind in (Sweep, command_line.Invocation) for leaf in fields.leaves(kind)]
    raise ValueError(f'--{name} is not a flag of sweep or train{hints.hint(name, known, prefix="--")}') from None
  except (ValueError, flags.Error) as error:
    raise ValueError(f'the run {point.name}: {error}') from error


def run(sweep: Sweep) -> int:
  """Trains the points of the grid, and writes the table and the figure. Returns the exit code."""
  points, folder = sweep.points, pathlib.Path(sweep.out)
  if sweep.print:
    for point in points:
      print(shlex.join(['alignjax', *sweeping.command(point, folder)]))
    return exit_codes.DONE
  data_lengths.require_matplotlib()
  folder.mkdir(parents=True, exist_ok=True)
  about.write(folder, command=_command(sweep))
  failed = sweeping.run(points, folder, sweep.jobs, lambda line: print(line, flush=True))
  finished = [point for point in points if point.name not in failed]
  if finished:
    report(folder, finished, sweep.metrics)
  return exit_codes.REFUSED if failed else exit_codes.DONE


def _command(sweep: Sweep) -> str:
  own = about.command('sweep', Sweep, {leaf.name: getattr(sweep, leaf.name) for leaf in fields.leaves(Sweep)})
  return ' '.join([own, *map(about.quoted, sweep.arguments)])


def report(folder: pathlib.Path, points: Sequence[grids.Point], metrics: Sequence[str]) -> None:
  """Writes sweep.md and sweep.png, and prints the table.

  Raises:
    ValueError: no run has recorded a metric of that name.
  """
  groups: dict[str, list[history.Run]] = {}
  for point in points:
    groups.setdefault(point.group, []).append(history.read(folder / point.name))
  runs = [each for group in groups.values() for each in group]
  known = sorted({name for each in runs for name in each.curves})
  if unknown := [name for name in metrics if name not in known]:
    raise ValueError(f'--metrics: no run has {unknown[0]}; they have {", ".join(known)}')
  names = list(metrics) or history.chosen(runs, compare.PANELS)
  table = {
    name: {group: history.over_seeds([each.last(name) for each in members]) for group, members in groups.items()}
    for name in names
  }
  rows = [
    [group, str(len(members)), *(_shown(*table[name][group]) for name in names)] for group, members in groups.items()
  ]
  text = compare.table(['', 'runs', *names], rows) + '\n\nMean and standard error over the seeds.\n'
  files.replace(folder / 'sweep.md', text.encode())
  draw(folder / 'sweep.png', table)
  print(f'\n{text}\nwrote {folder}/sweep.md and sweep.png')


def _shown(mean: float, error: float) -> str:
  if not math.isfinite(mean):
    return '-'
  return f'{mean:.4g}' if math.isnan(error) else f'{mean:.4g} ± {error:.1g}'


def draw(path: pathlib.Path, table: dict[str, dict[str, tuple[float, float]]]) -> None:
  """Draws one panel for each metric: the mean of each setting, with its standard error."""
  matplotlib, figure = data_lengths.require_matplotlib()
  with matplotlib.rc_context(data_lengths.STYLE):
    groups = list(next(iter(table.values())))
    columns = min(3, len(table))
    rows = -(-len(table) // columns)
    height = 0.8 + 0.28 * len(groups)
    picture = figure.Figure(figsize=(4.2 * columns + 1.5, height * rows + 0.4), layout='constrained')
    axes = picture.subplots(rows, columns, squeeze=False, sharey=True)
    for panel, (name, values) in zip(axes.flat, table.items(), strict=False):
      means, errors = (np.array(column) for column in zip(*values.values(), strict=True))
      panel.set_title(name)
      panel.errorbar(means, np.arange(len(groups)), xerr=np.nan_to_num(errors), fmt='o', capsize=3)
      panel.set_yticks(np.arange(len(groups)), groups)
      panel.set_ylim(len(groups) - 0.5, -0.5)
      panel.locator_params(axis='x', nbins=4)
    for panel in axes.flat[len(table) :]:
      panel.set_visible(False)
    picture.savefig(path, dpi=120)
  picture.clear()


PROGRAM = program.Program('sweep', __doc__, Sweep, run, parse=parse_flags, place=contextlib.nullcontext)
