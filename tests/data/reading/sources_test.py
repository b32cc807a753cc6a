"""Tests of `sources`: which rows are accepted, and the message of each error."""

import gzip
import json
import pathlib
import pickle

import pytest

from alignjax.data.reading import drops, expressions, readers, rows, sources

GOOD = {'prompt': 'Once', 'chosen': ' upon', 'rejected': ' a'}
SYSTEM = {'role': 'system', 'content': 'Be kind'}
USER = {'role': 'user', 'content': 'Hi'}
HELLO = {'role': 'assistant', 'content': 'Hello'}
GO = {'role': 'assistant', 'content': 'Go away'}


def write(tmp_path, *lines, name='train.jsonl'):
  """Writes lines: bytes as they stand, objects as JSON with a line end."""
  content = b''.join(line if isinstance(line, bytes) else json.dumps(line).encode() + b'\n' for line in lines)
  path = tmp_path / name
  path.write_bytes(gzip.compress(content) if name.endswith('.gz') else content)
  return path


def read(path, **options):
  report = drops.DropReport()
  return list(sources.read_examples(path, report, **options)), report


# --- what is accepted


@pytest.mark.parametrize('name', ['train.jsonl', 'train.jsonl.gz'])
def test_plain_row(tmp_path, name):
  path = write(tmp_path, GOOD | {'label': 0.25, 'weight': 2, 'score': [1, -0.5]}, name=name)
  (pair,), report = read(path)
  assert pair == rows.Example('Once', (' upon', ' a'), 0.25, 2.0, (1.0, -0.5), path=str(path), line=1)
  assert pair.origin == f'{path}:1'
  assert (report.read, report.kept) == (1, 1)


@pytest.mark.parametrize(
  'row',
  [
    {'prompt': [USER], 'chosen': 'Hello', 'rejected': 'Go away'},
    {'prompt': [USER], 'chosen': [HELLO], 'rejected': [GO]},
    {'prompt': [USER], 'chosen': [HELLO], 'rejected': 'Go away'},
    {'chosen': [USER, HELLO], 'rejected': [USER, GO]},
  ],
)
def test_forms_of_a_chat_row_give_the_same_pair(tmp_path, row):
  (pair,), _ = read(write(tmp_path, row))
  assert pair.prompt == [USER]
  assert pair.responses == ('Hello', 'Go away')
  assert (pair.label, pair.weight, pair.score) == (1.0, 1.0, None)


def test_implicit_prompt_keeps_all_but_the_last_message(tmp_path):
  shared = [{'role': 'system', 'content': 'Be kind'}, USER, HELLO, {'role': 'user', 'content': 'And?'}]
  (pair,), _ = read(write(tmp_path, {'chosen': [*shared, HELLO], 'rejected': [*shared, GO]}))
  assert pair.prompt == shared


def test_line_ends_blank_lines_and_no_last_line_end_are_accepted(tmp_path):
  row = json.dumps(GOOD, ensure_ascii=False).encode()
  pairs, report = read(write(tmp_path, row + b'\r\n', b'\n', b' \r\n', row))
  assert [pair.line for pair in pairs] == [1, 4]
  assert report.read == 2


def test_several_files_are_read_in_order(tmp_path):
  first, second = write(tmp_path, GOOD, name='a.jsonl'), write(tmp_path, GOOD, GOOD, name='b.jsonl.gz')
  pairs, _ = read([second, str(first)])
  assert [pair.origin for pair in pairs] == [f'{second}:1', f'{second}:2', f'{first}:1']


def test_text_passes_unchanged(tmp_path):
  text = 'nul \0 tab \t é \u2028 \U0001f600 \\n "quoted" <|im_end|>  '
  (pair,), _ = read(write(tmp_path, GOOD | {'chosen': text}))
  assert pair.responses[0] == text


def test_identical_texts_are_dropped_and_counted_under_either_policy(tmp_path):
  same = GOOD | {'chosen': ' a'}
  for policy in ('raise', 'skip'):
    pairs, report = read(write(tmp_path, GOOD, same, same), on_error=policy)
    assert [pair.line for pair in pairs] == [1]
    assert (report.read, report.kept, report.dropped['identical_text'].count) == (3, 1, 2)
    assert report.dropped['identical_text'].examples[0].startswith(f'{tmp_path}/train.jsonl:2: ')


