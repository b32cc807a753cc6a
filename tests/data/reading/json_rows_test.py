"""Tests of `json_rows`: the rows of an example read back as the same example."""

import json

import pytest

from alignjax.data.reading import drops, json_rows, rows, sources

USER = [{'role': 'system', 'content': 'Über'}, {'role': 'user', 'content': '\u2028 "x" \\n\r\n\0'}]


@pytest.mark.parametrize(
  ('pair', 'form'),
  [
    (rows.Example('a', ('b', 'c')), 'preference'),
    (rows.Example(USER, (' b\n', 'c '), 0.1, 0.0, (0.1, -1e30), (-1.5, 0.0)), 'preference'),
    (rows.Example('a', ('b',), 0.0), 'unpaired'),
    (rows.Example(USER, ('b',), 1.0, 2.5), 'unpaired'),
    (rows.Example('a', ('b',), score=(0.5,)), 'scored'),
    (
      rows.Example('a', ('b', 'c', 'd'), weight=2.0, score=(3.0, 1.0, 1.0), behaviour_logp=(-1.0, -2.0, -3.0)),
      'scored',
    ),
    (rows.Example(USER, ('b', 'c', 'd'), weight=0.5), 'ranked'),
    (rows.Example('a', ('b', 'c'), behaviour_token_logp=((-1.0, -0.5), (0.0,))), 'preference'),
    (rows.Example('a', ('b',), score=(1.0,), behaviour_token_logp=((-1.0, -0.5),)), 'scored'),
    (rows.Example(USER, (), weight=0.5), 'prompts'),
  ],
)
def test_a_row_is_read_as_an_equal_pair(tmp_path, pair, form):
  found, row = json_rows.of_example(pair)
  assert found == form
  (tmp_path / 'r.jsonl').write_text(json.dumps(row) + '\n')
  (again,) = sources.read_examples(f'{form}:{tmp_path}/r.jsonl', drops.DropReport())
  assert again._replace(path=pair.path, line=pair.line) == pair


def test_what_is_the_default_is_not_written():
  assert json_rows.of_example(rows.Example('a', ('b', 'c')))[1] == {'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}


@pytest.mark.parametrize(
  ('pair', 'message'),
  [
    (
      rows.Example('a', ('b', 'c', 'd'), label=0.5, path='x', line=3),
      'x:3: has label 0.5 and 3 responses; the form ranked',
    ),
    (rows.Example('a', ('b', 'c', 'd'), 0.5, score=(2.0, 1.0, 0.0)), 'the form scored has no such column'),
    (rows.Example('a', ('b',), behaviour_logp=(-1.0,)), 'has behaviour_logp'),
  ],
)
def test_what_no_row_can_hold_is_refused(pair, message):
  with pytest.raises(ValueError, match=message):
    json_rows.of_example(pair)
