r"""Preference pairs from JSON Lines, checked field by field while they stream.

A row is one JSON object on one line, in one of three forms:

  plain     {"prompt": "Once upon", "chosen": " a time", "rejected": " a"}     concatenated as they stand
  chat      {"prompt": [{"role": "user", "content": "Hi"}], "chosen": "Hello", "rejected": "No"}
            `chosen` and `rejected` may also be lists of one assistant message
  implicit  {"chosen": [...], "rejected": [...]}: two conversations, equal up to their last, assistant, message

Optional fields: `label` in [0, 1] (the probability that `chosen` is preferred, 1 by default), `weight` >= 0 (1 by
default), `score` ([float, float]: a reward for `chosen` and for `rejected`) and `behaviour_logp` ([float, float]: the
log-probability of each whole response, end token included, under the policy that wrote it, nats). The last two stand in
every row or in none.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import gzip
import json
import math
import os
from typing import Any, BinaryIO, NamedTuple
import zlib

from alignjax.data import report as report_lib

Message = dict[str, str]  # {'role': ..., 'content': ...}
Prompt = str | list[Message]

ROLES = ('system', 'user', 'assistant')
LINE_LIMIT = 64 * 2**20  # bytes: a file without line ends, or a gzip bomb, must not fill the memory
BYTE_ORDER_MARKS = (b'\xef\xbb\xbf', b'\xff\xfe', b'\xfe\xff')
FLOAT32_MAX = 3.4028234e38
PER_RESPONSE = {'score': FLOAT32_MAX, 'behaviour_logp': 0.0}  # fields of one number a response, and the largest allowed
FIELDS = ('prompt', 'chosen', 'rejected', 'label', 'weight', *PER_RESPONSE)


class Pair(NamedTuple):
  """One prompt with its responses, the preferred one first. Responses to a chat prompt are an assistant's contents."""

  prompt: Prompt
  responses: tuple[str, ...]
  label: float = 1.0
  weight: float = 1.0
  score: tuple[float, ...] | None = None
  behaviour_logp: tuple[float, ...] | None = None
  path: str = '<memory>'
  line: int = 0  # counted from 1

  @property
  def origin(self) -> str:
    return f'{self.path}:{self.line}'


class DataError(ValueError):
  """A row that cannot be used. Its text starts with `file:line:` and says which field, why, and what to do."""

  def __init__(self, origin: str, reason: str, message: str):
    super().__init__(origin, reason, message)  # all three, so that the error survives pickling
    self.origin = origin
    self.reason = reason

  def __str__(self) -> str:
    return f'{self.args[0]}: {self.args[2]}'


class Refused(Exception):
  """Raised by a row parser, which does not know the place: the row is at fault."""

  def __init__(self, reason: str, message: str):
    super().__init__(reason, message)
    self.reason = reason
    self.message = message


class Dropped(Refused):
  """Raised by a row parser: the row is sound but of no use, so it is counted whatever the policy."""


def check_policy(on_error: str) -> None:
  """Raises ValueError unless `on_error` is 'raise' or 'skip'."""
  if on_error not in ('raise', 'skip'):
    raise ValueError(
      f"on_error={on_error!r}: must be 'raise' (stop at the first bad row) or 'skip' (count it and go on)"
    )


def read_pairs(
  paths: str | os.PathLike | Iterable[str | os.PathLike],
  report: report_lib.DropReport,
  *,
  on_error: str = 'raise',
  ignore_fields: Iterable[str] = (),
) -> Iterator[Pair]:
  """Yields the pairs of .jsonl and .jsonl.gz files in order, in linear time and constant memory.

  Args:
    paths: a file, or several.
    report: counts the rows as they are read; pairs whose two responses are the same text are dropped and counted.
    on_error: 'raise' stops at the first malformed row; 'skip' counts malformed rows by reason.
    ignore_fields: fields of a row or of a message that are not used. Any other unknown field is refused.

  Raises:
    DataError: a malformed row, an empty file, a damaged gzip stream (the last two under either policy).
  """
  parser = _PairParser(frozenset(ignore_fields))
  yield from read_rows(paths, parser, report, on_error=on_error)


