"""Rows in the schemas of much-used public datasets: each is read by one command line, and none loses its system."""

import json
import pathlib
import re

import pyarrow
from pyarrow import parquet
import pytest

from alignjax.data.reading import drops, rows, sources
from tests.data import examples

USER, HELLO, GO = examples.USER, examples.HELLO, examples.GO
PAIR = {'chosen': [USER, HELLO], 'rejected': [USER, GO]}
STRINGS = {'prompt': 'Hi', 'chosen': 'Hello', 'rejected': 'Go away'}
SYSTEM = {'role': 'system', 'content': 'Be kind'}
# schema: (expression, row, prompt, responses)
SCHEMAS = {
  'ultrafeedback_binarized, pairs': ('binarised', examples.BINARISED, examples.CONVERSATION, ('Hello', 'Go away')),
  'ultrafeedback_binarized, sft': ('conversation', examples.BINARISED, examples.CONVERSATION, ('Hello',)),
  'UltraFeedback': (
    'ultrafeedback_pair',
    examples.ULTRAFEEDBACK,
    [{'role': 'user', 'content': 'Name a colour.'}],
    ('Blue, of course', '4'),
  ),
  'hh-rlhf': ('hh', examples.HH, None, ('Because\n\nof you.', 'No.')),
  'kto-mix-14k': ('unpaired', {'prompt': [USER], 'completion': [HELLO], 'label': True}, [USER], ('Hello',)),
  'summarize_from_feedback': ('tldr', examples.TLDR, None, (' Why does my cat sit?', ' Cat sits.')),
  'ultrafeedback-binarized-preferences-cleaned': (
    'binarised[score_chosen=chosen-rating,score_rejected=rejected-rating]',
    PAIR | {'source': 'x', 'prompt': 'Hi', 'chosen-rating': 5.0, 'rejected-rating': 1.0, 'chosen-model': 'm'},
    [USER],
    ('Hello', 'Go away'),
  ),
  'orpo-dpo-mix-40k': ('binarised', PAIR | {'source': 'x', 'prompt': 'Hi', 'question': 'Hi'}, [USER], None),
  'tulu-3-preference-mixture': (
    'binarised',
    PAIR | {'id': 'x', 'source': 'x', 'prompt': 'Hi', 'chosen_model': 'm', 'rejected_model': 'm'},
    [USER],
    ('Hello', 'Go away'),
  ),
  'Skywork-Reward-Preference-80K': ('preference', PAIR | {'source': 'x'}, [USER], ('Hello', 'Go away')),
  'llama3-ultrafeedback-armorm': (
    'binarised',
    PAIR | {'prompt_id': 'x', 'prompt': 'Hi', 'all_generated_responses': ['a'], 'all_rm_scores': [0.1]},
    [USER],
    ('Hello', 'Go away'),
  ),
  'truthy-dpo': ('preference', STRINGS | {'id': 'x', 'source': 'x', 'system': 'Be kind'}, [SYSTEM, USER], None),
  'reward-bench': (
    'preference[user=prompt]',
    STRINGS | {'chosen_model': 'm', 'rejected_model': 'm', 'subset': 'x', 'id': 1},
    [USER],
    ('Hello', 'Go away'),
  ),
  'orca_dpo_pairs': (
    'preference[user=question]',
    {'system': '', 'question': 'Hi', 'chosen': 'Hello', 'rejected': 'Go away'},
    [USER],
    ('Hello', 'Go away'),
  ),
  'HelpSteer3': ('helpsteer', examples.HELPSTEER, [USER], ('Hello', 'Go away')),
  'SHP': ('shp', examples.SHP, [{'role': 'user', 'content': 'Why?'}], ('Because.', 'No.')),
  'Nectar': ('nectar', examples.NECTAR, [USER], ('Hello', 'Hey', 'Go', 'No')),
  'PKU-SafeRLHF': ('pku', examples.PKU, [USER], ('Hello', 'Go away')),
  'ultrachat_200k': ('conversation', {'prompt': 'Hi', 'prompt_id': 'x', 'messages': [USER, HELLO]}, [USER], ('Hello',)),
  'Capybara': (
    'conversation[messages=conversation]',
    {'source': 'x', 'conversation': [{'input': 'Hi', 'output': 'Hello'}]},
    [USER],
    ('Hello',),
  ),
  'alpaca': ('alpaca', examples.ALPACA, [{'role': 'user', 'content': 'Name a colour.'}], ('Red',)),
}
# What other programs write.
OTHERS = {
  'ShareGPT': (
    'preference[prompt=conversations]',
    {'conversations': [{'from': 'human', 'value': 'Hi'}], 'chosen': {'from': 'gpt', 'value': 'Hello'}}
    | {'rejected': {'from': 'gpt', 'value': 'Go away'}},
  ),
  'axolotl': ('preference[prompt=messages]', {'messages': [USER], 'chosen': HELLO, 'rejected': GO}),
  'OpenAI': (
    'preference[prompt=input.messages,tools=input.tools,chosen=preferred_output,rejected=non_preferred_output]',
    {'input': {'messages': [USER], 'tools': []}, 'preferred_output': [HELLO], 'non_preferred_output': [GO]},
  ),
  'Alpaca pairs': ('alpaca', {'instruction': 'Hi', 'input': '', 'chosen': 'Hello', 'rejected': 'Go away'}),
  'objects': ('preference', {'prompt': [USER], 'chosen': HELLO, 'rejected': GO}),
  'parts': (
    'preference',
    {'prompt': [USER | {'content': [{'type': 'text', 'text': 'Hi'}]}], 'chosen': HELLO, 'rejected': GO},
  ),
}


