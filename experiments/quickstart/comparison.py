"""Eight methods on the quickstart's task: gold reward against the distance from SmolLM2. About two hours on two cores.

  python -m experiments.quickstart.comparison                 --jobs=2 runs two commands at a time
  alignjax report runs/comparison

SmolLM2-135M-Instruct answers everyday prompts, and VADER sentiment is the gold reward. DPO, IS-DPO, SimPO, alpha-DPO,
TDPO and Ra-DPO (CVaR of each token, and nested over tokens) train on the best and the worst of eight answers of the
reference to each prompt. All of them share these answers, 960 calls of the reward for each seed. RLOO draws its own:
in each round, four answers to some of the same prompts, 576 calls in all. Each method trains a LoRA adapter of rank 16
with the same optimizer.

Everything is done by the commands of alignjax: `label` draws and labels, `sweep` trains, `evaluate` draws answers to
held-out prompts from two checkpoints of each run and estimates KL(policy || reference). The folder --workdir receives

  figure.png     gold reward against the square root of the KL
  table.md       gold reward, win rate and KL, and the gold reward at equal KL
  summary.json   every value, with the minutes of each method
  method=...     the runs, as of a sweep
  evaluation_... the evaluations of each seed

Fixed beforehand: every method has one setting, its objective's usual coefficients, and nothing is selected. Seeds
change the reference's answers and thus the pairs, the order, the adapter's start and the answers that are evaluated;
prompts stay the same. The gold reward at equal KL is interpolated between the reference and the checkpoints, linearly
in the square root of the KL, for each seed, at the largest KL that every run of a method and of DPO reaches. A method
counts as above or below DPO there if the difference, paired by seed, is larger than two standard errors. Seven
comparisons at two standard errors of three seeds leave room for chance.

The same command resumes a comparison that was stopped. Results at this scale may not hold for large models.
"""

from collections.abc import Sequence
from concurrent import futures
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

from rich import console as rich_console

from alignjax import exit_codes, files, objectives, paths, stats
from alignjax.commands import program
from alignjax.run import about, arithmetic, fields, grids, smollm2, sweeping
from experiments.quickstart import comparison_report as report
from experiments.quickstart import figures, prompts, responses

ON_POLICY = 'RLOO'
METHODS = {
  report.BASE: 'dpo(beta=0.1)',
  'IS-DPO': 'importance_weighted(dpo(beta=0.1))',
  'SimPO': 'simpo(beta=2.0, gamma=0.5)',
  'alpha-DPO': 'alpha_dpo(beta=2.0, gamma=0.5, alpha=0.2)',
  'TDPO': 'tdpo(beta=0.1, alpha=0.5)',
  'Ra-DPO': 'ra_dpo(risk=cvar(0.9), beta=0.1, alpha=0.5)',
  'nested Ra-DPO': 'ra_dpo(risk=cvar(0.9), beta=0.1, alpha=0.5, off_path=0.9)',
  ON_POLICY: 'rlhf(beta=0.05)',
}
COMMAND = 'python -m experiments.quickstart.comparison'
TRAIN, HELD_OUT = 'prompts.jsonl', 'prompts_held_out.jsonl'


@dataclasses.dataclass(frozen=True)
class Settings:
  """Comparison."""

  workdir: str = fields.field('runs/comparison', 'Folder for the results.', path=paths.DISK)
  model: str = fields.field('', 'Folder of another model, in Hugging Face layout. Empty: SmolLM2-135M-Instruct.')
  reward: str = fields.field('vader()', 'Expression of the gold reward.')
  methods: tuple[str, ...] = fields.field(tuple(METHODS), 'Methods to compare; DPO is one of them.')
  seeds: int = fields.field(3, 'Number of seeds.', at_least=2)
  train_prompts: int = fields.field(120, 'Number of prompts to train on.', at_least=1)
  held_out_prompts: int = fields.field(40, 'Number of prompts on which models are evaluated.', at_least=1)
  draws: int = fields.field(8, 'Number of answers of the reference to each training prompt.', at_least=2)
  samples: int = fields.field(
    4, 'Number of answers to each held-out prompt, and to each prompt of a round.', at_least=2
  )
  max_new_tokens: int = fields.field(32, 'Longest answer, in tokens.', at_least=2)
  adapter: str = fields.field('lora(rank=16, alpha=32)', 'Expression of the adapter to train.')
  optimizer: str = fields.field('adamw(5e-4)', 'Expression of the optimizer.')
  batch_size: int = fields.field(8, 'Pairs per update.', at_least=1)
  updates: int = fields.field(24, 'Number of updates on pairs.', at_least=2)
  rounds: int = fields.field(12, 'Number of rounds of RLOO, one update each.', at_least=2)
  prompts_per_round: int = fields.field(12, 'Number of prompts per round.', at_least=1)
  compute_dtype: str = fields.field(
    arithmetic.AUTO, 'Type of activations. auto: the faster of the two on this machine.', choices=arithmetic.CHOICES
  )
  jobs: int = fields.field(1, 'Commands at a time.', at_least=1)

  def __post_init__(self):
    fields.check(self)
    if unknown := [name for name in self.methods if name not in METHODS]:
      raise ValueError(f'--methods: there is no method {unknown[0]!r}; there are {", ".join(METHODS)}')
    if report.BASE not in self.methods:
      raise ValueError(f'--methods={",".join(self.methods)}: {report.BASE} must be one of them, to compare with')