@pytest.mark.parametrize(
  ('other', 'place'), [([USER, HELLO, USER, GO], 'rejected[2]'), ([USER | {'content': 'Hi '}, GO], 'rejected[0]')]
)
def test_conversations_that_differ_before_the_answer_are_dropped_and_counted(tmp_path, other, place):
  path = write(
    tmp_path, {'chosen': [USER, HELLO], 'rejected': [USER, GO]}, {'chosen': [USER, HELLO], 'rejected': other}
  )
  pairs, report = read(path)
  assert [pair.line for pair in pairs] == [1]
  assert place in report.dropped['prompts_differ'].examples[0]


def test_ignore_fields_leaves_fields_of_rows_and_messages_unused(tmp_path):
  row = {'id': 7, 'prompt': [USER | {'id': 8}], 'chosen': 'Hello', 'rejected': 'Go away'}
  (pair,), _ = read(write(tmp_path, row), ignore_fields=['id'])
  assert pair.prompt == [USER]
  row = {'prompt': 'Hi', 'chosen': [USER, HELLO], 'rejected': [USER, GO]}
  (pair,), _ = read(write(tmp_path, row), ignore_fields=['prompt'])
  assert pair.prompt == [USER]


def test_reading_streams(tmp_path):
  stream = sources.read_examples(write(tmp_path, GOOD, b'not JSON\n'), drops.DropReport())
  assert next(stream).line == 1
  with pytest.raises(rows.DataError):
    next(stream)


# --- what is read


@pytest.mark.parametrize(
  ('source', 'form', 'location'),
  [
    ('train.jsonl', 'preference', 'train.jsonl'),
    ('hh:train.jsonl', 'hh', 'train.jsonl'),
    ('./hh:train.jsonl', 'preference', './hh:train.jsonl'),
    (pathlib.Path('hh:train.jsonl'), 'preference', 'hh:train.jsonl'),
    ('C:/data/train.jsonl', 'preference', 'C:/data/train.jsonl'),
    ('hf:owner/name:test', 'preference', 'hf:owner/name:test'),
    ('hh:hf:owner/name:test', 'hh', 'hf:owner/name:test'),
    ('unpaired:a:b.csv', 'unpaired', 'a:b.csv'),
  ],
)
def test_expressions_are_taken_apart(source, form, location):
  assert sources.parse_expression(source) == expressions.Expression(form, location)


def test_a_path_with_a_colon_is_read(tmp_path):
  path = write(tmp_path, GOOD, name='a:b.jsonl')
  assert read(str(path))[0][0].path == str(path)
  path = write(tmp_path, GOOD, name='hh:b.jsonl')
  assert read(path)[0][0].path == str(path)


@pytest.mark.parametrize('source', ['hhh:train.jsonl', 'hhh:hf:owner/name', 'preference:hhh:train.jsonl'])
def test_an_unknown_form_is_refused_with_those_there_are(source):
  with pytest.raises(
    ValueError, match=r"no such file, and 'hhh' is neither a form .*hh_text, ultra.*scheme to read from \(hf"
  ):
    read(source)


def test_forms_and_kinds_of_files_may_be_mixed(tmp_path):
  table = tmp_path / 'a.csv'
  table.write_text('prompt,completion,label\na,b,1\n')
  second = write(tmp_path, {'prompt': 'a', 'responses': ['c'], 'scores': [1]}, name='b.jsonl')
  with pytest.raises(
    rows.DataError, match=r"b\.jsonl:1: field 'scores': present in this row but missing in earlier rows"
  ):
    read([f'unpaired:{table}', f'scored:{second}'])
  third = write(tmp_path, {'prompt': 'a', 'completion': 'c', 'label': False}, name='c.jsonl')
  pairs, report = read([f'unpaired:{table}', f'unpaired:{third}'])
  assert [pair.responses for pair in pairs] == [('b',), ('c',)]
  assert report.read == 2


def test_all_rows_have_the_same_number_of_responses(tmp_path):
  given = [{'prompt': 'a', 'responses': list('abcd'[:count])} for count in (3, 2, 3)]
  path = write(tmp_path, *given)
  with pytest.raises(rows.DataError, match=r":2: field 'responses': this row has 2, earlier rows have 3; every"):
    read(f'ranked:{path}')
  pairs, report = read(f'ranked:{path}', on_error='skip')
  assert [pair.line for pair in pairs] == [1, 3]
  assert report.dropped['mixed_responses'].count == 1
  other = write(tmp_path, GOOD, name='other.jsonl')
  with pytest.raises(rows.DataError, match=r"other\.jsonl:1: field 'responses': this row has 2"):
    read([f'ranked:{write(tmp_path, given[0])}', str(other)])


