"""Tests of `public_forms`: rows with all published columns, and the message of each error."""

import json

import pytest

from alignjax.data.reading import drops, rows, sources
from tests.data.examples import BINARISED, CONVERSATION, HH, START, TLDR, ULTRAFEEDBACK, completion


def read(tmp_path, form, *rows, **options):
  path = tmp_path / 'data.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  report = drops.DropReport()
  return list(sources.read_examples(f'{form}:{path}', report, **options)), report


def changed(row, path, value):
  """A copy of a row with the value at a path such as 'info.post' or 'summaries.0.text' set; ... deletes it."""
  row = json.loads(json.dumps(row))  # a copy of which no two parts are the same object
  *way, last = [int(step) if step.isdigit() else step for step in path.split('.')]
  inner = row
  for step in way:
    inner = inner[step]
  if value is ...:
    del inner[last]
  else:
    inner[last] = value
  return row


# --- what rows become


def test_hh_becomes_messages(tmp_path):
  (pair,), _ = read(tmp_path, 'hh', HH)
  assert pair.prompt == [
    {'role': 'user', 'content': 'Hi there'},
    {'role': 'assistant', 'content': 'Hello.'},
    {'role': 'user', 'content': 'Why?'},
  ]
  assert pair.responses == ('Because\n\nof you.', 'No.')


def test_hh_text_keeps_the_transcript(tmp_path):
  (pair,), _ = read(tmp_path, 'hh_text', HH)
  assert pair.prompt == START + '\n\nAssistant:'
  assert pair.responses == (' Because\n\nof you.', ' No.')


def test_ultrafeedback_is_ranked_by_the_overall_score(tmp_path):
  (pair,), _ = read(tmp_path, 'ultrafeedback', ULTRAFEEDBACK)
  assert pair.prompt == [{'role': 'user', 'content': 'Name a colour.'}]
  assert pair.responses == ('Blue, of course', 'Red', 'No', '4')
  assert pair.score == (9.0, 6.5, 1.0, 1.0)


def test_ultrafeedback_with_the_short_names(tmp_path):
  row = {'prompt': 'Hi', 'completions': [{'response': 'a', 'score': 1}, {'response': 'b', 'score': 2}]}
  (pair,), _ = read(tmp_path, 'ultrafeedback', row)
  assert (pair.responses, pair.score) == (('b', 'a'), (2.0, 1.0))


def test_ultrafeedback_pair_is_the_best_and_the_worst(tmp_path):
  (pair,), _ = read(tmp_path, 'ultrafeedback_pair', ULTRAFEEDBACK)
  assert (pair.responses, pair.score) == (('Blue, of course', '4'), (9.0, 1.0))


def test_binarised(tmp_path):
  (pair,), _ = read(tmp_path, 'binarised', BINARISED)
  assert pair.prompt == CONVERSATION
  assert (pair.responses, pair.score, pair.label) == (('Hello', 'Go away'), (8.5, 3.0), 1.0)
  bare = {name: BINARISED[name] for name in ('chosen', 'rejected')}
  (pair,), _ = read(tmp_path, 'binarised', bare)
  assert (pair.prompt, pair.score) == (CONVERSATION, None)


def test_tldr_chooses_and_writes_the_prompt_of_the_data_set(tmp_path):
  (pair, other), _ = read(tmp_path, 'tldr', TLDR, TLDR | {'choice': 0})
  assert pair.prompt == 'SUBREDDIT: r/AskReddit\n\nTITLE: Cats\n\nPOST: My cat sits. \nWhy?\n\nTL;DR:'
  assert pair.responses == (' Why does my cat sit?', ' Cat sits.')
  assert other.responses == pair.responses[::-1]


# --- what is dropped, and what is refused

DROPPED = [
  ('hh', HH | {'rejected': HH['chosen']}, 'identical_text'),
  ('hh_text', HH | {'rejected': HH['chosen'] + ' '}, 'identical_text'),
  ('hh', HH | {'rejected': START + ' x\n\nAssistant: b'}, 'prompts_differ'),
  ('hh', HH | {'rejected': START + '\n\nAssistant:'}, 'empty_reply'),
  ('hh_text', dict.fromkeys(HH, START), 'no_reply'),
  ('ultrafeedback', ULTRAFEEDBACK | {'completions': []}, 'no_completions'),
  (
    'ultrafeedback',
    ULTRAFEEDBACK | {'completions': [completion('a', 2), completion('b', 2)]},
    'tied_scores',
  ),
  (
    'ultrafeedback',
    ULTRAFEEDBACK | {'completions': [completion('a', 2), completion('a', 3)]},
    'identical_text',
  ),
  ('binarised', BINARISED | {'rejected': BINARISED['chosen']}, 'identical_text'),
  ('binarised', changed(BINARISED, 'rejected.1.content', 'Hey'), 'prompts_differ'),
  ('tldr', changed(changed(TLDR, 'info.post', None), 'info.article', 'News'), 'no_post'),
  ('tldr', changed(TLDR, 'summaries.0.text', 'Why does my cat sit? '), 'identical_text'),
]