@dataclasses.dataclass(frozen=True)
class Comparison:
  """The commands of a comparison."""

  settings: Settings
  folder: pathlib.Path
  model: str  # folder of the reference

  @property
  def _drawing(self) -> list[str]:
    own = self.settings
    return [
      f'--reward={own.reward}', f'--max_new_tokens={own.max_new_tokens}', f'--compute_dtype={own.compute_dtype}',
    ]  # fmt: skip

  def label(self, seed: int) -> list[str]:
    """The command that draws the reference's answers of a seed and writes its pairs."""
    return [
      'label', f'--model={self.model}', f'--prompts={self.folder / TRAIN}', *self._drawing,
      f'--samples={self.settings.draws}', f'--seed={seed}', f'--out={self.pairs(seed)}',
    ]  # fmt: skip

  def pairs(self, seed: int) -> pathlib.Path:
    """The pairs of a seed."""
    return self.folder / f'pairs_{seed}.jsonl'

  def points(self) -> list[grids.Point]:
    """All runs, seed by seed, so that a comparison that is stopped early has whole seeds."""
    return [self.point(method, seed) for seed in range(self.settings.seeds) for method in self.settings.methods]

  def point(self, method: str, seed: int) -> grids.Point:
    """One run."""
    own = self.settings
    arguments = [
      f'--model={self.model}', f'--adapter={own.adapter}', f'--objective={METHODS[method]}',
      f'--optimizer={own.optimizer}', f'--seed={seed}', f'--chunk={responses.CHUNK}', '--log_every=5', '--doctor=off',
      f'--compute_dtype={own.compute_dtype}', '--watch.step=0', '--keep=2', '--save_minutes=0',
      f'--save_every={-(-self.steps(method) // 2)}', f'--steps={self.steps(method)}',
    ]  # fmt: skip
    if method == ON_POLICY:
      arguments += [
        f'--prompts={self.folder / TRAIN}', f'--reward={own.reward}', f'--samples={own.samples}',
        f'--prompts_per_round={own.prompts_per_round}', f'--max_new_tokens={own.max_new_tokens}',
      ]  # fmt: skip
    else:
      # An answer that was cut off while sampling is trained without an end token.
      arguments += [
        f'--data={self.pairs(seed)}', f'--batch_size={own.batch_size}', f'--max_response={own.max_new_tokens}',
        '--long_responses=cut',
      ]  # fmt: skip
      if stats.missing_reference(objectives.parse(METHODS[method]).needs, ()):
        arguments.append(f'--reference_cache={self.folder / f"reference_{seed}"}')
    return grids.Point({'method': method, grids.SEED: str(seed)}, arguments)

  def steps(self, method: str) -> int:
    """The number of updates of a run."""
    return self.settings.rounds if method == ON_POLICY else self.settings.updates

  def evaluate(self, seed: int) -> list[str]:
    """The command that measures both checkpoints of all runs of a seed."""
    runs = [self.folder / self.point(method, seed).name for method in self.settings.methods]
    return [
      'evaluate', f'--models={tuple(str(run / "checkpoints") for run in runs)!r}', f'--reference={self.model}',
      f'--prompts={self.folder / HELD_OUT}', *self._drawing, f'--samples={self.settings.samples}',
      f'--seed={1000 + seed}', f'--batch_size={self.settings.held_out_prompts}', f'--out={self.evaluation(seed)}',
    ]  # fmt: skip

  def evaluation(self, seed: int) -> pathlib.Path:
    """The folder with the evaluation of a seed."""
    return self.folder / f'evaluation_{seed}'


