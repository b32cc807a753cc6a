"""The flags of the programs that take the configuration of a run: train, doctor and plan.

Every setting has a flag, --batch_size=16, also under the name --config.batch_size=16. A file sets many at once,
--config=path.yaml (or .json, .py), and flags override it. Without --config and --model, the settings are those that the
run in --workdir has recorded.
"""

from collections.abc import Sequence
import dataclasses
import os
from typing import Any

from absl import flags

from alignjax import paths
from alignjax.run import config_file, fields, process_flags, program_flags, settings

RECORD = 'config.json'  # the settings of a run, in its work directory
_PREFIX = 'config.'


@dataclasses.dataclass(frozen=True)
class ConfigFile:
  """Configuration."""

  path: str = fields.field(
    '',
    'File of settings: .yaml, .json (such as the config.json of a run), or .py with get_config(); file.py:ra2 calls '
    "get_config('ra2'). Flags override it. Empty: the defaults, or without --model those of the run in --workdir.",
    flag='config',
    path=paths.READ,
  )


@dataclasses.dataclass(frozen=True)
class Invocation:
  """The parsed command line: the configuration of the run, and how its processes connect."""

  file: ConfigFile = dataclasses.field(default_factory=ConfigFile, metadata={'flag': ''}, kw_only=True)
  config: settings.Config = dataclasses.field(default_factory=settings.Config, metadata={'flag': ''})
  processes: process_flags.Processes = dataclasses.field(default_factory=process_flags.Processes, metadata={'flag': ''})
  notes: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)  # lines to print before the run


def parse_flags[I](kind: type[I], argv: Sequence[str], values: flags.FlagValues) -> I:
  """The configuration of a run, and the other groups of settings that a command line describes.

  Args:
    kind: a dataclass like `Invocation`: with `file`, `config`, `notes` and further groups of settings.
    argv: the command line.
    values: the flag values in which to define the flags.

  Raises:
    ValueError: a setting is unknown, given twice with different values, or has an invalid value.
    flags.Error: a flag is unknown, or has an invalid value.
  """
  program_flags.define(kind, values)
  program_flags.define(settings.Config, values, prefix=_PREFIX)
  program_flags.parse(kind, argv, values)
  given = fields.nested(program_flags.given(kind, values))
  dotted = program_flags.given(settings.Config, values, prefix=_PREFIX)
  flat = _merged(fields.flat_dict(given.get('config', {})), dotted)
  path = fields.build(ConfigFile, given.get('file', {})).path or _recorded(flat)
  groups = [item for item in dataclasses.fields(kind) if dataclasses.is_dataclass(item.type)]
  others = {
    item.name: fields.build(item.type, given.get(item.name, {}))
    for item in groups
    if item.name not in ('file', 'config')
  }
  if not path:
    return kind(config=settings.from_dict(fields.nested(flat)), **others)
  loaded = config_file.load(path)
  base = settings.flat(loaded.config)
  config = settings.from_dict(fields.nested(base | flat))
  return kind(config=config, **others, notes=_overridden(path, loaded.names, base, settings.flat(config)))


def _merged(plain: dict[str, Any], dotted: dict[str, Any]) -> dict[str, Any]:
  """The settings of both spellings of flags, --batch_size and --config.batch_size."""
  for name in plain.keys() & dotted.keys():
    if plain[name] != dotted[name]:
      raise ValueError(f'--{name}={plain[name]} and --{_PREFIX}{name}={dotted[name]} differ: give one of them')
  return plain | dotted


def _recorded(given: dict[str, Any]) -> str:
  """The file in which the run in --workdir has recorded its settings; '' with --model."""
  workdir = paths.expand(given.get('workdir', ''))
  if not workdir or given.get('model'):
    return ''
  record = paths.path(workdir) / RECORD
  if not record.exists():
    raise ValueError(
      f'config.model is missing: give --model=... for a new run; there is none to resume in {workdir} (no {RECORD})'
    )
  return os.fspath(record)


def _overridden(path: str, names: frozenset[str], before: dict[str, Any], now: dict[str, Any]) -> tuple[str, ...]:
  """A line on the settings of a file that flags have changed."""
  changed = [name for name in before if name in names and before[name] != now[name]]
  listed = ', '.join(f'{name}={_show(now[name])} (not {_show(before[name])})' for name in changed)
  return (f'flags override {path}: {listed}',) if changed else ()


def _show(value: Any) -> str:
  return repr(value) if isinstance(value, str) else str(value)
