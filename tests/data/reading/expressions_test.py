"""Tests of `expressions`: column maps and parts of files."""

import json

import pytest

from alignjax.data.reading import drops, expressions, rows, sources

ROWS = [{'question': f'q{i % 40}', 'chosen': f'a{i}', 'rejected': f'b{i}'} for i in range(200)]


@pytest.fixture
def path(tmp_path):
  return write(tmp_path, *ROWS)


def write(tmp_path, *given, name='rows.jsonl'):
  path = tmp_path / name
  path.write_text(''.join(json.dumps(row) + '\n' for row in given))
  return path


def read(source, **options):
  report = drops.DropReport()
  return list(sources.read_examples(source, report, **options)), report


MAP = 'preference[prompt=question]'


def test_a_column_map_renames(path):
  examples, _ = read(f'{MAP}:{path}')
  assert [example.prompt for example in examples] == [row['question'] for row in ROWS]
  examples, _ = read(f'preference[user = question]:{path}')
  assert examples[3].prompt == [{'role': 'user', 'content': 'q3'}]


def test_a_column_map_reads_what_is_within_a_column_and_replaces_what_has_the_name(tmp_path):
  row = {
    'input': {'messages': [{'role': 'user', 'content': 'Hi'}], 'tools': [], 'n': 1},
    'preferred': [{'text': 'a'}, {'text': 'c'}],
    'x.y': 'b',
    'prompt': 3,
  }
  source = 'preference[prompt=input.messages,tools=input.tools,chosen=preferred[1].text,rejected=x.y]:'
  (example,), _ = read(source + str(write(tmp_path, row)))
  assert (example.prompt, example.responses) == ([{'role': 'user', 'content': 'Hi'}], ('c', 'b'))


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    ('preference[promt=question]:x.jsonl', "'promt' is not a column of this form; it has prompt, chosen"),
    ('preference[prompt]:x.jsonl', "'prompt' must be column=name"),
    ('preference[]:x.jsonl', 'must be column=name'),
    ('preference[prompt=a,prompt=b]:x.jsonl', 'a column is mapped twice'),
    ('conversation[turns=first]:x.jsonl', 'turns=first: must be one of all, last'),
    ('conversation[turns=all,turns=last]:x.jsonl', 'mapped twice'),
    ('hh[turns=last]:x.jsonl', "'turns' is not a column of this form"),
    ('x.jsonl[split:2]', 'the share of a split must be between 0 and 1'),
    ('x.jsonl[split:1.2.3]', 'the share of a split must be between 0 and 1'),
    ('x.jsonl[rest:0]', 'the share of a split must be between 0 and 1'),
    ('x.jsonl[3:3]', 'has no rows'),
  ],
)
def test_malformed_expressions_are_refused(source, message):
  with pytest.raises(ValueError, match=message):
    sources.parse_expression(source)


def test_a_mapped_column_that_no_row_has_is_an_error(path, tmp_path):
  with pytest.raises(ValueError, match="no row has 'sytem', which should be 'system'; correct the column map"):
    read(f'preference[prompt=question,system=sytem]:{path}')
  given = [ROWS[0] | {'sys': None}, ROWS[1]]
  examples, _ = read(f'preference[prompt=question,system=sys]:{write(tmp_path, *given, name="nulls.jsonl")}')
  assert len(examples) == 2
  with pytest.raises(rows.DataError, match=r":1: field 'prompt' is missing.* \(prompt is the column 'ask'\)"):
    read(f'preference[prompt=ask]:{path}')


@pytest.mark.parametrize(
  ('part', 'lines'), [('[:3]', [1, 2, 3]), ('[198:]', [199, 200]), ('[5:7]', [6, 7]), ('[300:]', [])]
)
def test_rows_of_a_file(path, part, lines):
  examples, report = read(f'{MAP}:{path}{part}')
  assert [example.line for example in examples] == lines
  assert report.read == len(lines)