def test_prompts_are_read_from_rows_with_and_without_responses(tmp_path):
  path = write(tmp_path, {'prompt': 'Once', 'weight': 2}, {'prompt': [USER]}, GOOD | {'score': [1, 0]})
  for source, default in ((f'prompts:{path}', sources.DEFAULT), (str(path), 'prompts')):
    examples = list(sources.read_examples(source, drops.DropReport(), default=default))
    assert [(example.prompt, example.weight) for example in examples] == [('Once', 2.0), ([USER], 1.0), ('Once', 1.0)]
    assert {example.responses for example in examples} == {()}
  with pytest.raises(rows.DataError, match="field 'prompt' is missing"):
    read(f'prompts:{write(tmp_path, without(GOOD, "prompt"))}')
  with pytest.raises(rows.DataError, match="field 'id': unknown; known fields: prompt, weight"):
    read(f'prompts:{write(tmp_path, GOOD | {"id": 1})}')


# --- what is refused


def conversation(*messages, **fields):
  return {'prompt': list(messages), 'chosen': 'Hello', 'rejected': 'Go away'} | fields


def without(row, name):
  return {key: value for key, value in row.items() if key != name}


MALFORMED = {
  # reason: (row, parts of the message)
  'not_json': (b'{"prompt": }\n', ['column 12', 'one JSON object']),
  'not_json: two objects': (json.dumps(GOOD).encode() + b' {}\n', ['Extra data']),
  'not_json: nested': (b'[' * 100_000 + b'\n', ['nested']),
  'not_json: text, not cut off': (b'hello', ['column 1']),
  'cut_off': (json.dumps(GOOD).encode()[:-1], ['half written', 'restore']),
  'cut_off: in a string': (json.dumps(GOOD).encode()[:-3], ['half written']),
  'not_an_object': (b'[1, 2]\n', ['a list', 'JSON object']),
  'not_an_object: null': (b'null\n', ['null']),
  'not_utf8': (b'{"prompt": "\xff"}\n', ['byte 13', 'UTF-8']),
  'not_utf8: gzip': (gzip.compress(b'{}\n'), ['.jsonl.gz']),
  'byte_order_mark': (b'\xef\xbb\xbf' + json.dumps(GOOD).encode() + b'\n', ['byte order mark', 'without']),
  'byte_order_mark: UTF-16': (json.dumps(GOOD).encode('utf-16'), ['byte order mark']),
  'duplicate_key': (b'{"prompt": "a", "prompt": "b"}\n', ["'prompt'", 'twice']),
  'duplicate_key: in a message': (b'{"prompt": [{"role": "user", "role": "user"}]}\n', ["'role'", 'twice']),
  'not_finite': (b'{"weight": NaN}\n', ["field 'weight': NaN is not", 'finite']),
  'not_finite: infinity': (b' {"a": [1, {"b": -Infinity}]}\n', ["field 'a[1].b': -Infinity is not"]),
  'not_json: after a number that is not finite': (b'{"weight": NaN, {\n', ['not JSON at column 17']),
  'duplicate_key: one with a number that is not finite': (b'{"a": NaN, "a": 1}\n', ["field 'a'", 'twice']),
  'not_an_object: a number that is not finite': (b'NaN\n', ['each row must be a JSON object']),
  'not_finite: overflows a double': (GOOD | {'weight': float('1e400')}, ['Infinity']),
  'not_finite: 1e999': (json.dumps(GOOD)[:-1].encode() + b', "weight": 1e999}\n', ["field 'weight'", 'float32']),
  'not_finite: overflows float32': (GOOD | {'weight': 1e39}, ["field 'weight'", 'float32']),
  'not_finite: large integer': (GOOD | {'score': [10**400, 0]}, ["field 'score[0]'", 'float32']),
  'not_finite: many digits': (b'{"weight": ' + b'9' * 5000 + b'}\n', ['digits']),
  'missing_field': (without(GOOD, 'chosen'), ["field 'chosen' is missing"]),
  'missing_field: rejected': (without(GOOD, 'rejected'), ["field 'rejected' is missing"]),
  'missing_field: prompt': (without(GOOD, 'prompt'), ["field 'prompt' is missing", 'conversation']),
  'missing_field: role': (conversation({'content': 'Hi'}), ["field 'prompt[0].role' is missing"]),
  'missing_field: content': (conversation({'role': 'user'}), ["field 'prompt[0].content' is missing"]),
  'wrong_type': (GOOD | {'prompt': 3}, ["field 'prompt'", 'a number']),
  'missing_field: null': (GOOD | {'chosen': None}, ["field 'chosen' is null"]),
  'wrong_type: message': (conversation('Hi'), ["field 'prompt[0]'", 'a string', 'role']),
  'wrong_type: content': (conversation({'role': 'user', 'content': ['Hi']}), ["field 'prompt[0].content'", 'a list']),
  'wrong_type: label': (GOOD | {'label': '1'}, ["field 'label'", 'a string']),
  'wrong_type: boolean': (GOOD | {'label': True}, ["field 'label'", 'a boolean']),
  'wrong_type: score': (GOOD | {'score': 1.0}, ["field 'score'", 'a list']),
  'wrong_length': (GOOD | {'score': [1.0, 2.0, 3.0]}, ["field 'score'", '3 numbers for 2 responses']),
  'out_of_range': (GOOD | {'label': 1.5}, ["field 'label'", '1.5', '[0, 1]']),
  'out_of_range: weight': (GOOD | {'weight': -1}, ["field 'weight'", '-1', 'at least 0']),
  'unknown_field': (GOOD | {'id': 7}, ["'id'", 'ignore_fields', 'prompt, chosen']),
  'unknown_field: in a message': (conversation(USER | {'id': 'x'}), ["field 'prompt[0]'", "'id'", 'as prompt[].id']),
  'unknown_role': (conversation({'role': 'human', 'content': 'Hi'}), ["field 'prompt[0].role'", "'human'", 'user']),
  'wrong_role': (conversation(SYSTEM), ["field 'prompt[0].role'", 'user message']),
  'wrong_role: response': (conversation(USER, chosen=[USER]), ["field 'chosen'", 'one assistant message']),
  'wrong_role: long response': (conversation(USER, chosen=[HELLO, GO]), ["field 'chosen'", "to 'prompt'"]),
  'wrong_role: implicit': ({'chosen': [USER], 'rejected': [USER, GO]}, ["field 'chosen'", 'user, then assistant']),
  'mixed_forms': (GOOD | {'rejected': [HELLO]}, ["field 'rejected'", "'prompt' is a string"]),
  'empty_prompt': (GOOD | {'prompt': ''}, ["field 'prompt'", 'empty']),
  'empty_prompt: no messages': (conversation(), ["field 'prompt'", 'empty']),
  'empty_response': (GOOD | {'chosen': ''}, ["field 'chosen'", 'empty']),
  'empty_response: white space': (GOOD | {'rejected': ' \n\u00a0'}, ["field 'rejected'", 'empty']),
  'empty_response: message': (conversation(USER, chosen=[HELLO | {'content': ''}]), ["field 'chosen'", 'empty']),
  'lone_surrogate': (GOOD | {'chosen': 'ab\ud800'}, ["field 'chosen'", 'character 3', 'surrogate']),
  'lone_surrogate: message': (conversation(USER | {'content': '\udfff'}), ["field 'prompt[0].content'"]),
}