def read_rows[Row](
  paths: str | os.PathLike | Iterable[str | os.PathLike],
  parse: Callable[[dict[str, Any], str, int], Row],
  report: report_lib.DropReport,
  *,
  on_error: str = 'raise',
) -> Iterator[Row]:
  """Yields `parse(object, path, line)` for each row; `parse` raises `Refused` or `Dropped` (see `read_pairs`)."""
  check_policy(on_error)
  for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
    path = os.fspath(path)
    empty = True
    for number, line in _lines(path):
      if not line.strip(b' \t\r\n'):
        continue  # a blank line, such as a second newline at the end, holds no row
      empty = False
      report.read += 1
      origin = f'{path}:{number}'
      try:
        row = parse(_parse_object(line), path, number)
      except Dropped as problem:
        report.drop(problem.reason, origin, problem.message)
      except Refused as problem:
        if on_error == 'raise':
          raise DataError(origin, problem.reason, problem.message) from None
        report.drop(problem.reason, origin, problem.message)
      else:
        yield row
    if empty:
      raise DataError(f'{path}:1', 'empty_file', 'the file is empty; give a file with one JSON object on each line')


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
  """Numbered lines with their line ends; the excess of a line over LINE_LIMIT is passed over, not stored."""
  with _open(path) as file:
    number = 0
    try:
      while line := file.readline(LINE_LIMIT + 1):
        number += 1
        yield number, line
        while len(line) > LINE_LIMIT and not line.endswith(b'\n') and (line := file.readline(LINE_LIMIT + 1)):
          pass
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
      # Nothing after this point can be read, so no policy can skip it.
      raise DataError(
        f'{path}:{number + 1}',
        'damaged_gzip',
        f'the gzip stream is damaged or cut off here ({error}); copy the file again',
      ) from None


def _open(path: str) -> BinaryIO:
  if path.endswith('.jsonl.gz'):
    return gzip.open(path, 'rb')
  if path.endswith('.jsonl'):
    return open(path, 'rb')
  raise ValueError(f'{path}: expected a name that ends with .jsonl or .jsonl.gz')


def _parse_object(line: bytes) -> dict[str, Any]:
  """The JSON object on a line, strictly: UTF-8, no NaN or Infinity, no key twice."""
  if len(line) > LINE_LIMIT:
    raise Refused('line_too_long', f'the line is longer than {LINE_LIMIT} bytes; put one JSON object on each line')
  if line.startswith(BYTE_ORDER_MARKS):
    raise Refused('byte_order_mark', 'the line starts with a byte order mark; save the file as UTF-8 without one')
  if line.startswith(b'\x1f\x8b'):
    raise Refused('not_utf8', 'the file is gzipped; give it a name that ends with .jsonl.gz')
  try:
    text = line.decode('utf-8')
  except UnicodeDecodeError as error:
    raise Refused('not_utf8', f'byte {error.start + 1} is not valid UTF-8; save the file as UTF-8') from None
  try:
    value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
  except json.JSONDecodeError as error:
    ends_early = error.pos >= len(text.rstrip()) or error.msg.startswith('Unterminated')
    if ends_early and not line.endswith(b'\n'):
      raise Refused(
        'cut_off', 'the last line has no line end and is not whole JSON, so it was half written; delete or restore it'
      ) from None
    raise Refused(
      'not_json', f'not JSON at column {error.colno}: {error.msg}; write one JSON object on each line'
    ) from None
  except RecursionError:
    raise Refused('not_json', 'not usable JSON: nested too deeply; a row is one flat JSON object') from None
  except ValueError:  # the interpreter's own limit on the digits of an integer
    raise Refused('not_finite', 'a number has too many digits; every number must fit in float32') from None
  if not isinstance(value, dict):
    raise Refused('not_an_object', f'the line holds {_kind(value)}; a row is a JSON object, {{"prompt": ...}}')
  return value


def _refuse_constant(name: str) -> None:
  raise Refused('not_finite', f'the number {name} is not JSON; every number must be finite')


