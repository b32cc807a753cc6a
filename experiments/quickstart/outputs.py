"""The results of a quickstart: a table on the terminal, summary.json and samples.md."""

from collections.abc import Mapping
import dataclasses
import importlib.metadata
import json
import platform
from typing import Any

import jax
import numpy as np
from rich import box
from rich import console as rich_console
from rich import table as rich_table

from alignjax.evaluation import evaluator
from alignjax.run import costs
from alignjax.sampling import strategies
from alignjax.training import instrumentation
from alignjax.types import Params
from experiments.quickstart import responses, shared

SHOWN = 16  # prompts in samples.md
VERSIONED = ('flax', 'grain', 'jax', 'jaxlib', 'numpy', 'optax', 'tokenizers', 'vaderSentiment')


def compare(before: responses.Drawn, after: responses.Drawn, kl: Mapping[str, evaluator.Estimate]) -> dict[str, Any]:
  """The results on held-out prompts.

  Args:
    before: the reference's responses.
    after: the aligned model's responses to the same prompts.
    kl: estimates of the KL between the two models, by name.
  """
  rise = evaluator.gain(after.rewards, before.rewards)
  estimates = {
    'gold_reward_before': evaluator.clustered_mean(before.rewards),
    'gold_reward_after': evaluator.clustered_mean(after.rewards),
    'gain': rise,
    'win_rate': evaluator.win_rate(after.rewards, before.rewards),
    **kl,
  }
  return {
    **{name: dataclasses.asdict(estimate) for name, estimate in estimates.items()},
    'gain_in_standard_errors': rise.mean / rise.error if rise.error else float('nan'),
    'response_tokens_before': float(before.batch.response_length.mean()),
    'response_tokens_after': float(after.batch.response_length.mean()),
  }


def report(
  setup: shared.Setup, objective: str, results: Mapping[str, Any], clock: costs.Clock, console: rich_console.Console
) -> dict[str, Any]:
  """Writes summary.json and prints it.

  Args:
    setup: what the stages share.
    objective: the name of the objective.
    results: the reproducible part of the summary: equal in all runs with the same settings.
    clock: has counted the time.
    console: where to print.

  Returns:
    The contents of summary.json.
  """
  summary = {
    'objective': objective,
    'results': results,
    'costs': {'seconds': clock.seconds(), 'peak_memory_gib': instrumentation.peak_memory_gib()},
    'settings': dataclasses.asdict(setup.settings) | {'compute_dtype': setup.config.compute_dtype},
    'versions': {'python': platform.python_version()} | {name: importlib.metadata.version(name) for name in VERSIONED},
  }
  text = json.dumps(_finite(summary), indent=2, allow_nan=False)
  (setup.workdir / 'summary.json').write_text(text + '\n', encoding='utf-8')
  _print(console, summary)
  console.print(
    f'{setup.workdir}: summary.json, figure.png, samples.md and the aligned model, model/',
    highlight=False,
    soft_wrap=True,
  )
  return summary


def _finite(value: Any) -> Any:
  """The value, with null for numbers that are not finite, such as the error over a single prompt."""
  if isinstance(value, Mapping):
    return {key: _finite(entry) for key, entry in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(entry) for entry in value]
  return value if not isinstance(value, float) or np.isfinite(value) else None


def _print(console: rich_console.Console, summary: Mapping[str, Any]) -> None:
  """Prints the results, which are reproducible, and the costs, which are not."""
  results = summary['results']
  table = rich_table.Table(title=f'{summary["objective"]}, on held-out prompts', box=box.SIMPLE, title_justify='left')
  table.add_column('')
  table.add_column('before', justify='right')
  table.add_column('after', justify='right')
  before, after, gain = (_estimate(results[name]) for name in ('gold_reward_before', 'gold_reward_after', 'gain'))
  table.add_row('gold reward', before, after)
  table.add_row('gain, paired by prompt', '', gain)
  table.add_row('gain in standard errors', '', f'{results["gain_in_standard_errors"]:.1f}')
  table.add_row('win rate against the reference', '', _estimate(results['win_rate']))
  table.add_row('KL to the reference, nats', '', _estimate(results['kl']))
  if results.get('reward_accuracy') is not None:  # only of pairs, and some objectives define no reward
    table.add_row('reward accuracy, held-out pairs', '', f'{results["reward_accuracy"]:.3f}')
  table.add_row('response tokens', *(f'{results[f"response_tokens_{when}"]:.1f}' for when in ('before', 'after')))
  console.print(table)
  spent = summary['costs']
  stages = ', '.join(f'{stage} {seconds:.0f}' for stage, seconds in spent['seconds'].items() if stage != 'total')
  total, memory = spent['seconds']['total'], spent['peak_memory_gib']
  console.print(f'{total:.0f} s ({stages}), peak memory {memory:.1f} GiB', highlight=False, soft_wrap=True)


def _estimate(entry: Mapping[str, float]) -> str:
  return f'{entry["mean"]:.3f} ± {entry["error"]:.3f}'


def title(objective: str, before: responses.Drawn, after: responses.Drawn) -> str:
  """The title of the figure and of the samples."""
  return f'{objective}: gold reward {before.rewards.mean():.2f} → {after.rewards.mean():.2f}'


def write_samples(setup: shared.Setup, heading: str, held_out: list[str], params: Params) -> None:
  """Writes samples.md: greedy answers to held-out prompts before and after training, with their gold rewards."""
  shown = held_out[:SHOWN]
  responder = setup.responder(len(shown), 1, strategies.greedy())
  sides = [responder.draw(side, shown, jax.random.key(0)) for side in (setup.reference, params)]
  lines = [
    f'# {heading}',
    '',
    'Greedy answers to held-out prompts, cut off at the length limit, with their gold reward.',
    '',
    '| prompt | before | after |',
    '| --- | --- | --- |',
  ]
  for row, prompt in enumerate(shown):
    cells = [prompt, *(f'{side.texts[row][0]} **({side.rewards[row, 0]:+.2f})**' for side in sides)]
    lines.append('| ' + ' | '.join(' '.join(cell.replace('|', '\\|').split()) for cell in cells) + ' |')
  (setup.workdir / 'samples.md').write_text('\n'.join(lines) + '\n', encoding='utf-8')
