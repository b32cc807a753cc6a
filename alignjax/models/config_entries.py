"""The entries of config.json that configure a model: which field each sets, its kind and its default."""

from collections.abc import Callable, Mapping
import math
from typing import Any, NamedTuple

_SHOWN = 80  # characters of a value in an error
_EXPECTED = {
  bool: 'true or false',
  int: 'a positive int',
  float: 'a positive float',
  tuple: 'a list of positive numbers',
}


class Setting(NamedTuple):
  """One field of `TransformerConfig` and the entries of config.json that hold it.

  A dot in a key denotes a nested entry. All keys are read; only the first is written. A setting without keys always has
  its default. `default` is the value that the family's own code uses if the entry is missing: a constant, or a function
  of the fields read so far. If it is None, the entry is required. A null entry counts as missing, unless the setting is
  `nullable`: then the field is None, and None is a valid default.
  """

  field: str
  keys: tuple[str, ...]
  kind: type[int] | type[float] | type[bool] | type[tuple]  # a tuple is a list of positive numbers
  default: int | float | bool | Callable[[Mapping[str, Any]], int | float] | None = None
  nullable: bool = False


def flatten(entries: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Flattens nested entries into dotted keys, so that one table covers all of them."""
  flat = {}
  for key, value in entries.items():
    nested = isinstance(value, dict) and value
    flat |= flatten(value, f'{prefix}{key}.') if nested else {prefix + key: value}
  return flat


def shown(value: Any) -> str:
  """A value as errors show it: long ones, such as lists with an item for each frequency, are cut."""
  text = repr(value)
  return text if len(text) <= _SHOWN else f'{text[: _SHOWN - 3]}...'


def read(setting: Setting, entries: Mapping[str, Any], fields: Mapping[str, Any]) -> Any:
  """The value of one setting.

  Args:
    setting: the setting.
    entries: the entries of config.json, flattened.
    fields: the fields read so far, from which defaults may follow.

  Raises:
    ValueError: an entry is missing, malformed or contradicts another one; the message names it.
  """
  found = {key: entries[key] for key in setting.keys if entries.get(key) is not None}
  if not found and setting.nullable and any(key in entries for key in setting.keys):
    return None
  if not found:
    if setting.default is None and not setting.nullable:
      raise ValueError(f'field {setting.keys[0]} is missing')
    return setting.default(fields) if callable(setting.default) else setting.default
  for key, value in found.items():
    if not _valid(value, setting.kind):
      raise ValueError(f'field {key}={shown(value)} must be {_EXPECTED[setting.kind]}')
  first = next(iter(found.values()))
  if any(value != first for value in found.values()):
    raise ValueError(f'fields contradict each other: {", ".join(f"{key}={shown(v)}" for key, v in found.items())}')
  return tuple(map(float, first)) if setting.kind is tuple else setting.kind(first)


def _valid(value: Any, kind: type) -> bool:
  if kind is tuple:
    return isinstance(value, list) and all(_valid(item, float) for item in value)
  if kind is bool or isinstance(value, bool):
    return kind is bool and isinstance(value, bool)
  if isinstance(value, int):
    return 0 < value < 2**31
  return kind is float and isinstance(value, float) and 0 < value < math.inf
