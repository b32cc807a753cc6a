"""Checks the values of a row. Each function returns the value as `Example` stores it, or raises `Refused`.

`name` is the path of the value within its row, such as `prompt[0].content`. Error messages quote it.
"""

from collections.abc import Callable, Collection, Mapping
import json
import math
import re
from typing import Any

from alignjax.data.reading import rows

INDEX = re.compile(r'\[\d+\]')
NUMBER = re.compile(r'[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?')
WORDS = {  # labels as text
  **dict.fromkeys(('true', 'yes', 'desirable', 'good', 'chosen', 'preferred'), 1.0),
  **dict.fromkeys(('false', 'no', 'undesirable', 'bad', 'rejected', 'dispreferred'), 0.0),
}
KINDS = {
  dict: 'an object',
  list: 'a list',
  str: 'a string',
  bool: 'a boolean',
  int: 'a number',
  float: 'a number',
  type(None): 'null',
}


class Sparse(dict):
  """An object whose null members were left out: null means absent in every format."""

  nulls: frozenset[str] = frozenset()  # the names of those members


class Cell(str):
  """A cell of a CSV or TSV file. Each check parses it as the type it expects: a number, a boolean or JSON."""


def text(value: Any, name: str) -> str:
  """A string that UTF-8 can encode. (JSON escapes can spell half a surrogate pair.)"""
  if not isinstance(value, str):
    raise rows.Refused('wrong_type', f"field '{name}': must be a string, not {kind(value)}")
  if not value.isascii():
    try:
      value.encode('utf-8')
    except UnicodeEncodeError as error:
      raise rows.Refused(
        'lone_surrogate',
        f"field '{name}': character {error.start + 1} is half of a surrogate pair; fix the escapes in the text",
      ) from None
  return str(value)  # a plain string, even if it was a cell


def filled(value: Any, name: str, what: str) -> str:
  """A string with more than white space in it; `what` is 'response' or 'prompt'."""
  value = text(value, name)
  if not value or value.isspace():
    raise rows.Refused(f'empty_{what}', f"field '{name}': the {what} is empty; fill it in or remove the row")
  return value


def number(value: Any, name: str, low: float = -rows.FLOAT32_MAX, high: float = rows.FLOAT32_MAX) -> float:
  """A number in [low, high], finite in float32."""
  if isinstance(value, Cell):
    value = _number_of_cell(value)
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise rows.Refused(
      'wrong_type', f"field '{name}': must be a number, not {kind(value)}; omit the field if it has no value"
    )
  # Compare integers before converting them: float() fails on very large ones.
  if (isinstance(value, float) and not math.isfinite(value)) or not -rows.FLOAT32_MAX <= value <= rows.FLOAT32_MAX:
    raise rows.Refused('not_finite', f"field '{name}': must be finite in float32")
  if not low <= value <= high:
    unbounded = -rows.FLOAT32_MAX, rows.FLOAT32_MAX
    wanted = 'at most 0' if low == unbounded[0] else 'at least 0' if high == unbounded[1] else f'in [{low:g}, {high:g}]'
    raise rows.Refused('out_of_range', f"field '{name}': {value:g} is out of range; it must be {wanted}")
  return float(value)


def truth(value: Any, name: str) -> float:
  """A boolean, a word for one, or the probability that it is true, as a float in [0, 1]."""
  if isinstance(value, str):
    word = value.strip().lower()
    if word in WORDS:
      return WORDS[word]
    if not NUMBER.fullmatch(word):
      raise rows.Refused(
        'wrong_type', f"field '{name}': {quote(value)} is no label; use true or false, or a number in [0, 1]"
      )
    value = float(word)
  return float(value) if isinstance(value, bool) else number(value, name, 0.0, 1.0)


def items(value: Any, name: str) -> list[Any]:
  """A list."""
  value = of_cell(value, name, 'list')
  if not isinstance(value, list):
    raise rows.Refused('wrong_type', f"field '{name}': must be a list, not {kind(value)}")
  return value


