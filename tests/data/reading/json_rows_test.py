"""Pairs become rows from which they are read again."""

import json

import pytest

from alignjax.data import report, row_form, rows, sources

USER = [{'role': 'system', 'content': 'Über'}, {'role': 'user', 'content': '\u2028 "x" \\n\r\n\0'}]


@pytest.mark.parametrize(
  ('pair', 'form'),
  [
    (rows.Pair('a', ('b', 'c')), 'preference'),
    (rows.Pair(USER, (' b\n', 'c '), 0.1, 0.0, (0.1, -1e30), (-1.5, 0.0)), 'preference'),
    (rows.Pair('a', ('b',), 0.0), 'unpaired'),
    (rows.Pair(USER, ('b',), 1.0, 2.5), 'unpaired'),
    (rows.Pair('a', ('b',), score=(0.5,)), 'scored'),
    (rows.Pair('a', ('b', 'c', 'd'), weight=2.0, score=(3.0, 1.0, 1.0), behaviour_logp=(-1.0, -2.0, -3.0)), 'scored'),
    (rows.Pair(USER, ('b', 'c', 'd'), weight=0.5), 'ranked'),
  ],
)
def test_a_row_is_read_as_an_equal_pair(tmp_path, pair, form):
  found, row = row_form.of_pair(pair)
  assert found == form
  (tmp_path / 'r.jsonl').write_text(json.dumps(row) + '\n')
  (again,) = sources.read_pairs(f'{form}:{tmp_path}/r.jsonl', report.DropReport())
  assert again._replace(path=pair.path, line=pair.line) == pair


def test_what_is_the_default_is_not_written():
  assert row_form.of_pair(rows.Pair('a', ('b', 'c')))[1] == {'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}


@pytest.mark.parametrize(
  ('pair', 'message'),
  [
    (
      rows.Pair('a', ('b', 'c', 'd'), label=0.5, path='x', line=3),
      'x:3: has label 0.5 and 3 responses; the form ranked',
    ),
    (rows.Pair('a', ('b', 'c', 'd'), 0.5, score=(2.0, 1.0, 0.0)), 'the form scored has no such column'),
    (rows.Pair('a', ('b',), behaviour_logp=(-1.0,)), 'has behaviour_logp'),
  ],
)
def test_what_no_row_can_hold_is_refused(pair, message):
  with pytest.raises(ValueError, match=message):
    row_form.of_pair(pair)
