"""What a report shows: plain facts, read from folders and drawn by `page`."""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

from alignjax.doctor import findings
from alignjax.evaluation import evaluator
from alignjax.run import history


class Response(NamedTuple):
  """A response of a model."""

  text: str
  score: float | None = None


class Row(NamedTuple):
  """The responses to one prompt."""

  prompt: str
  cells: tuple[tuple[Response, ...], ...]  # for each column


@dataclasses.dataclass(frozen=True)
class Samples:
  """Responses to the same prompts, side by side."""

  title: str
  columns: tuple[str, ...]
  rows: tuple[Row, ...]


@dataclasses.dataclass(frozen=True)
class About:
  """The content of about.json; empty where it is missing.

  Attributes:
    command: the command line.
    devices: the devices.
    versions: versions of packages by name.
    summary: the lines that a run printed when it started, with their labels.
    doctor: what the doctor found before the first update; None if it was not asked, or its findings are not recorded.
    steps: the planned updates of a run; 0 if unknown.
  """

  command: str = ''
  devices: str = ''
  versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
  summary: tuple[tuple[str, str], ...] = ()
  doctor: tuple[findings.Finding, ...] | None = None
  steps: int = 0


class Artefact(NamedTuple):
  """A file or folder that a program has written."""

  path: str
  text: str
  size: int  # bytes


@dataclasses.dataclass(frozen=True)
class Run:
  """A training run.

  Attributes:
    folder: its work directory.
    label: a short name, different from those of the other runs of the report.
    record: its configuration and its metrics.
    about: how it was started.
    command: the command that trains it.
    steps: the last update in the record.
    planned: how many updates it was to do; 0 if unknown.
    skipped: the updates whose batches were skipped, because their loss or gradient was not finite.
    last: when the last record was written, UTC.
    rollouts: samples of the policy during training.
    drawn: responses by prompt in samples*.jsonl.
    artefacts: what it has written.
  """

  folder: str
  label: str
  record: history.Run
  about: About
  command: str
  steps: int
  planned: int
  skipped: tuple[int, ...]
  last: str
  rollouts: tuple[Samples, ...]
  drawn: Mapping[str, tuple[Response, ...]]
  artefacts: tuple[Artefact, ...]

  @property
  def config(self) -> Mapping[str, Any]:
    return self.record.config

  @property
  def curves(self) -> Mapping[str, history.Curve]:
    return self.record.curves

  @property
  def finished(self) -> bool:
    """Whether all planned updates are done."""
    return 0 < self.planned <= self.steps


class Model(NamedTuple):
  """A model that was evaluated."""

  name: str
  label: str
  run: str  # the folder of its run, if it is a checkpoint
  step: int
  values: Mapping[str, evaluator.Estimate]  # the error is NaN if there is none

  @property
  def group(self) -> str:
    """The name that the checkpoints of a run share."""
    return self.run or self.name


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """An evaluation of models on prompts.

  Attributes:
    folder: its folder.
    about: how it was made.
    prompts: the number of prompts; 0 while the evaluation is unfinished.
    samples: the number of responses to each.
    reference: the name of the reference model.
    models: the models, the reference first.
    best_of_n: n, an upper bound of the KL in nats, and the reward of the best of n responses of the reference.
    laws: the laws of over-optimisation that were fitted: run, reward, law, a, b, and residual.
    shown: samples of the models.
  """

  folder: str
  about: About = About()
  prompts: int = 0
  samples: int = 0
  reference: str = ''
  models: tuple[Model, ...] = ()
  best_of_n: tuple[tuple[int, float, evaluator.Estimate], ...] = ()
  laws: tuple[tuple[str, ...], ...] = ()
  shown: Samples | None = None


class Failure(NamedTuple):
  """A run of a sweep that ended with an error."""

  name: str
  code: str
  reason: str


@dataclasses.dataclass(frozen=True)
class Sweep:
  """A sweep.

  Attributes:
    folder: its folder.
    about: how it was made.
    groups: the runs of each setting, which differ in their seeds.
    failures: the runs that failed.
  """

  folder: str
  about: About
  groups: Mapping[str, tuple[Run, ...]]
  failures: tuple[Failure, ...]

  @property
  def runs(self) -> tuple[Run, ...]:
    return tuple(run for members in self.groups.values() for run in members)


class Comparison(NamedTuple):
  """Tables of a comparison some of whose runs are gone: the first cell of a row names it."""

  folder: str
  names: tuple[str, ...]
  settings: tuple[tuple[str, ...], ...]
  metrics: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Report:
  """Everything that a page shows."""

  title: str
  runs: tuple[Run, ...]  # without those of sweeps
  evaluations: tuple[Evaluation, ...]
  sweeps: tuple[Sweep, ...]
  comparisons: tuple[Comparison, ...]
  notes: tuple[str, ...]  # what is missing

  @property
  def all_runs(self) -> tuple[Run, ...]:
    """The runs, and those of the sweeps."""
    return self.runs + tuple(run for sweep in self.sweeps for run in sweep.runs)
