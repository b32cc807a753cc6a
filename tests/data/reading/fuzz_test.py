"""Rows of every form in every kind of file, most of them damaged: each is accepted, or refused by place and field.

  ALIGNJAX_FUZZ_ROWS=10000 python -m pytest tests/data/reading/fuzz_test.py -s

reads more rows than the suite does, and shows what became of them.
"""

import collections
import csv
import gzip
import io
import itertools
import json
import math
import os
import random
import re
import sys
import types

import pyarrow
from pyarrow import parquet
import pytest

from alignjax.data.reading import drops, readers, rows, sources
from tests.data import examples

SINGLE = ('unpaired', 'conversation', 'supervised', 'text', 'chosen')
ROWS = int(os.environ.get('ALIGNJAX_FUZZ_ROWS', '1000'))
KINDS = [*readers.ENDINGS, 'hf']
LINES = ('.jsonl', '.jsonl.gz', '.csv', '.tsv')
# Reasons that concern a line, a file or its syntax; all others must name a field.
NO_FIELD = (
  'not_json',
  'cut_off',
  'not_utf8',
  'not_an_object',
  'byte_order_mark',
  'empty_file',
  'not_csv',
  'not_a_list',
)
ENDS_READING = ('empty_file', 'not_csv', 'not_a_list', 'bad_header')
TEXTS = (
  '',
  ' ',
  '\n\u00a0',
  'text',
  'é\u2028\U0001f600',
  'half \ud800',
  'nul \0',
  '\ufeff',
  '<|im_end|>',
  'user',
  'x' * 10**3,
)
ODD = (None, True, False, 0, -1, 0.5, 1e39, 10**400, float('nan'), float('-inf'), [], {}, [[]], *TEXTS)
DAMAGE = b'{}[]",:\\\n\r\t\0\xff\xef0'


def places(value, way=()):
  """Every place in a nested value: the keys that lead to it."""
  for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
    yield *way, key
    if isinstance(inner, dict | list):
      yield from places(inner, (*way, key))


def holder(row, place):
  for key in place[:-1]:
    row = row[key]
  return row


def odd_value(draw, depth=0):
  kind = draw.randrange(8)
  if kind < 6 or depth > 2:
    return draw.choice(ODD)
  if kind == 6:
    return [odd_value(draw, depth + 1) for _ in range(draw.randrange(3))]
  return {draw.choice(['role', 'content', 'text', '']): odd_value(draw, depth + 1) for _ in range(draw.randrange(3))}


def mutate(draw, row):
  """Changes one place of a row."""
  place = draw.choice(list(places(row)))
  inside, key = holder(row, place), place[-1]
  action = draw.randrange(8)
  if action < 3:
    inside[key] = odd_value(draw)
  elif action == 3:
    del inside[key]
  elif action == 4:  # what stands elsewhere
    other = draw.choice(list(places(row)))
    inside[key] = json.loads(json.dumps(holder(row, other)[other[-1]]))
  elif action == 5:
    inside[key] = draw.choice([[inside[key]], {'content': inside[key]}, str(inside[key])])
  elif isinstance(inside, list):
    inside.insert(key, json.loads(json.dumps(inside[key])))
  else:
    inside[draw.choice(['extra', 'na\u2028me', '', 'CHOSEN', 'prompt', 'score', 'label', key + ' '])] = inside[key]


def fuzzed_rows(draw, form):
  """A few valid rows and then one that is most often damaged."""
  good = [json.loads(json.dumps(draw.choice(examples.VALID[form][:1]))) for _ in range(draw.randrange(3))]
  row = json.loads(json.dumps(draw.choice(examples.VALID[form])))
  for _ in range(draw.choice([0, 1, 1, 1, 2, 4])):
    if row:
      mutate(draw, row)
  return [*good, row]


def damaged(draw, content):
  """The bytes of a file, sometimes with a few changed."""
  content = bytearray(content)
  for _ in range(draw.choice([0] * 12 + [1, 2, 5])):
    if content:
      position = draw.randrange(len(content))
      change = draw.choice([bytes([draw.randrange(256)]), bytes([draw.choice(DAMAGE)]), b''])
      content[position : position + draw.randrange(2)] = change
  return bytes(content)


def table(given, delimiter):
  """Rows as a table of text, and the line on which the last one starts."""
  names = list(dict.fromkeys(itertools.chain.from_iterable(given)))
  text = io.StringIO(newline='')
  writer = csv.writer(text, delimiter=delimiter)
  writer.writerow(names)
  for row in given:
    line = text.getvalue().count('\n') + 1
    cells = (row.get(name) for name in names)
    writer.writerow(['' if x is None else x if isinstance(x, str) else json.dumps(x) for x in cells])
  return text.getvalue().encode('utf-8', 'surrogatepass'), line


def write(draw, folder, kind, given):
  """Writes rows; returns the location and the number of the last row, or None where damage may have moved it."""
  path = folder / f'data{kind}'
  if kind == 'hf':
    hub = types.SimpleNamespace(load_dataset=lambda name, configuration, split: given)
    sys.modules['datasets'] = hub
    return 'hf:owner/name:test', len(given)
  if kind == '.parquet':
    parquet.write_table(pyarrow.Table.from_pylist(given), path)
    return str(path), len(given)
  number = len(given)
  if kind in ('.csv', '.tsv'):
    content, number = table(given, ',' if kind == '.csv' else '\t')
  else:
    lines = [json.dumps(row, ensure_ascii=draw.random() < 0.5) for row in given]
    if draw.random() < 0.03:
      lines[-1] = lines[-1][:-1] + ', ' + lines[-1][1:]  # every key twice
    text = '[' + ',\n'.join(lines) + ']' if kind == '.json' else '\n'.join(lines) + '\n'
    content = text.encode('utf-8', 'surrogatepass')
  changed = damaged(draw, content)
  path.write_bytes(gzip.compress(changed, 1) if kind == '.jsonl.gz' else changed)
  return str(path), number if changed == content else None