@pytest.mark.parametrize('name', MALFORMED)
def test_malformed_row_is_refused_with_place_field_and_reason(tmp_path, name):
  row, parts = MALFORMED[name]
  path = write(tmp_path, GOOD, row)
  with pytest.raises(rows.DataError) as caught:
    read(path)
  message = str(caught.value)
  assert message.startswith(f'{path}:2: ')
  assert caught.value.origin == f'{path}:2'
  assert caught.value.reason == name.split(':')[0]
  for part in parts:
    assert part in message
  assert len(message.removeprefix(str(path))) < 250


def test_skip_counts_by_reason_and_keeps_the_first_examples(tmp_path):
  bad = [row if isinstance(row, bytes) else json.dumps(row).encode() + b'\n' for row, _ in MALFORMED.values()]
  whole = [row for row in bad if row.endswith(b'\n')]
  pairs, report = read(write(tmp_path, *whole, *whole, GOOD), on_error='skip')
  assert len(pairs) == report.kept == 1
  assert report.read == 2 * len(whole) + 1
  assert report.dropped['out_of_range'].count == 4
  assert len(report.dropped['out_of_range'].examples) == drops.EXAMPLES_KEPT
  assert "field 'label': 1.5" in report.dropped['out_of_range'].examples[0]
  assert f'{report.read} rows read, 1 kept, {report.read - 1} dropped' in str(report)
  assert all(reason in str(report) for reason in report.dropped)