def mapping(value: Any, name: str, names: Collection[str], unused: Collection[str]) -> dict[str, Any]:
  """An object whose fields are all in `names` or `unused`."""
  value = of_cell(value, name, 'object')
  if not isinstance(value, dict):
    raise rows.Refused('wrong_type', f"field '{name}': must be an object with {', '.join(names)}, not {kind(value)}")
  known(value, names, unused, name)
  return value


def of_cell(value: Any, name: str, what: str) -> Any:
  """Parses a cell as JSON; other values pass through."""
  if not isinstance(value, Cell):
    return value
  try:
    return parse_json(value)
  except json.JSONDecodeError as error:
    raise rows.Refused(
      'wrong_type', f"field '{name}': must be a JSON {what}; the JSON is invalid at character {error.pos + 1}"
    ) from None
  except rows.Refused as problem:
    raise rows.Refused(problem.reason, f"field '{name}': {problem.message}") from None


def numbers(value: Any, name: str, count: int, most: float = rows.FLOAT32_MAX) -> tuple[float, ...]:
  """A list of `count` numbers, each at most `most`."""
  value = items(value, name)
  if len(value) != count:
    raise rows.Refused(
      'wrong_length', f"field '{name}': has {len(value)} numbers for {count} responses; give one per response"
    )
  return tuple(number(each, f'{name}[{i}]', high=most) for i, each in enumerate(value))


def require(fields: Mapping[str, Any], names: Collection[str], where: str = '') -> None:
  """Raises unless all of `names` are present; `where` is the path of the object within the row."""
  for name in names:
    if name not in fields:
      place = f'{where}.{name}' if where else name
      what = 'null or empty' if name in getattr(fields, 'nulls', ()) else 'missing'
      raise rows.Refused('missing_field', f"field '{place}' is {what}; required fields: {', '.join(names)}")


def known(fields: Mapping[str, Any], names: Collection[str], ignored: Collection[str], where: str = '') -> None:
  """Raises unless every field is one of `names` or `ignored`.

  Args:
    fields: the object.
    names: the fields that are read.
    ignored: names of fields, or paths such as `prompt[].weight`.
    where: the path of the object within the row; empty for the row itself.
  """
  path = INDEX.sub('[]', where) + '.' if where else ''
  unknown = [name for name in fields if name not in names and name not in ignored and path + name not in ignored]
  if unknown:
    place = f"field '{where}': " if where else 'field '
    listed = ', '.join(sorted(map(quote, unknown)))
    first = path + min(unknown)
    raise rows.Refused(
      'unknown_field',
      f'{place}{listed}: unknown; known fields: {", ".join(names)}; to ignore it, add it to ignore_fields'
      + (f' as {first}' if where and first.isprintable() and len(first) < 40 else ''),
    )


def without_nulls(value: Any) -> Any:
  """Removes null members of objects at every depth. Objects that had some become `Sparse`."""
  if isinstance(value, dict):
    kept = {name: without_nulls(each) for name, each in value.items() if each is not None}
    if len(kept) == len(value):
      return kept
    sparse = Sparse(kept)
    sparse.nulls = frozenset(name for name, each in value.items() if each is None)
    return sparse
  return [without_nulls(each) for each in value] if isinstance(value, list) else value


def plain(value: Any, name: str) -> Any:
  """A JSON value for a chat template: objects, lists, strings, booleans and finite numbers."""
  if isinstance(value, str):
    return text(value, name)
  if isinstance(value, dict):
    return {text(key, f'{name}.{quote(key)}'): plain(each, f'{name}.{key}') for key, each in value.items()}
  if isinstance(value, list):
    return [plain(each, f'{name}[{i}]') for i, each in enumerate(value)]
  if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
    return value
  raise rows.Refused('wrong_type', f"field '{name}': must be a JSON value with finite numbers, not {kind(value)}")