def _unique_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
  fields = dict(items)
  if len(fields) < len(items):
    seen = set()
    twice = next(name for name, _ in items if name in seen or seen.add(name))
    raise Refused('duplicate_key', f'key {_quote(twice)} stands twice in one object; keep one of the two')
  return fields


class _PairParser:
  """Turns a JSON object into a Pair. Remembers which per-response fields rows have: all rows have one, or none."""

  def __init__(self, ignore_fields: frozenset[str]):
    self._ignore_fields = ignore_fields
    self._present: dict[str, bool] = {}

  def __call__(self, fields: dict[str, Any], path: str, line: int) -> Pair:
    fields = self._known(fields, FIELDS, 'field')
    for name in ('chosen', 'rejected'):
      if name not in fields:
        raise Refused('missing_field', f"field '{name}' is missing; every row needs 'chosen' and 'rejected'")
    prompt, responses = self._explicit(fields) if 'prompt' in fields else self._implicit(fields)
    for name, text in zip(('chosen', 'rejected'), responses, strict=True):
      if not text.strip():
        raise Refused('empty_response', f"field '{name}': the response is empty; give it text or leave the row out")
    pair = Pair(
      prompt,
      responses,
      label=_number(fields.get('label', 1.0), 'label', 0.0, 1.0),
      weight=_number(fields.get('weight', 1.0), 'weight', 0.0, FLOAT32_MAX),
      **{name: _per_response(name, fields[name], most) for name, most in PER_RESPONSE.items() if name in fields},
      path=path,
      line=line,
    )
    for name in PER_RESPONSE:
      present = name in fields
      if self._present.setdefault(name, present) != present:
        seen = 'has it but earlier rows do not' if present else 'is missing but earlier rows have it'
        raise Refused(f'mixed_{name}', f"field '{name}': this row's {seen}; give it in every row, or in none")
    if responses[0] == responses[1]:
      raise Dropped('identical_text', 'chosen and rejected are the same text')
    return pair

  def _explicit(self, fields: Mapping[str, Any]) -> tuple[Prompt, tuple[str, str]]:
    prompt = fields['prompt']
    if isinstance(prompt, str):
      check_text(prompt, 'prompt')
      if not prompt:
        raise Refused('empty_prompt', "field 'prompt': the prompt is empty; give it text")
      for name in ('chosen', 'rejected'):
        if isinstance(fields[name], list):
          raise Refused(
            'mixed_forms',
            f"field '{name}' is a list of messages but 'prompt' is a string; make both strings or both messages, or, "
            f"if '{name}' is the whole conversation, leave 'prompt' out (ignore_fields=['prompt'])",
          )
    else:
      prompt = self._messages(prompt, 'prompt')
      if prompt[-1]['role'] != 'user':
        raise Refused('wrong_role', f"field 'prompt[{len(prompt) - 1}].role': the prompt must end with a user message")
    return prompt, (self._response(fields['chosen'], 'chosen'), self._response(fields['rejected'], 'rejected'))

  def _response(self, value: Any, name: str) -> str:
    if isinstance(value, str):
      check_text(value, name)
      return value
    messages = self._messages(value, name)
    if len(messages) != 1 or messages[0]['role'] != 'assistant':
      raise Refused(
        'wrong_role', f"field '{name}': must be a string or one assistant message; put earlier messages into 'prompt'"
      )
    return messages[0]['content']

  def _implicit(self, fields: Mapping[str, Any]) -> tuple[Prompt, tuple[str, str]]:
    sides = []
    for name in ('chosen', 'rejected'):
      if not isinstance(fields[name], list):
        raise Refused(
          'missing_field',
          f"field 'prompt' is missing; give it, or make '{name}' the whole conversation, a list of messages",
        )
      messages = self._messages(fields[name], name)
      if len(messages) < 2 or messages[-1]['role'] != 'assistant' or messages[-2]['role'] != 'user':
        raise Refused(
          'wrong_role',
          f"field '{name}': without 'prompt' it must be a conversation that ends with user, then assistant",
        )
      sides.append(messages)
    chosen, rejected = sides
    if chosen[:-1] != rejected[:-1]:
      first = next(
        (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), len(min(sides, key=len))
      )
      raise Refused(
        'prompts_differ',
        f"field 'rejected[{first}]': the conversations differ before their last message; give both the same prompt",
      )
    return chosen[:-1], (chosen[-1]['content'], rejected[-1]['content'])

  def _messages(self, value: Any, name: str) -> list[Message]:
    if not isinstance(value, list):
      raise Refused('wrong_type', f"field '{name}': must be a string or a list of messages, not {_kind(value)}")
    if not value:
      raise Refused('empty_prompt', f"field '{name}': the list of messages is empty; give it at least one message")
    return [self._message(message, f'{name}[{i}]') for i, message in enumerate(value)]

  def _message(self, value: Any, name: str) -> Message:
    if not isinstance(value, dict):
      raise Refused('wrong_type', f"field '{name}': must be a message {{role, content}}, not {_kind(value)}")
    message = self._known(value, ('role', 'content'), f"field '{name}':")
    for key in ('role', 'content'):
      if key not in message:
        raise Refused('missing_field', f"field '{name}.{key}' is missing; a message has 'role' and 'content'")
      check_text(message[key], f'{name}.{key}')
    if message['role'] not in ROLES:
      raise Refused('unknown_role', f"field '{name}.role': {_quote(message['role'])} is none of {', '.join(ROLES)}")
    return message

  def _known(self, fields: dict[str, Any], known: tuple[str, ...], where: str) -> dict[str, Any]:
    ignored = self._ignore_fields
    unknown = sorted(_quote(name) for name in fields if name not in known and name not in ignored)
    if unknown:
      raise Refused(
        'unknown_field',
        f'{where} {", ".join(unknown)}: unknown; known are {", ".join(known)}; to leave it unused, '
        f'name it in ignore_fields',
      )
    return {name: value for name, value in fields.items() if name not in ignored}