def test_behaviour_log_probabilities_come_through_and_must_not_be_positive(tmp_path):
  logged = GOOD | {'behaviour_logp': [-1.5, 0]}
  (pair,), _ = read(write(tmp_path, logged))
  assert pair.behaviour_logp == (-1.5, 0.0)
  with pytest.raises(rows.DataError, match=r"field 'behaviour_logp\[1\]': 0.5 is out of range; it must be at most 0"):
    read(write(tmp_path, GOOD | {'behaviour_logp': [-1.5, 0.5]}))
  with pytest.raises(rows.DataError, match=r":2: field 'behaviour_logp': missing in this row"):
    read(write(tmp_path, logged, GOOD))


def test_behaviour_log_probabilities_may_be_given_per_token(tmp_path):
  per_token = GOOD | {'behaviour_logp': [[-1.5, 0, -1], [-2.5]]}
  (example,), _ = read(write(tmp_path, per_token))
  assert example.behaviour_token_logp == ((-1.5, 0.0, -1.0), (-2.5,))
  assert example.behaviour_logp is None
  per_response = GOOD | {'behaviour_logp': [-1.5, 0]}
  for second, message in (
    (per_response, r":2: field 'behaviour_logp': present in this row but given per token in earlier rows"),
    (GOOD, r":2: field 'behaviour_logp': missing in this row but given per token in earlier rows"),
    (GOOD | {'behaviour_logp': [[-1.5], -2]}, r":2: field 'behaviour_logp\[0\]': must be a number, not a list"),
    (GOOD | {'behaviour_logp': [[-1.5]]}, r":2: field 'behaviour_logp': has 1 numbers for 2 responses"),
    (GOOD | {'behaviour_logp': [[-1.5], [0.5]]}, r":2: field 'behaviour_logp\[1\]\[0\]': 0.5 is out of range"),
  ):
    with pytest.raises(rows.DataError, match=message):
      read(write(tmp_path, per_token, second))


def test_score_must_be_in_every_row_or_in_none(tmp_path):
  scored = GOOD | {'score': [1.0, 0.0]}
  with pytest.raises(rows.DataError, match=r":2: field 'score': missing in this row but present in earlier rows"):
    read(write(tmp_path, scored, GOOD))
  with pytest.raises(rows.DataError, match=r":2: field 'score': present in this row but missing in earlier rows"):
    read(write(tmp_path, GOOD, scored))


@pytest.mark.parametrize('content', [b'', b'\n \r\n'])
@pytest.mark.parametrize('policy', ['raise', 'skip'])
def test_empty_file_is_refused_by_name(tmp_path, content, policy):
  good, empty = write(tmp_path, GOOD), write(tmp_path, content, name='empty.jsonl')
  with pytest.raises(rows.DataError, match=r'empty\.jsonl:1: the file is empty'):
    read([good, empty], on_error=policy)


@pytest.mark.parametrize('policy', ['raise', 'skip'])
def test_damaged_gzip_is_refused_under_either_policy(tmp_path, policy):
  path = write(tmp_path, GOOD, name='train.jsonl.gz')
  whole = path.read_bytes()
  flipped = bytearray(whole)
  flipped[-6] ^= 1  # in the checksum
  for content in (whole[:-9], bytes(flipped), json.dumps(GOOD).encode()):
    path.write_bytes(content)
    with pytest.raises(rows.DataError, match=r'train\.jsonl\.gz:\d+: the gzip stream is damaged'):
      read(path, on_error=policy)


def test_long_line_is_refused_without_being_held(tmp_path, monkeypatch):
  monkeypatch.setattr(readers, 'LINE_LIMIT', 100)
  path = write(tmp_path, GOOD, b'x' * 1000 + b'\n', GOOD)
  with pytest.raises(rows.DataError, match=r':2: the line is longer than 100 bytes'):
    read(path)
  pairs, report = read(path, on_error='skip')
  assert [pair.line for pair in pairs] == [1, 3]
  assert report.read == 3


def test_arguments_are_checked(tmp_path):
  path = write(tmp_path, GOOD)
  with pytest.raises(ValueError, match="on_error='ignore'"):
    read(path, on_error='ignore')
  with pytest.raises(
    ValueError, match=r'train\.txt: expected a name that ends with \.jsonl, .*\.csv.* starts with hf:'
  ):
    read(tmp_path / 'train.txt')


def test_error_survives_pickling(tmp_path):
  error = rows.DataError('train.jsonl:3', 'not_json', 'no')
  copy = pickle.loads(pickle.dumps(error))
  assert (str(copy), copy.reason) == ('train.jsonl:3: no', 'not_json')
