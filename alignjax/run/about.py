"""Records how results were made, in about.json beside them: the command, versions, devices, findings of the doctor."""

from collections.abc import Mapping
import json
import pathlib
import platform
import shlex
from typing import Any

import jax

from alignjax import files
from alignjax.run import fields, help_text
from alignjax.training import compatibility

FILE = 'about.json'


def command(program: str, kind: type, values: Mapping[str, Any]) -> str:
  """The command line, as typed in a shell, of the settings that are not the defaults.

  Args:
    program: the name after `alignjax`.
    kind: the dataclass of the settings.
    values: the settings by dotted name; lists may be tuples or, from JSON, lists. Settings of other versions of
      alignjax are left out.
  """
  defaults = fields.flat(kind())
  given = {name: _tuples(value) for name, value in values.items()}
  changed = [leaf for leaf in fields.leaves(kind) if given.get(leaf.name, defaults[leaf.name]) != defaults[leaf.name]]
  arguments = [
    f'--{leaf.flag}={help_text.show(given[leaf.name]) if given[leaf.name] not in ((), "") else ""}' for leaf in changed
  ]
  return ' '.join(['alignjax', program, *map(quoted, arguments)])


def quoted(argument: str) -> str:
  """An argument as typed in a shell: `--optimizer='sgd(0.1)'`."""
  name, equals, value = argument.partition('=')
  if not equals or shlex.quote(name) != name:
    return shlex.quote(argument)
  plain = "'" in value and not set(value) & set('"$`\\!')  # easier to read in double quotes
  return f'{name}="{value}"' if plain else f'{name}={shlex.quote(value)}'


def _tuples(value: Any) -> Any:
  return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def devices() -> str:
  """The devices of this run."""
  count = jax.process_count()
  return f'{jax.device_count()} x {jax.devices()[0].device_kind}' + (f', {count} processes' if count > 1 else '')


def write(folder: pathlib.Path, **entries: Any) -> None:
  """Writes the versions of packages, and entries in JSON types. Call it on one process alone; it uses no device."""
  content = {**entries, 'versions': {'python': platform.python_version(), **compatibility.versions()}}
  files.replace(folder / FILE, (json.dumps(content, indent=2) + '\n').encode())
