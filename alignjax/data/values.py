"""Checks of the values in a row. Each returns the value in the form that a `Pair` holds, or raises `Refused`.

`name` is always the place of the value in its row, such as `prompt[0].content`, for the text of the error.
"""

from collections.abc import Callable, Collection, Mapping
import json
import math
import re
from typing import Any

from alignjax.data import rows

NUMBER = re.compile(r'[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?')
KINDS = {
  dict: 'an object',
  list: 'a list',
  str: 'a string',
  bool: 'a boolean',
  int: 'a number',
  float: 'a number',
  type(None): 'null',
}


class Cell(str):
  """A cell of a table of text. It is read as what is wanted: a number, true or false, or JSON."""


def text(value: Any, name: str) -> str:
  """A string that UTF-8 can hold: JSON can spell half a surrogate pair."""
  if not isinstance(value, str):
    raise rows.Refused('wrong_type', f"field '{name}': must be a string, not {kind(value)}")
  if not value.isascii():
    try:
      value.encode('utf-8')
    except UnicodeEncodeError as error:
      raise rows.Refused(
        'lone_surrogate',
        f"field '{name}': character {error.start + 1} is half of a surrogate pair; repair the text's escapes",
      ) from None
  return str(value)  # no longer a cell


def filled(value: Any, name: str, what: str) -> str:
  """A text that is more than white space; `what` says what it is, 'response' or 'prompt'."""
  value = text(value, name)
  if not value or value.isspace():
    raise rows.Refused(f'empty_{what}', f"field '{name}': the {what} is empty; give it text or leave the row out")
  return value


def number(value: Any, name: str, low: float = -rows.FLOAT32_MAX, high: float = rows.FLOAT32_MAX) -> float:
  """A number in [low, high], finite in float32."""
  if isinstance(value, Cell):
    value = _number_of_cell(value)
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise rows.Refused(
      'wrong_type', f"field '{name}': must be a number, not {kind(value)}; leave it out if there is none"
    )
  # An integer is compared before it is converted: a large one has no float.
  if (isinstance(value, float) and not math.isfinite(value)) or not -rows.FLOAT32_MAX <= value <= rows.FLOAT32_MAX:
    raise rows.Refused('not_finite', f"field '{name}': must be a number that is finite in float32")
  if not low <= value <= high:
    unbounded = -rows.FLOAT32_MAX, rows.FLOAT32_MAX
    wanted = 'at most 0' if low == unbounded[0] else 'at least 0' if high == unbounded[1] else f'in [{low:g}, {high:g}]'
    raise rows.Refused('out_of_range', f"field '{name}': {value:g} is out of range; it must be {wanted}")
  return float(value)


def truth(value: Any, name: str) -> float:
  """true, false, or the probability of true: 1.0, 0.0, or a number between."""
  if isinstance(value, Cell) and value.lower() in ('true', 'false'):
    return float(value.lower() == 'true')
  return float(value) if isinstance(value, bool) else number(value, name, 0.0, 1.0)


def items(value: Any, name: str) -> list[Any]:
  """A list."""
  value = _of_cell(value, name, 'list')
  if not isinstance(value, list):
    raise rows.Refused('wrong_type', f"field '{name}': must be a list, not {kind(value)}")
  return value


def mapping(value: Any, name: str, names: Collection[str], unused: Collection[str]) -> dict[str, Any]:
  """An object with no fields but `names` and `unused`."""
  value = _of_cell(value, name, 'object')
  if not isinstance(value, dict):
    raise rows.Refused('wrong_type', f"field '{name}': must be an object with {', '.join(names)}, not {kind(value)}")
  known(value, names, unused, name)
  return value


def _of_cell(value: Any, name: str, what: str) -> Any:
  """Lists and objects are JSON in a cell."""
  if not isinstance(value, Cell):
    return value
  try:
    return parse_json(value)
  except json.JSONDecodeError as error:
    raise rows.Refused(
      'wrong_type', f"field '{name}': must be a JSON {what}; it is not JSON at character {error.pos + 1}"
    ) from None
  except rows.Refused as problem:
    raise rows.Refused(problem.reason, f"field '{name}': {problem.message}") from None


def numbers(value: Any, name: str, count: int, most: float = rows.FLOAT32_MAX) -> tuple[float, ...]:
  """A list of `count` numbers, each at most `most`."""
  value = items(value, name)
  if len(value) != count:
    raise rows.Refused(
      'wrong_length', f"field '{name}': has {len(value)} numbers for {count} responses; give one for each"
    )
  return tuple(number(each, f'{name}[{i}]', high=most) for i, each in enumerate(value))


def messages(value: Any, name: str, ignored: Collection[str] = ()) -> list[rows.Message]:
  """A conversation: a list of at least one {role, content}, in which fields named in `ignored` are left out."""
  if not isinstance(value, list):
    raise rows.Refused('wrong_type', f"field '{name}': must be a string or a list of messages, not {kind(value)}")
  if not value:
    raise rows.Refused('empty_prompt', f"field '{name}': the list of messages is empty; give it at least one message")
  return [_message(message, f'{name}[{i}]', ignored) for i, message in enumerate(value)]


def _message(value: Any, name: str, ignored: Collection[str]) -> rows.Message:
  if not isinstance(value, dict):
    raise rows.Refused('wrong_type', f"field '{name}': must be a message {{role, content}}, not {kind(value)}")
  require(value, ('role', 'content'), name)
  if len(value) > 2:
    known(value, ('role', 'content'), ignored, name)
  role, content = text(value['role'], f'{name}.role'), text(value['content'], f'{name}.content')
  if role not in rows.ROLES:
    raise rows.Refused('unknown_role', f"field '{name}.role': {quote(role)} is none of {', '.join(rows.ROLES)}")
  return {'role': role, 'content': content}