def _per_response(name: str, value: Any, most: float) -> tuple[float, float]:
  if not isinstance(value, list) or len(value) != 2:
    raise Refused('wrong_type', f"field '{name}': must be a list of two numbers, for chosen and for rejected")
  chosen, rejected = (_number(number, f'{name}[{i}]', -FLOAT32_MAX, most) for i, number in enumerate(value))
  return chosen, rejected


def _number(value: Any, name: str, low: float, high: float) -> float:
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise Refused('wrong_type', f"field '{name}': must be a number, not {_kind(value)}; leave it out if there is none")
  # An integer is compared before it is converted: a large one has no float.
  if (isinstance(value, float) and not math.isfinite(value)) or not -FLOAT32_MAX <= value <= FLOAT32_MAX:
    raise Refused('not_finite', f"field '{name}': must be a number that is finite in float32")
  if not low <= value <= high:
    wanted = 'at least 0' if high == FLOAT32_MAX else f'in [{low:g}, {high:g}]' if low > -FLOAT32_MAX else 'at most 0'
    raise Refused('out_of_range', f"field '{name}': {value:g} is out of range; it must be {wanted}")
  return float(value)


def check_text(text: Any, name: str) -> None:
  """Raises Refused unless `text` is a string that UTF-8 can hold: JSON can spell half a surrogate pair."""
  if not isinstance(text, str):
    raise Refused('wrong_type', f"field '{name}': must be a string, not {_kind(text)}")
  try:
    text.encode('utf-8')
  except UnicodeEncodeError as error:
    raise Refused(
      'lone_surrogate',
      f"field '{name}': character {error.start + 1} is half of a surrogate pair; repair the text's escapes",
    ) from None


def _kind(value: Any) -> str:
  kinds = {dict: 'an object', list: 'a list', str: 'a string', bool: 'a boolean', type(None): 'null'}
  return kinds.get(type(value), 'a number')


def _quote(text: str) -> str:
  """A short, printable form of text that came from outside."""
  return ascii(text if len(text) <= 40 else text[:40] + '...')
