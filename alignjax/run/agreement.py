"""Checks that all processes of a run were started alike, before they compute anything together.

Processes with different seeds, data or weights would train without an error, and save a mixture.
"""

from collections.abc import Mapping, Sequence
import json
from typing import Any

import jax

from alignjax.run import preparation, record, settings
from alignjax.training import compatibility, processes

# Locations may differ between hosts. The contents of models, data and imports are compared instead.
_LOCATIONS = (
  'model',
  'reference',
  'base_model',
  'data',
  'prompts',
  'eval_data',
  'imports',
  'reference_cache',
  'token_cache',
  'workdir',
)
_VERSIONS = ('alignjax', 'jax', 'jaxlib')
WORKDIR_ID = 'workdir id'


def check(config: settings.Config, prepared: preparation.Prepared, workdir_id: str = '') -> None:
  """Compares configuration, data, models, versions and work directory between the processes of a run.

  Args:
    config: the configuration of this process.
    prepared: what it has read.
    workdir_id: the id of the run as this process reads it from the work directory.

  Raises:
    ValueError: something differs. The message is the same on all processes, and names each value and its processes.
  """
  if jax.process_count() == 1:
    return
  mine = json.dumps({**statement(config, prepared), WORKDIR_ID: workdir_id})
  lines = differences([json.loads(text) for text in processes.gather_text(mine)])
  if lines:
    listed = '\n'.join(f'  {line}' for line in lines)
    raise ValueError(
      f'the processes of this run differ:\n{listed}\nStart all of them with the same command, versions and files, and '
      'with a --workdir that all of them share'
    )


def statement(config: settings.Config, prepared: preparation.Prepared) -> dict[str, Any]:
  """Everything that must be equal on all processes, by a name for messages."""
  flat = settings.flat(config)
  values = {f'config.{name}': value for name, value in flat.items() if name not in _LOCATIONS}
  values['config.reference_cache is set'] = bool(config.reference_cache)
  identity = record.identity(config, prepared)
  values |= {name: value for name, value in identity.items() if name not in flat or name == 'imports'}
  values['eval_data_fingerprint'] = prepared.held_out.data.fingerprint if prepared.held_out else ''
  installed = compatibility.versions()
  return values | {f'version of {name}': installed[name] for name in _VERSIONS}


def differences(statements: Sequence[Mapping[str, Any]]) -> list[str]:
  """Describes the entries that differ between processes, one line each.

  Args:
    statements: an entry for each process.
  """
  lines = []
  for name in dict.fromkeys(name for each in statements for name in each):
    holders: dict[str, list[int]] = {}
    for process, each in enumerate(statements):
      holders.setdefault(_show(each.get(name, '')), []).append(process)
    if len(holders) > 1:
      lines.append(f'{name}: ' + ', '.join(f'{value} on {_processes(held)}' for value, held in holders.items()))
  return lines


def _show(value: Any) -> str:
  return 'none' if value == '' else repr(value)


def _processes(numbers: Sequence[int]) -> str:
  """Formats numbers in ascending order: 'process 0', 'processes 0, 2-5'."""
  spans: list[list[int]] = []
  for number in numbers:
    if spans and spans[-1][-1] == number - 1:
      spans[-1].append(number)
    else:
      spans.append([number])
  text = ', '.join(str(span[0]) if len(span) == 1 else f'{span[0]}-{span[-1]}' for span in spans)
  return f'process{"es" if len(numbers) > 1 else ""} {text}'