def read(path, expression, **options):
  report = drops.DropReport()
  return list(sources.read_examples(f'{expression}:{path}', report, **options)), report


def write(tmp_path, *given):
  path = tmp_path / 'rows.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in given))
  return path


@pytest.mark.parametrize('name', SCHEMAS)
def test_public_schemas_are_read(tmp_path, name):
  expression, row, prompt, responses = SCHEMAS[name]
  path = write(tmp_path, row)
  (example,), report = read(path, expression, unknown_columns='note')
  assert prompt is None or example.prompt == prompt
  assert example.responses == (responses or ('Hello', 'Go away'))
  assert report.kept == 1
  parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / 'rows.parquet')
  (other,), _ = read(tmp_path / 'rows.parquet', expression, unknown_columns='note')
  assert other._replace(path='', line=0) == example._replace(path='', line=0)


@pytest.mark.parametrize('name', OTHERS)
def test_rows_of_other_programs_are_read_and_proposed(tmp_path, name):
  expression, row = OTHERS[name]
  path = write(tmp_path, row)
  (example,), _ = read(path, expression)
  assert (example.prompt, example.responses) == ([USER], ('Hello', 'Go away'))
  if expression != 'preference':
    with pytest.raises(rows.DataError, match='these rows look like ') as caught:
      read(path, 'preference')
    proposed = str(caught.value).partition('look like ')[2].removesuffix(':')
    (example,), _ = read(path, proposed)
    assert example.responses == ('Hello', 'Go away')


@pytest.mark.parametrize(
  ('row', 'proposed'),
  [
    (examples.HH, 'hh'),
    (examples.NECTAR, 'nectar'),
    (examples.SHP, 'shp'),
    (examples.PKU, 'pku'),
    (examples.HELPSTEER, 'helpsteer'),
    (examples.TLDR, 'tldr'),
    (examples.ULTRAFEEDBACK, 'ultrafeedback_pair'),
    (examples.BINARISED, 'binarised'),
    (examples.ALPACA, 'alpaca'),
    ({'question': 'Hi', 'chosen': 'a', 'rejected': 'b', 'system': 'x'}, 'preference[user=question]'),
    ({'prompt': 'Hi', 'completion': 'a', 'label': True}, 'unpaired'),
    ({'prompt': 'Hi', 'response': 'a'}, 'supervised[completion=response]'),
    ({'messages': [USER, HELLO]}, 'conversation'),
    ({'text': 'Once'}, 'text'),
  ],
)
def test_errors_propose_the_form_that_reads_the_row(tmp_path, row, proposed):
  with pytest.raises(rows.DataError) as caught:
    read(write(tmp_path, row), 'preference')
  assert str(caught.value).endswith(f'; these rows look like {proposed}:')


def test_unknown_columns_are_refused_together_or_counted_once_each(tmp_path):
  path = write(tmp_path, *(STRINGS | {'id': i, 'source': 'x', 'prompt': f'{i}'} for i in range(5)))
  with pytest.raises(rows.DataError, match=r"field 'id', 'source': unknown.*, or set unknown_columns=note"):
    read(path, 'preference')
  found, report = read(path, 'preference', unknown_columns='note')
  assert len(found) == 5
  assert {name: tally.count for name, tally in report.noted.items()} == {
    "unused column 'id'": 5,
    "unused column 'source'": 5,
  }
  with pytest.raises(ValueError, match="unknown_columns='skip'"):
    read(path, 'preference', unknown_columns='skip')


@pytest.mark.parametrize('column', ['images', 'system_prompt', 'history'])
def test_columns_that_change_what_a_model_sees_are_never_left_out_unasked(tmp_path, column):
  path = write(tmp_path, STRINGS | {column: 'x'})
  with pytest.raises(rows.DataError, match=f"field '{column}': changes what the model should see"):
    read(path, 'preference', unknown_columns='note')
  assert len(read(path, 'preference', ignore_fields=[column])[0]) == 1
  assert len(read(write(tmp_path, STRINGS | {column: None}), 'preference')[0]) == 1  # null is absent