def check_pair(pair, form):
  if not isinstance(pair.prompt, str):
    messages = rows.messages_of(pair.prompt)
    assert messages[-1]['role'] in ('user', 'tool', 'assistant')
    for message in messages:
      assert message.keys() <= {'role', 'content', *rows.MESSAGE_FIELDS}
      assert message['role'] in rows.ROLES
      assert isinstance(message['content'], str) or message.keys() & {'tool_calls', 'reasoning_content'}
  json.dumps([pair.prompt, pair.responses], ensure_ascii=False, allow_nan=False).encode('utf-8')
  assert pair.prompt or form == 'text'
  assert all(rows.text_of(response).strip() or 'tool_calls' in response for response in pair.responses)
  count = len(pair.responses)
  if form in SINGLE:
    assert count == 1
  elif form == 'prompts':
    assert count == 0
  else:
    assert count >= (1 if form in ('scored', 'ultrafeedback', 'nectar', 'alpaca') else 2)
  assert 0 <= pair.label <= 1
  assert 0 <= pair.weight <= rows.FLOAT32_MAX
  for name, most in rows.PER_RESPONSE.items():
    values = getattr(pair, name)
    assert values is None or (len(values) == count and all(math.isfinite(x) and x <= most for x in values))
  if pair.score is not None and 'scores' in sources.FORMS[form].columns:
    assert list(pair.score) == sorted(pair.score, reverse=True)


def attempt(expression, policy):
  """The pairs, the report, and the error or None."""
  report, pairs = drops.DropReport(), []
  try:
    pairs += sources.read_examples(expression, report, on_error=policy)
  except rows.DataError as error:
    return pairs, report, error
  return pairs, report, None


def outcome(form, location, number):
  """Reads the rows under both policies; returns the reason for which one was left out first, or 'accepted'."""
  pairs, report, error = attempt(f'{form}:{location}', 'raise')
  if error is None:
    for pair in pairs:
      check_pair(pair, form)
    assert report.kept == len(pairs)
    return next(iter(report.dropped), 'accepted')
  text = str(error)
  # Bytes that are no text are a line's fault in JSON Lines only; elsewhere it is not known where the row ends.
  ends = error.reason in ENDS_READING or (error.reason == 'not_utf8' and '.jsonl' not in location)
  known = number is not None and not ends
  assert re.match(re.escape(f'{location}:') + (f'{number}: ' if known else r'\d+: '), text), (text, number)
  assert text.isprintable()
  nameless = error.reason in NO_FIELD or 'too many digits' in text
  assert nameless or re.search(r"field ['\"]", text), text
  _, report, again = attempt(f'{form}:{location}', 'skip')
  if again is None:
    assert report.dropped[error.reason].examples[0] == text
  else:
    assert location.endswith('.json') or not known, str(again)
  return error.reason


def test_every_row_is_accepted_or_refused_once_with_its_place_and_field(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'datasets', None)  # put back afterwards
  found = collections.Counter()
  combinations = itertools.cycle(itertools.product(KINDS, sources.FORMS))
  for i, (kind, form) in zip(range(ROWS), combinations, strict=False):
    draw = random.Random(i)
    given = fuzzed_rows(draw, form)
    try:
      location, number = write(draw, tmp_path, kind, given)
    except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError):  # no such values in a Parquet file
      kind = 'hf'
      location, number = write(draw, tmp_path, kind, given)
    found[form, kind, outcome(form, location, number)] += 1

  print(summary(found))
  accepted = collections.Counter()
  for (form, kind, reason), count in found.items():
    accepted.update({(form, reason == 'accepted'): count, (kind, reason == 'accepted'): count})
  assert set(accepted) == set(itertools.product([*sources.FORMS, *KINDS], [True, False]))
  assert len({reason for _, _, reason in found}) > 25
  assert 0.2 < sum(accepted[form, True] for form in sources.FORMS) / ROWS < 0.6


def summary(found):
  reasons = collections.Counter()
  for (_, _, reason), count in found.items():
    reasons[reason] += count
  return '\n'.join(['', *(f'{count:6}  {reason}' for reason, count in reasons.most_common())])


def test_fuzzed_gzip_streams_are_accepted_or_refused_with_their_place(tmp_path):
  draw, path = random.Random(1), tmp_path / 'train.jsonl.gz'
  whole = gzip.compress(
    b''.join(json.dumps(examples.PREFERENCE[0] | {'prompt': f'{draw.random()}'}).encode() + b'\n' for _ in range(50))
  )
  refused = []
  for _ in range(200):
    content = bytearray(whole)
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    pairs, _, error = attempt(path, 'raise')
    if error is None:
      assert len(pairs) == 50
    else:
      refused.append(str(error))
  assert len(refused) > 150
  assert all(message.startswith(f'{path}:') for message in refused)


@pytest.mark.parametrize('compression', ['none', 'snappy'])
def test_fuzzed_parquet_is_accepted_or_refused_with_its_place(tmp_path, compression):
  draw, path = random.Random(2), tmp_path / 'train.parquet'
  given = [examples.PREFERENCE[0] | {'prompt': f'{draw.random()}'} for _ in range(50)]
  parquet.write_table(pyarrow.Table.from_pylist(given), path, compression=compression, write_page_checksum=True)
  whole, refused = path.read_bytes(), []
  for _ in range(200):
    content = bytearray(whole)
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    _, _, error = attempt(path, 'raise')
    if error is not None:
      refused.append(str(error))
  assert len(refused) > 50
  assert all(message.startswith(f'{path}:') for message in refused)
