"""Renders the facts of a report as one page of HTML that needs no network and no JavaScript."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

import jinja2

from alignjax.doctor import findings
from alignjax.evaluation import evaluator, summary
from alignjax.report import descriptions, facts, figures, naming, reading, run_folders, sample_files, svg
from alignjax.run import fields, history, settings

FOLDER = pathlib.Path(__file__).parent
MOST_METRICS = 5  # of the overview
MOST_COLUMNS = 4  # runs that are columns of the table of settings; more are its rows
MOST_NAMES = 4  # of runs that share an objective or a finding
MOST_PANELS = 24  # of the remaining metrics


class Table(NamedTuple):
  """A table; the first cell of a row is its heading."""

  head: Sequence[str]
  rows: Sequence[Sequence[str]]


class Objective(NamedTuple):
  """An objective, and what is known of its parts."""

  expression: str
  runs: str
  parts: Sequence[descriptions.Description]
  unknown: str


class Evaluated(NamedTuple):
  """An evaluation as shown."""

  of: facts.Evaluation
  figure: figures.Figure | None
  table: Table
  laws: Table | None


class Swept(NamedTuple):
  """A sweep as shown."""

  of: facts.Sweep
  table: Table
  figures: Sequence[figures.Figure]


class Found(NamedTuple):
  """A finding of the doctor, and the runs that have it."""

  finding: findings.Finding
  runs: str


class Key(NamedTuple):
  """An entry of the legend."""

  style: str
  number: str
  name: str


def render(report: facts.Report) -> str:
  """The page of a report."""
  style = (FOLDER / 'page.css').read_text(encoding='utf-8')
  return _template().render(style=style, report=report, **_parts(report))


@functools.cache
def _template() -> jinja2.Template:
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(FOLDER),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.globals |= {'number': naming.number, 'size': naming.size, 'words': naming.words}
  return environment.get_template('page.html')


def _parts(report: facts.Report) -> dict[str, Any]:
  runs, samples = report.all_runs, list(_samples(report))
  groups = [(run.label, (run,)) for run in report.runs]
  groups += [group for sweep in report.sweeps for group in sweep.groups.items()]
  styles = figures.styles(groups)
  return {
    'overview': _overview(runs),
    'legend': _legend(groups, styles),
    'commands': list(_commands(report)),
    'settings': list(_settings(runs)),
    'everything': [(run.label, _everything(run)) for run in _examples(report) if run.config],
    'objectives': _objectives(runs),
    'started': _started(runs),
    'training': figures.training(runs, styles),
    'others': figures.others(runs, styles)[:MOST_PANELS],
    'skipped': sum(len(run.skipped) for run in runs),
    'held_out': any(name.startswith('eval/') for run in runs for name in run.curves),
    'rollouts': figures.rollouts(runs, styles),
    'sweeps': [_swept(sweep, i) for i, sweep in enumerate(report.sweeps)],
    'evaluations': [_evaluated(each, i) for i, each in enumerate(report.evaluations) if each.models],
    'comparisons': [
      (each, Table(('', *each.names), each.settings), Table(('', *each.names), each.metrics))
      for each in report.comparisons
    ],
    'samples': samples,
    'scored': any(each.score is not None for found in samples for row in found.rows for each in sum(row.cells, ())),
    'examined': [run.label for run in runs if run.about.doctor is not None],
    'doctor': _doctor(runs),
    'costs': _costs(runs),
  }


def _overview(runs: Sequence[facts.Run]) -> Table:
  metrics = history.chosen([run.record for run in runs], MOST_METRICS)
  head = ('run', 'objective', 'updates', *metrics)
  rows = [
    (
      run.label,
      run.config.get('objective', '–'),
      _state(run),
      *(naming.number(run.record.last(name)) for name in metrics),
    )
    for run in runs
  ]
  return Table(head, rows)


def _state(run: facts.Run) -> str:
  if not run.steps:
    return 'none yet'
  return f'{run.steps}, finished' if run.finished else f'{run.steps} of {run.planned or "unknown"}'


def _legend(groups: Sequence[tuple[str, Sequence[facts.Run]]], styles: Mapping[str, figures.Style]) -> list[Key]:
  """The names of the colours, if there are several."""
  if len(groups) < 2:
    return []
  found = []
  for name, members in groups:
    style = styles[members[0].folder]
    number = '' if style.label == name else style.label
    found.append(Key(f'c{style.color % svg.COLORS} d{style.dash % 3}', number, name))
  return found


def _commands(report: facts.Report) -> Iterator[tuple[str, str]]:
  """The names of folders with the commands that made them; for a sweep, the command of the sweep."""
  yield from ((run.label, run.command) for run in report.runs if run.command)
  for each in (*report.sweeps, *report.evaluations):
    if each.about.command:
      yield each.folder, each.about.command
    elif isinstance(each, facts.Sweep):
      yield from ((run.label, run.command) for run in each.runs if run.command)


def _settings(runs: Sequence[facts.Run]) -> Iterator[tuple[str, Table]]:
  """The settings that differ between runs, and those that are not the defaults."""
  if not any(run.config for run in runs):
    return
  differences = history.differences([run.record for run in runs]) if len(runs) > 1 else {}
  cells = [
    (name, *('not recorded' if value is None else run_folders.shown(value) for value in values))
    for name, values in differences.items()
  ]
  head = ('', *(run.label for run in runs))
  if cells and len(runs) > MOST_COLUMNS:
    head, *cells = zip(head, *cells, strict=True)
  if cells:
    yield 'Settings that differ', Table(head, cells)
  defaults = fields.flat(settings.Config())
  changed = [
    (name, run_folders.shown(value))
    for name, value in runs[0].config.items()
    if name not in differences and name != 'workdir' and run_folders.shown(value) != _default(defaults.get(name))
  ]
  if changed:
    title = 'Settings that all share and that are not defaults' if len(runs) > 1 else 'Settings that are not defaults'
    yield title, Table(('', 'value'), changed)


def _default(value: Any) -> str:
  return run_folders.shown(list(value) if isinstance(value, tuple) else value)


def _examples(report: facts.Report) -> list[facts.Run]:
  """The first runs, and the first one of each sweep."""
  return [*report.runs[:MOST_COLUMNS], *(sweep.runs[0] for sweep in report.sweeps if sweep.runs)]


def _everything(run: facts.Run) -> Table:
  return Table(('', 'value'), [(name, run_folders.shown(value)) for name, value in run.config.items()])


def _objectives(runs: Sequence[facts.Run]) -> list[Objective]:
  """Each objective with the runs that train it, repetitions under one name; nothing is described twice."""
  members: dict[str, list[str]] = {}
  for run in runs:
    for name in ('objective', 'rollout_objective'):
      if expression := run.config.get(name):
        members.setdefault(str(expression), []).append(reading.group_of(run.label))
  found, seen = [], set()
  for expression, labels in members.items():
    names = list(dict.fromkeys(labels))
    described, unknown = descriptions.of(expression)
    new = [each for each in described if each.name not in seen]
    seen |= {each.name for each in new}
    found.append(Objective(expression, _listed(names) if len(members) > 1 else '', new, ', '.join(unknown)))
  return found


def _listed(names: Sequence[str]) -> str:
  """The first names, and how many there are more."""
  more = len(names) - MOST_NAMES
  return ', '.join(names[:MOST_NAMES]) + (f' and {more} more' if more > 0 else '')


def _started(runs: Sequence[facts.Run]) -> Table | None:
  """What runs printed when they started, and versions; one column if it is the same for all."""
  columns = [
    {
      **{name: value for name, value in run.about.summary if name != 'objective'},
      **(
        {'versions': ', '.join(f'{name} {version}' for name, version in run.about.versions.items())}
        if run.about.versions
        else {}
      ),
    }
    for run in runs
  ]
  names = list(dict.fromkeys(name for column in columns for name in column))
  same = all(column == columns[0] for column in columns)
  shown = columns[:1] if same else columns[:MOST_COLUMNS]
  head = ('', 'all runs' if len(runs) > 1 else 'value') if same else ('', *(run.label for run in runs[:MOST_COLUMNS]))
  rows = [(name, *(column.get(name, '–') for column in shown)) for name in names]
  return Table(head, rows) if rows else None


def _swept(sweep: facts.Sweep, number: int) -> Swept:
  names = history.chosen([run.record for run in sweep.runs], figures.MOST_PANELS)
  rows = []
  for group, members in sweep.groups.items():
    values = [[run.record.last(name) for run in members if name in run.curves] for name in names]
    cells = [naming.estimate(evaluator.Estimate(*history.over_seeds(each)) if each else None) for each in values]
    rows.append((group, str(len(members)), *cells))
  return Swept(sweep, Table(('', 'runs', *names), rows), figures.dots(sweep, number))


def _evaluated(evaluation: facts.Evaluation, number: int) -> Evaluated:
  columns = summary.columns(each.values for each in evaluation.models)
  rows = [
    (
      f'{each.label} (reference)' if each.name == evaluation.reference else each.label,
      *(naming.estimate(each.values[name]) if name in each.values else '' for name in columns),
    )
    for each in evaluation.models
  ]
  laws = Table(('run', 'of', 'law', 'a', 'b', 'residual, rms'), evaluation.laws) if evaluation.laws else None
  figure = figures.reward_against_kl(evaluation, number)
  return Evaluated(evaluation, figure, Table(('', *columns.values()), rows), laws)


def _samples(report: facts.Report) -> Iterator[facts.Samples]:
  for evaluation in report.evaluations:
    if evaluation.shown:
      yield dataclasses.replace(evaluation.shown, title=f'{evaluation.folder}: first response of each model')
  if found := sample_files.beside({run.label: run.drawn for run in report.all_runs}):
    yield found
  for run in report.runs:
    yield from run.rollouts


def _doctor(runs: Sequence[facts.Run]) -> list[Found]:
  """The findings, the worst first, each once with the runs that have it."""
  members: dict[findings.Finding, list[str]] = {}
  for run in runs:
    for finding in run.about.doctor or ():
      members.setdefault(finding, []).append(run.label)
  examined = sum(run.about.doctor is not None for run in runs)
  return [
    Found(each, '' if len(members[each]) == examined else _listed(members[each]))
    for each in findings.worst_first(members)
  ]


def _costs(runs: Sequence[facts.Run]) -> Table | None:
  """Times, speeds and memory of the runs that have recorded some."""
  rows = []
  for run in runs:
    seconds, speed, tokens, memory = (
      run.curves[name].values if name in run.curves else None
      for name in ('time/seconds', 'time/tokens_per_second', 'train/tokens', 'time/peak_memory_gib')
    )
    cells = (
      naming.duration(float(seconds.sum())) if seconds is not None else '–',
      f'{naming.number(sorted(seconds)[len(seconds) // 2] * 1000)} ms' if seconds is not None else '–',
      naming.number(float(tokens.sum())) if tokens is not None else '–',
      naming.number(sorted(speed)[len(speed) // 2]) if speed is not None else '–',
      f'{memory.max():.2f} GiB' if memory is not None else '–',
      naming.size(sum(each.size for each in run.artefacts)),
      run.about.devices or '–',
    )
    rows.append((run.label, *cells))
  head = ('', 'time in updates', 'median update', 'tokens', 'tokens/s, median', 'peak memory', 'on disk', 'devices')
  return Table(head, rows) if rows else None