def test_a_missing_column_is_named_before_unknown_ones(tmp_path):
  with pytest.raises(rows.DataError, match=r"field 'rejected' is missing; .*unknown fields: 'losing'"):
    read(write(tmp_path, {'prompt': 'Hi', 'chosen': 'a', 'losing': 'b'}), 'preference')


# --- fields of messages


def test_a_path_ignores_a_field_of_messages_and_not_the_column_of_that_name(tmp_path):
  row = {'prompt': [USER | {'weight': 0}], 'chosen': 'Hello', 'rejected': 'Go away', 'weight': 3}
  path = write(tmp_path, row)
  with pytest.raises(rows.DataError, match=r"field 'prompt\[0\]': 'weight': unknown.* as prompt\[\]\.weight"):
    read(path, 'preference')
  with pytest.raises(rows.DataError, match='weight'):  # it names the column
    read(path, 'preference', ignore_fields=['weight'])
  (example,), _ = read(path, 'preference', ignore_fields=['prompt[].weight'])
  assert (example.weight, example.prompt) == (3.0, [USER])


@pytest.mark.parametrize(
  ('part', 'message'),
  [
    ({'type': 'image', 'url': 'x'}, "is a part of type 'image', and a language model reads text alone"),
    ({'type': 'text'}, "is a part of type 'text'"),
    (3, 'is a number'),
  ],
)
def test_parts_that_are_no_text_are_refused_by_name(tmp_path, part, message):
  row = {'prompt': [USER | {'content': [{'type': 'text', 'text': 'a'}, part]}], 'chosen': 'b', 'rejected': 'c'}
  with pytest.raises(rows.DataError, match=r"field 'prompt\[0\].content\[1\]': " + message):
    read(write(tmp_path, row), 'preference')


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ({'tools': 'x'}, "field 'tools': must be a list, or one as JSON text"),
    ({'tools': {}}, "field 'tools': must be a list, not an object"),
    ({'chat_template_kwargs': []}, "field 'chat_template_kwargs': must be an object, not a list"),
    ({'prompt': [SYSTEM, USER], 'system': 'x'}, "field 'system': the messages start with a system message too"),
    ({'user': 'x'}, "field 'user': the row has a 'prompt' too"),
    (
      {'prompt': [USER, HELLO | {'tool_calls': [{'x': 1}]}, USER]},
      r"field 'prompt\[1\].tool_calls\[0\]': must be a call",
    ),
    ({'prompt': [USER, HELLO | {'tool_calls': 'x'}, USER]}, r"field 'prompt\[1\].tool_calls': must be a list"),
    ({'prompt': [{'from': 'wizard', 'value': 'x'}]}, r"field 'prompt\[0\].from': 'wizard' is not one of human"),
  ],
)
def test_malformed_context_is_refused_by_field(tmp_path, row, message):
  with pytest.raises(rows.DataError, match=message):
    read(write(tmp_path, {'prompt': [USER], 'chosen': 'Hello', 'rejected': 'Go away'} | row), 'preference')


def test_tools_may_be_json_text_and_nulls_within_them_are_absent_in_every_format(tmp_path):
  tools = [
    {'name': 'look', 'parameters': {'x': {'type': 'string'}}},
    {'name': 'go', 'parameters': {'y': {'type': 'string'}}},
  ]
  row = {'prompt': [USER], 'chosen': 'Hello', 'rejected': 'Go away'}
  found = [
    read(write(tmp_path, row | {'tools': given}), 'preference')[0][0].prompt for given in (tools, json.dumps(tools))
  ]
  parquet.write_table(pyarrow.Table.from_pylist([row | {'tools': tools}]), tmp_path / 'rows.parquet')  # fills in nulls
  found.append(read(tmp_path / 'rows.parquet', 'preference')[0][0].prompt)
  assert found == [rows.Dialogue([USER], {'tools': tools})] * 3


def test_the_table_of_public_datasets_names_the_expressions_that_are_tested():
  page = (pathlib.Path(__file__).parents[3] / 'docs' / 'data.md').read_text()
  named = {
    expression.rpartition('FILE')[0].rstrip(':') or 'preference' for expression in re.findall(r'`([^`]*FILE)`', page)
  }
  tested = {expression for expression, *_ in (*SCHEMAS.values(), *OTHERS.values())}
  assert tested <= named
  assert all(sources.parse_expression(f'{expression}:x.jsonl').location == 'x.jsonl' for expression in named)
  (table,) = re.findall(r'\| dataset \|.*\n\|---.*\n((?:\|.*\n)+)', page)
  assert len(table.splitlines()) == len(SCHEMAS)