@pytest.mark.parametrize(('form', 'row', 'reason'), DROPPED)
def test_rows_without_use_are_dropped_and_counted_under_either_policy(tmp_path, form, row, reason):
  for policy in ('raise', 'skip'):
    pairs, report = read(tmp_path, form, row, on_error=policy)
    assert pairs == []
    assert list(report.dropped) == [reason]


REFUSED = [
  ('hh', HH | {'chosen': 'Hello'}, r"field 'chosen': must start with '\\n\\nHuman:'"),
  ('hh_text', HH | {'rejected': 3}, "field 'rejected': must be a string, not a number"),
  ('hh', {'chosen': START}, "field 'rejected' is missing"),
  ('hh', HH | {'prompt': 'Hi'}, "field 'prompt': unknown; known fields: chosen, rejected"),
  ('ultrafeedback', changed(ULTRAFEEDBACK, 'completions.1.response', ''), r"field 'completions\[1\].response': the re"),
  ('ultrafeedback', changed(ULTRAFEEDBACK, 'completions.1.overall_score', None), r"field 'completions\[1\].overall_sc"),
  ('ultrafeedback', changed(ULTRAFEEDBACK, 'completions.2.overall_score', ...), r"field 'completions\[2\].overall_sc"),
  (
    'ultrafeedback',
    changed(ULTRAFEEDBACK, 'completions.2.score', 3),
    r"field 'completions\[2\].overall_score': the row",
  ),
  (
    'ultrafeedback',
    changed(ULTRAFEEDBACK, 'completions.0', 'Red'),
    r"field 'completions\[0\]': must be an object with",
  ),
  ('ultrafeedback', changed(ULTRAFEEDBACK, 'completions.0.rank', 1), r"field 'completions\[0\]': 'rank': unknown"),
  ('ultrafeedback', ULTRAFEEDBACK | {'prompt': 'x'}, "field 'instruction': the row has prompt too"),
  (
    'ultrafeedback',
    changed(ULTRAFEEDBACK, 'instruction', ...),
    "field 'instruction' is missing; the row needs instruction or",
  ),
  ('ultrafeedback', ULTRAFEEDBACK | {'instruction': '\n'}, "field 'instruction': the prompt is empty"),
  (
    'ultrafeedback_pair',
    ULTRAFEEDBACK | {'completions': [completion('a', 2)]},
    "field 'completions': has one response",
  ),
  ('binarised', BINARISED | {'prompt': 'Bye'}, "field 'prompt': does not match any user message"),
  ('binarised', BINARISED | {'chosen': 'Hello'}, "field 'prompt' is missing; add it, or make 'chosen' the whole"),
  ('binarised', changed(BINARISED, 'score_rejected', ...), "field 'score_rejected' is missing"),
  ('binarised', BINARISED | {'margin': 1}, "field 'margin': unknown"),
  ('tldr', TLDR | {'choice': 2}, "field 'choice': must be 0 or 1"),
  ('tldr', TLDR | {'choice': True}, "field 'choice': must be a number, not a boolean"),
  ('tldr', TLDR | {'summaries': TLDR['summaries'][:1]}, "field 'summaries': has 1 summaries"),
  ('tldr', changed(TLDR, 'info.post', ...), "field 'info.post' is missing"),
  ('tldr', changed(TLDR, 'info.post', None), "field 'info.post' is null or empty"),
  ('tldr', changed(TLDR, 'info.title', ' '), "field 'info.title': the prompt is empty"),
  ('tldr', changed(TLDR, 'summaries.1.text', ...), r"field 'summaries\[1\].text' is missing"),
  ('tldr', changed(TLDR, 'summaries.1.rank', 1), r"field 'summaries\[1\]': 'rank': unknown"),
  ('tldr', TLDR | {'info': 'x'}, "field 'info': must be an object with post, title, subreddit, not a"),
]


@pytest.mark.parametrize(('form', 'row', 'message'), REFUSED)
def test_refusals_name_line_and_field(tmp_path, form, row, message):
  with pytest.raises(rows.DataError, match=f'data.jsonl:1: {message}'):
    read(tmp_path, form, row)


def test_ignored_fields_are_left_out_of_rows_and_of_what_is_in_them(tmp_path):
  row = changed(ULTRAFEEDBACK, 'completions.0.rank', 1) | {'rank': 2}
  (pair,), _ = read(tmp_path, 'ultrafeedback', row, ignore_fields=['rank'])
  assert pair.responses[0] == 'Blue, of course'
  (pair,), _ = read(tmp_path, 'binarised', BINARISED | {'prompt': 'Bye'}, ignore_fields=['prompt'])
  assert pair.prompt == CONVERSATION
