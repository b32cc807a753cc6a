"""Evaluates models on prompts: rewards, win rates, lengths, diversity, and the KL from a reference model.

  alignjax evaluate --models=runs/a/model,runs/b/model --reference=sft --prompts=test.jsonl --reward='vader()' \\
    --samples=4 --out=runs/eval
  alignjax evaluate --models=runs/a/checkpoints --reference=sft --prompts=test.jsonl --reward='vader()' --out=runs/curve

Every model draws responses to the prompts, and so does the reference. If the rows of --prompts have responses, as in
the form `supervised`, models are also compared with these. With --judge, a judge compares the responses too, in both
orders. Standard errors are clustered by prompt. A folder named `checkpoints` means all checkpoints of its run, to which
the laws of over-optimisation are fitted. With --proxy, they are also fitted to the reward that was trained on.

Writes evaluation.json, evaluation.md, evaluation.png and samples.jsonl into --out, and what has been drawn and measured
into parts/. samples.jsonl has the first response of each model to each prompt.
The same command continues where it was stopped. Give a reward or a model more, and only what is missing is computed.

Exit codes: 0 done, 1 an error in flags, models, prompts, rewards or judges.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import json
import math
import pathlib
from typing import Any

import jax
import numpy as np

from alignjax import files, judges, paths, rewards
from alignjax.commands import data_lengths, program
from alignjax.data.reading import json_rows, rows
from alignjax.evaluation import evaluator, frontier, over_optimisation, summary
from alignjax.run import about, evaluating, fields, process_flags, prompt_settings, sampling_settings, user_code

OWN = {'greedy': False, 'temperature': 1.0, 'top_k': 0, 'top_p': 1.0, 'strategy': ''}  # the model's own distribution


@dataclasses.dataclass(frozen=True)
class Settings(sampling_settings.SamplingSettings, prompt_settings.PromptSettings, user_code.UserCode):
  """Evaluation."""

  models: tuple[str, ...] = fields.field(
    (),
    'Models: folders in Hugging Face format, names on the Hub, or runs/<name>/checkpoints for all of a run.',
    required=True,
    path=paths.READ,
  )
  reference: str = fields.field(
    '', 'Reference model: a folder in Hugging Face format, or a name on the Hub.', required=True, path=paths.READ
  )
  proxy: str = fields.field('', 'Reward that the models were trained on, if it is another one; empty: none.')
  judge: str = fields.field(
    '', 'Judge of responses against those of the reference, such as judge("models/qwen"); empty: none.'
  )
  second_judge: str = fields.field('', 'Another judge, whose agreement with the first is reported; empty: none.')
  out: str = fields.field('', 'Folder for the results.', required=True, path=paths.DISK)
  samples: int = fields.field(4, 'Number of responses to each prompt.', at_least=1)
  processes: process_flags.Processes = dataclasses.field(default_factory=process_flags.Processes, metadata={'flag': ''})

  def __post_init__(self):
    fields.check(self)


def run(settings: Settings) -> None:
  """Measures the models, and writes the results.

  Raises:
    ValueError: the settings, a model, the prompts, a reward or a judge cannot be used.
  """
  data_lengths.require_matplotlib()
  settings = sampling_settings.settled(settings)
  plan = _plan(settings)
  models = [each for location in settings.models for each in evaluating.subjects(location, '--models')]
  if len({each.name for each in models}) < len(models):
    raise ValueError(f'--models={",".join(settings.models)}: a model is named twice')
  reference = evaluating.subject(settings.reference, '--reference')
  folder = pathlib.Path(settings.out)
  announce = print if jax.process_index() == 0 else lambda message: None
  evaluation = evaluating.Evaluation(plan, reference, folder / 'parts', announce)
  try:
    of_reference = evaluation.measure(reference)
    given = evaluation.given()
    measured = [evaluation.measure(model) for model in models]
  finally:
    evaluation.close()
  if jax.process_index() == 0:
    _write(folder, of_reference, measured, given)
    _write_samples(folder / 'samples.jsonl', plan.prompts, [of_reference, *measured])
    command = about.command('evaluate', Settings, fields.flat(settings))
    about.write(folder, command=command, devices=about.devices())
    print((folder / 'evaluation.md').read_text(encoding='utf-8'))


def _plan(settings: Settings) -> evaluating.Plan:
  if settings.second_judge and not settings.judge:
    raise ValueError(f'--second_judge={settings.second_judge}: give --judge too')
  given = {'reward': settings.reward, 'proxy': settings.proxy}
  given_judges = {'judge': settings.judge, 'second_judge': settings.second_judge}
  chosen = {name: getattr(settings, name) for name in ('greedy', 'temperature', 'top_k', 'top_p', 'strategy')}
  made_of = {
    name: getattr(settings, name)
    for name in ('samples', 'max_prompt', 'max_new_tokens', 'template_arguments', 'seed', 'compute_dtype')
  }
  return evaluating.Plan(
    prompts=prompt_settings.read(settings)[0],
    options=sampling_settings.options(settings),
    own_distribution=chosen == OWN,
    rewards={name: fields.naming(f'--{name}', rewards.parse, text) for name, text in given.items() if text},
    judges={name: fields.naming(f'--{name}', judges.parse, text) for name, text in given_judges.items() if text},
    compute_dtype=settings.compute_dtype,
    made_of=made_of | chosen | {'imports': user_code.fingerprints(settings.imports)},
  )


def _write(
  folder: pathlib.Path,
  reference: summary.Measured,
  models: Sequence[summary.Measured],
  given: np.ndarray | None,
) -> None:
  """Writes evaluation.json, evaluation.md and evaluation.png."""
  summaries = {each.name: summary.summarise(each, reference, given) for each in (reference, *models)}
  best = summary.best_of_reference(reference)
  runs = {run: list(of_run) for run, of_run in itertools.groupby(models, lambda each: each.run) if run}
  fits = {run: summary.over_optimisation_of(checkpoints, reference) for run, checkpoints in runs.items()}
  content = {
    'reference': reference.name,
    'prompts': len(reference.ids),
    'samples': len(reference.ids[0]),
    'models': summaries,
    'best_of_n': best,
    'over_optimisation': {run: [_fit(each) for each in of_run] for run, of_run in fits.items()},
  }
  files.replace(folder / 'evaluation.json', (json.dumps(_plain(content), indent=2) + '\n').encode())
  files.replace(folder / 'evaluation.md', markdown(summaries, best, fits).encode())
  draw(folder / 'evaluation.png', [reference, *models], summaries, best)


def _write_samples(path: pathlib.Path, prompts: Sequence[rows.Example], models: Sequence[summary.Measured]) -> None:
  """Writes one line for each prompt: the first response of each model, and its reward."""
  lines = []
  for b, example in enumerate(prompts):
    responses = {
      each.name: {'response': each.texts[b][0], 'reward': float(each.rewards['reward'][b, 0])} for each in models
    }
    row = json_rows.of_prompt(example.prompt) | {'responses': responses}
    lines.append(json.dumps(row, ensure_ascii=False) + '\n')
  files.replace(path, ''.join(lines).encode('utf-8', 'backslashreplace'))


def _fit(found: Mapping[str, Any]) -> dict[str, Any]:
  fit: over_optimisation.Fit = found['fit']
  return {
    'of': found['of'],
    'law': fit.law,
    'a': fit.a,
    'b': fit.b,
    'rms': fit.rms,
    'distance': fit.distance.tolist(),
    'residual': fit.residual.tolist(),
  }


def _plain(value: Any) -> Any:
  """The value in JSON types; numbers that are not finite become null."""
  if isinstance(value, evaluator.Estimate):
    return _plain({'mean': value.mean, 'error': value.error})
  if isinstance(value, Mapping):
    return {key: _plain(inner) for key, inner in value.items()}
  if isinstance(value, list):
    return [_plain(inner) for inner in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown(
  summaries: Mapping[str, summary.Summary],
  best: Sequence[Mapping[str, Any]],
  fits: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
  """The tables of models, of best-of-n, and of the laws of over-optimisation."""
  columns = summary.columns(summaries.values())
  rows = [[name, *(_cell(found.get(key)) for key in columns)] for name, found in summaries.items()]
  tables = ['## Models', _table(['', *columns.values()], rows)]
  if best:
    rows = [[str(each['n']), *(_cell(each[name]) for name in ('reward', 'proxy', 'kl'))] for each in best]
    tables += ['## Best of n samples of the reference', _table(['n', 'reward', 'proxy', 'KL, nats, at most'], rows)]
  rows = [
    [run, each['of'], each['fit'].law, *map(_cell, (each['fit'].a, each['fit'].b, each['fit'].rms))]
    for run, of_run in fits.items()
    for each in of_run
  ]
  if rows:
    laws = 'Gain over the reference, with d = √KL: d (a - b d) for `best_of_n`, d (a - b log d) for `rl`.'
    tables += ['## Over-optimisation', laws, _table(['run', 'of', 'law', 'a', 'b', 'residual, rms'], rows)]
  return '\n\n'.join(tables) + '\n'


def _cell(value: evaluator.Estimate | float | None) -> str:
  return '' if value is None else str(value) if isinstance(value, evaluator.Estimate) else f'{value:.3f}'


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
  return '\n'.join(f'| {" | ".join(line)} |' for line in (head, ['---'] * len(head), *lines))


def draw(
  path: pathlib.Path,
  models: Sequence[summary.Measured],
  summaries: Mapping[str, summary.Summary],
  best: Sequence[Mapping[str, Any]],
) -> None:
  """Plots the reward against √KL: a curve for the checkpoints of each run, a point for each other model with a KL."""
  models = [each for each in models if each.kl]
  if not models:
    return
  matplotlib, figure = data_lengths.require_matplotlib()
  with matplotlib.rc_context(data_lengths.STYLE):
    picture = figure.Figure(figsize=(7, 4.5), layout='constrained')
    axes = picture.subplots()
    for label, group in itertools.groupby(models, lambda each: each.run or each.name):
      frontier.draw(axes, [summary.point(each, summaries[each.name]) for each in group], label)
    if best:
      axes.plot(
        [math.sqrt(each['kl']) for each in best],
        [each['reward'].mean for each in best],
        linestyle='--',
        marker='.',
        color='gray',
        label='best of n of the reference',
      )
    axes.set_ylabel('reward')
    axes.legend()
    picture.savefig(path, dpi=120)
  picture.clear()


PROGRAM = program.Program('evaluate', __doc__, Settings, run, join=process_flags.join, leave=process_flags.leave)