def test_a_split_and_its_rest_are_the_file_and_share_no_prompt(path, tmp_path):
  whole, _ = read(f'{MAP}:{path}')
  held_out, report = read(f'{MAP}:{path}[split:25%]')
  rest, _ = read(f'{MAP}:{path}[rest:0.25]')
  assert sorted([*held_out, *rest], key=lambda example: example.line) == whole
  assert not {example.prompt for example in held_out} & {example.prompt for example in rest}
  assert 20 <= len(held_out) <= 80
  assert report.read == len(held_out)
  shuffled = write(tmp_path, *ROWS[::-1], name='shuffled.jsonl')
  again, _ = read(f'{MAP}:{shuffled}[split:25%]')
  assert {example.responses for example in again} == {example.responses for example in held_out}


def test_splits_of_the_hub_and_of_prepared_data_slice_themselves():
  for location in ('tfds:name:train[:10%]', 'tfds:name:train[:10]', 'hf:owner/name:train[:100]'):
    assert sources.parse_expression(location).location == location
  found = sources.parse_expression('hh:hf:owner/name:train[split:0.1]')
  assert found == expressions.Expression('hh', 'hf:owner/name:train', part=expressions.Part(share=0.1, held_out=True))


def spoken(*turns):
  """Messages: 'u1' is one of the user, 'a1' one of the assistant."""
  roles = {'s': 'system', 'u': 'user', 'a': 'assistant', 't': 'tool'}
  return [{'role': roles[turn[0]], 'content': turn[1:]} for turn in turns]


def test_every_turn_of_a_conversation_is_an_example(tmp_path):
  turns = spoken('s0', 'u1', 'a2', 'u3', 'a4', 't5', 'a6')
  path = write(tmp_path, {'messages': turns, 'weight': 2, 'chat_template_kwargs': {'x': 1}}, {'messages': turns[1:3]})
  examples, report = read(f'conversation:{path}')
  assert [example.responses for example in examples] == [('2',), ('4',), ('6',), ('2',)]
  assert [rows.messages_of(example.prompt) for example in examples[:3]] == [turns[:2], turns[:4], turns[:6]]
  assert all(rows.variables_of(example.prompt) == {'x': 1} for example in examples[:3])
  assert [(example.weight, example.line) for example in examples] == [(2, 1), (2, 1), (2, 1), (1, 2)]
  assert (report.read, report.kept) == (4, 4)
  last, report = read(f'conversation[turns=last]:{path}')
  assert last == examples[2:]
  assert report.read == 2
  renamed = write(tmp_path, {'talk': turns}, name='renamed.jsonl')
  (example,), _ = read(f'conversation[messages=talk,turns=last]:{renamed}')
  assert example.responses == ('6',)


def test_turns_that_answer_nobody_are_dropped_and_counted(tmp_path):
  turns = spoken('a0', 'u1', 'a2', 'a3', 'u4', 'a ', 'u6', 'a7')
  examples, report = read(f'conversation:{write(tmp_path, {"messages": turns})}')
  assert [example.responses for example in examples] == [('2',), ('7',)]
  assert {reason: tally.count for reason, tally in report.dropped.items()} == {'no_question': 2, 'empty_response': 1}
  dropped = report.dropped['no_question'].examples[1]
  assert dropped.endswith(":1: field 'messages[3]': follows no message of a user or a tool")
  assert (report.read, report.kept) == (5, 2)


def test_the_turns_of_a_conversation_are_in_the_same_part(tmp_path):
  path = write(tmp_path, *({'messages': spoken(f'u{i}', 'ax', 'uagain', 'ay')} for i in range(60)))
  held_out, _ = read(f'conversation:{path}[split:30%]')
  rest, _ = read(f'conversation:{path}[rest:30%]')
  assert len(held_out) + len(rest) == 120
  assert len(held_out) > 0
  assert not {example.line for example in held_out} & {example.line for example in rest}
