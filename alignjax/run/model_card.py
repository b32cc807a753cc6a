"""The model card of an export, README.md: what was trained, on what and how, as the Hugging Face Hub shows it."""

from collections.abc import Iterable, Iterator, Mapping
import os
import pathlib
import re
import textwrap
from typing import Any

import jax

from alignjax import objectives, stats
from alignjax.optim import bases
from alignjax.run import locations, settings
from alignjax.training import metrics

URL = 'https://github.com/alignjax/alignjax'
_SHOWN = (
  'objective',
  'data',
  'reference',
  'adapter',
  'adapter_from',
  'base_model',
  'optimizer',
  'schedule',
  'warmup',
  'batch_size',
  'max_prompt',
  'max_response',
  'template_arguments',
  'compute_dtype',
  'seed',
)
_WHAT = {
  'model': 'aligned',
  'model_average': 'aligned (moving average of the weights)',
  'adapter': 'aligned (LoRA adapter)',
}


def render(config: Mapping[str, Any], workdir: pathlib.Path, folder: str, step: int) -> str:
  """The text of README.md; '' on all processes but the first, which write nothing.

  It depends on the configuration and on the metrics of the run, but not on the machine: paths are shortened to names.

  Args:
    config: the configuration of the run as its checkpoints hold it, with the locations that the user gave.
    workdir: the folder of the run, from whose metrics the results are taken.
    folder: which export: 'model', 'model_average' or 'adapter'.
    step: the step of the exported parameters.
  """
  if jax.process_index() != 0:
    return ''
  scored = stats.reads_final(objectives.parse(config['objective']).needs)
  base, repository = _short(config['model']), _repository(config['model'])
  head = [
    '---',
    *([f'base_model: {repository}'] if repository else []),
    f'library_name: {"peft" if folder == "adapter" else "transformers"}',
    f'pipeline_tag: text-{"classification" if scored else "generation"}',
    'tags:',
    '- alignjax',
    '- preference-alignment',
    '---',
  ]
  body = [
    f'# {base}, {_WHAT[folder].replace("aligned", "reward model") if scored else _WHAT[folder]}',
    f'{base} trained with [alignjax]({URL}) for {step} steps.',
    '## Training',
    _table(('Setting', 'Value'), _settings(config)),
    *_results(workdir, step),
    *_references(f'{config["objective"]} {config["optimizer"]}'),
  ]
  return '\n'.join(head) + '\n\n' + '\n\n'.join(body) + '\n'


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
  for name in _SHOWN:
    value = config.get(name, '')  # a run of an earlier version may lack a setting
    values = value if isinstance(value, list | tuple) else [value]
    shown = [_short(each) if name in settings.PATHS else str(each) for each in values if each != '']
    if shown:
      yield name, ', '.join(f'`{each}`' for each in shown)


def _results(workdir: pathlib.Path, step: int) -> Iterator[str]:
  """The last metrics up to a step; nothing if they are missing."""
  file = workdir / 'metrics.jsonl'
  if not file.exists():
    return
  found: dict[str, float] = {}
  for record in metrics.read_jsonl(file):
    if record['step'] <= step:
      found |= {name: value for name, value in record.items() if name != 'step'}
  rows = [
    (name, f'{value:.6g}') for name, value in sorted(metrics.grouped(found).items()) if not name.startswith('time/')
  ]
  if rows:
    yield f'## Metrics after step {step}'
    yield _table(('Metric', 'Value'), rows)


def _references(expressions: str) -> Iterator[str]:
  """The papers of the objectives and optimizers in expressions, from their docstrings."""
  factories = {**objectives.OBJECTIVES, **bases.BASES}
  found = []
  for name in dict.fromkeys(re.findall(r'[a-z_]\w*(?=\()', expressions)):
    section = re.search(r'References:\n(.*?)(?=\n\s*\n|\Z)', getattr(factories.get(name), '__doc__', None) or '', re.S)
    if section:
      text = ' '.join(textwrap.dedent(section[1]).split())
      found.append(f'- `{name}`: {text}')
  if found:
    yield '## References'
    yield '\n'.join(found)


def _short(location: str) -> str:
  """The name of a repository on the Hub; otherwise the last part of a path. A form in front of it stays."""
  if repository := _repository(location):
    return repository
  form, colon, path = location.rpartition(':')
  return f'{form}{colon}{pathlib.PurePath(path).name}' if form not in ('gs', 's3') else pathlib.PurePath(path).name


def _repository(location: str) -> str:
  """The name of a repository on the Hub; '' if the location is a folder that is not in the cache of the Hub."""
  if (name := locations.name_of(location)) != location:
    return name
  return location.partition('@')[0] if locations.NAME.fullmatch(location) and not os.path.exists(location) else ''


def _table(head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
  """A Markdown table."""
  lines = [head, ('---', '---'), *rows]
  return '\n'.join('| ' + ' | '.join(cell.replace('|', '\\|') for cell in line) + ' |' for line in lines)