def _number_of_cell(cell: Cell) -> float | Cell:
  return float(cell) if NUMBER.fullmatch(cell.strip()) else cell


class _Constant(Exception):
  """The source has NaN, Infinity or -Infinity where JSON allows a value."""


def _refuse_constant(name: str) -> None:
  raise _Constant(name)


def _unique_keys(members: list[tuple[str, Any]]) -> dict[str, Any]:
  fields = dict(members)
  if len(fields) < len(members):
    seen = set()
    twice = next(name for name, _ in members if name in seen or seen.add(name))
    raise rows.Refused('duplicate_key', f'field {quote(twice)}: appears twice in one object; keep one of them')
  return fields


# Built once: json.loads with these arguments builds a new decoder on every call.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
_LENIENT = json.JSONDecoder(object_pairs_hook=_unique_keys)  # also accepts NaN and Infinity


def parse_json(source: str) -> Any:
  """Parses JSON strictly: no NaN or Infinity, and no duplicate keys.

  Raises:
    JSONDecodeError: the text is not JSON.
    Refused: it is JSON, but violates the rules above.
  """
  return _strictly(_DECODER.decode, source)


def parse_json_at(source: str, start: int) -> tuple[Any, int]:
  """Parses the JSON value at `start`, and returns it with the position after it. See `parse_json`."""
  return _strictly(_DECODER.raw_decode, source, start)


def _strictly[Result](decode: Callable[..., Result], *arguments: Any) -> Result:
  try:
    return decode(*arguments)
  except json.JSONDecodeError:
    raise
  except _Constant as constant:
    raise rows.Refused(
      'not_finite', f'{_place_of_constant(*arguments)}{constant} is not a JSON number; every number must be finite'
    ) from None
  except RecursionError:
    raise rows.Refused('not_json', 'the JSON is nested too deeply; a row is one flat object') from None
  except ValueError:  # Python limits the number of digits of an integer
    raise rows.Refused('not_finite', 'a number has too many digits; every number must fit in float32') from None


def _place_of_constant(source: str, start: int | None = None) -> str:
  """Returns 'field ...: ' for the first number that is not finite.

  Raises:
    JSONDecodeError: the text after it is not JSON, which is the worse fault.
    Refused: the object has a duplicate key, or the whole value is that number.
  """
  try:
    value, _ = _LENIENT.raw_decode(source, len(source) - len(source.lstrip()) if start is None else start)
    place = _place_of_infinite(value, '')
  except json.JSONDecodeError:
    raise
  except (ValueError, RecursionError):
    return ''
  if not place:
    raise rows.Refused('not_an_object', f'found {value}; each row must be a JSON object, {{"prompt": ...}}')
  return f'field {quote(place)}: '


def _place_of_infinite(value: Any, name: str) -> str | None:
  if isinstance(value, float):
    return None if math.isfinite(value) else name
  parts = ()
  if isinstance(value, dict):
    parts = ((f'{name}.{key}' if name else key, each) for key, each in value.items())
  elif isinstance(value, list):
    parts = ((f'{name}[{i}]', each) for i, each in enumerate(value))
  return next((place for part, each in parts if (place := _place_of_infinite(each, part)) is not None), None)


def kind(value: Any) -> str:
  """The type of a value in JSON terms."""
  if isinstance(value, dict):
    return KINDS[dict]
  return KINDS.get(type(value), 'a string' if isinstance(value, str) else f'of type {type(value).__name__}')


def quote(source: Any) -> str:
  """A short, printable form of untrusted text."""
  source = str(source)
  return ascii(source if len(source) <= 40 else source[:40] + '...')


def one_line(error: Exception) -> str:
  """The message of another library's error, shortened and printable."""
  return ''.join(letter if letter.isprintable() else ' ' for letter in str(error)[:200])