def prompt(value: Any, name: str, ignored: Collection[str] = ()) -> rows.Prompt:
  """A text, or a conversation that ends with a user's message."""
  if isinstance(value, str):
    value = text(value, name)
    if not value:
      raise rows.Refused('empty_prompt', f"field '{name}': the prompt is empty; give it text")
    return value
  value = messages(value, name, ignored)
  if value[-1]['role'] != 'user':
    raise rows.Refused('wrong_role', f"field '{name}[{len(value) - 1}].role': the prompt must end with a user message")
  return value


def response(value: Any, name: str, to: rows.Prompt, ignored: Collection[str] = ()) -> str:
  """The text of an answer to the prompt `to`: a string, or after messages also a list of one assistant message."""
  if not isinstance(value, str):
    if isinstance(to, str) and isinstance(value, list):
      raise rows.Refused(
        'mixed_forms',
        f"field '{name}': is a list of messages but 'prompt' is a string; make both strings or both messages, or, if "
        f"it is the whole conversation, leave 'prompt' out (ignore_fields=['prompt'])",
      )
    found = messages(value, name, ignored)
    if len(found) != 1 or found[0]['role'] != 'assistant':
      raise rows.Refused(
        'wrong_role', f"field '{name}': must be a string or one assistant message; put earlier messages into 'prompt'"
      )
    value = found[0]['content']
  return filled(value, name, 'response')


def require(fields: Mapping[str, Any], names: Collection[str], where: str = '') -> None:
  """Raises unless all of `names` are there; `where` is the place of an object within the row."""
  for name in names:
    if name not in fields:
      place = f'{where}.{name}' if where else name
      raise rows.Refused('missing_field', f"field '{place}' is missing; needed are {', '.join(names)}")


def known(fields: Mapping[str, Any], names: Collection[str], ignored: Collection[str], where: str = '') -> None:
  """Raises unless every field is one of `names` or `ignored`."""
  unknown = sorted(quote(name) for name in fields if name not in names and name not in ignored)
  if unknown:
    place = f"field '{where}': " if where else 'field '
    raise rows.Refused(
      'unknown_field',
      f'{place}{", ".join(unknown)}: unknown; known are {", ".join(names)}; to leave it unused, name it in '
      'ignore_fields',
    )


def _number_of_cell(cell: Cell) -> float | Cell:
  return float(cell) if NUMBER.fullmatch(cell.strip()) else cell


class _Constant(Exception):
  """NaN, Infinity or -Infinity stands where JSON has a value."""


def _refuse_constant(name: str) -> None:
  raise _Constant(name)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  fields = dict(pairs)
  if len(fields) < len(pairs):
    seen = set()
    twice = next(name for name, _ in pairs if name in seen or seen.add(name))
    raise rows.Refused('duplicate_key', f'field {quote(twice)}: stands twice in one object; keep one of the two')
  return fields


# Made once: the function json.loads makes a decoder for each call that has such arguments.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
_LENIENT = json.JSONDecoder(object_pairs_hook=_unique_keys)  # reads NaN and Infinity too


def parse_json(source: str) -> Any:
  """The JSON value that a text holds, strictly: no NaN or Infinity, no key twice in an object.

  Raises:
    JSONDecodeError: it is not JSON.
    Refused: it is, but unusable.
  """
  return _strictly(_DECODER.decode, source)


def parse_json_at(source: str, start: int) -> tuple[Any, int]:
  """The JSON value that begins at `start`, and the position after it. See `parse_json`."""
  return _strictly(_DECODER.raw_decode, source, start)


def _strictly[Result](decode: Callable[..., Result], *arguments: Any) -> Result:
  try:
    return decode(*arguments)
  except json.JSONDecodeError:
    raise
  except _Constant as constant:
    raise rows.Refused(
      'not_finite', f'{_place_of_constant(*arguments)}the number {constant} is not JSON; every number must be finite'
    ) from None
  except RecursionError:
    raise rows.Refused('not_json', 'not usable JSON: nested too deeply; a row is one flat JSON object') from None
  except ValueError:  # the interpreter's own limit on the digits of an integer
    raise rows.Refused('not_finite', 'a number has too many digits; every number must fit in float32') from None


def _place_of_constant(source: str, start: int | None = None) -> str:
  """'field ...: ' for the first number that is not finite.

  Raises:
    JSONDecodeError: what follows it is not JSON, which is the graver fault.
    Refused: a key stands twice, so that the number is not in the value; or the number is all there is.
  """
  try:
    value, _ = _LENIENT.raw_decode(source, len(source) - len(source.lstrip()) if start is None else start)
    place = _place_of_infinite(value, '')
  except json.JSONDecodeError:
    raise
  except (ValueError, RecursionError):
    return ''
  if not place:
    raise rows.Refused('not_an_object', f'here stands {value}; a row is a JSON object, {{"prompt": ...}}')
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
  """What a value is, in the words of JSON."""
  return KINDS.get(type(value), 'a string' if isinstance(value, str) else f'of type {type(value).__name__}')


def quote(source: Any) -> str:
  """A short, printable form of what came from outside."""
  source = str(source)
  return ascii(source if len(source) <= 40 else source[:40] + '...')


def one_line(error: Exception) -> str:
  """What another library says, as short and printable text."""
  return ''.join(letter if letter.isprintable() else ' ' for letter in str(error)[:200])