def run(settings: Settings) -> int:
  """Runs all commands that have not finished, and writes the report. Returns the exit code.

  Raises:
    ValueError: the folder holds a comparison with other settings, or the model is missing.
  """
  figures.drawing()
  folder, console, start = pathlib.Path(settings.workdir), rich_console.Console(), time.monotonic()
  folder.mkdir(parents=True, exist_ok=True)
  settings = _kept(settings, folder / 'settings.json')
  comparison = Comparison(settings, folder, settings.model or str(smollm2.convert(folder / 'base')))

  def announce(line: str) -> None:
    console.print(f'{(time.monotonic() - start) / 60:5.1f} min  {line}', highlight=False, soft_wrap=True)

  train, held_out = prompts.split(settings.train_prompts, settings.held_out_prompts)
  for name, texts in ((TRAIN, train), (HELD_OUT, held_out)):
    lines = [json.dumps({'prompt': responses.messages(text)}, ensure_ascii=False) + '\n' for text in texts]
    files.replace(folder / name, ''.join(lines).encode())
  for seed in range(settings.seeds):
    if not comparison.pairs(seed).exists():
      announce(f'label the answers of seed {seed}')
      _call(comparison.label(seed), folder / f'label_{seed}.log')
  about.write(folder, command=about.command('', Settings, fields.flat(settings)).replace('alignjax', COMMAND, 1))
  if sweeping.run(comparison.points(), folder, settings.jobs, announce):
    return exit_codes.REFUSED

  def evaluate(seed: int) -> None:
    announce(f'evaluate seed {seed}')
    _call(comparison.evaluate(seed), folder / f'evaluate_{seed}.log')

  with futures.ThreadPoolExecutor(settings.jobs) as pool:
    list(pool.map(evaluate, range(settings.seeds)))
  evaluations = [report.read(comparison.evaluation(seed)) for seed in range(settings.seeds)]
  runs = {
    method: [folder / comparison.point(method, seed).name for seed in range(settings.seeds)]
    for method in settings.methods
  }
  curves = [
    report.curve(method, METHODS[method], list(zip(evaluations, map(str, of_method), strict=True)))
    for method, of_method in runs.items()
  ]
  minutes = {method: list(map(report.minutes, of_method)) for method, of_method in runs.items()}
  found = report.write(folder, console, curves, minutes)
  _write_summary(folder / 'summary.json', settings, found)
  announce(f'wrote figure.png, table.md and summary.json to {folder}')
  return exit_codes.DONE


def _setting(settings: Settings) -> dict[str, Any]:
  """The settings that the results depend on; the model by its name alone."""
  values = dataclasses.asdict(settings) | {'model': pathlib.Path(settings.model).name}
  return {name: value for name, value in values.items() if name not in ('workdir', 'jobs')}


def _kept(settings: Settings, path: pathlib.Path) -> Settings:
  """The settings of the comparison that the folder holds, or else these, which are written down.

  Raises:
    ValueError: it holds a comparison with other settings. Only the type of activations may be left to the machine.
  """
  own = json.loads(json.dumps(_setting(settings)))
  kept = json.loads(path.read_bytes()) if path.exists() else own
  if settings.compute_dtype == arithmetic.AUTO and kept is not own:
    own['compute_dtype'] = kept.get('compute_dtype')
  if changed := [name for name in own if kept.get(name) != own[name]]:
    name = changed[0]
    raise ValueError(
      f'--{name}={own[name]}: {path.parent} holds a comparison with {kept.get(name)}; give the same settings, or '
      'another --workdir'
    )
  own['compute_dtype'] = arithmetic.resolve(own['compute_dtype'])
  files.replace(path, (json.dumps(own, indent=1) + '\n').encode())
  return dataclasses.replace(settings, compute_dtype=own['compute_dtype'])


def _call(arguments: Sequence[str], log: pathlib.Path) -> None:
  """Runs a command of alignjax; its output goes to a file.

  Raises:
    ValueError: the command fails.
  """
  with log.open('wb') as stream:
    argv = [sys.executable, '-m', 'alignjax', *arguments]
    code = subprocess.run(argv, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, env=os.environ).returncode
  if code:
    raise ValueError(f'alignjax {arguments[0]} failed with exit code {code}: {sweeping.last_error(log)}')


def _write_summary(path: pathlib.Path, settings: Settings, found: dict[str, Any]) -> None:
  total = sum(minutes for of_method in found['minutes'].values() for minutes in of_method)
  summary = {'setting': _setting(settings), **found, 'costs': {'seconds': {'total': 60 * total}}}
  files.replace(path, (json.dumps(summary, indent=1) + '\n').encode())


PROGRAM = program.Program('comparison', __doc__, Settings, run)

if __name__ == '__main__':
  program.start(PROGRAM)
