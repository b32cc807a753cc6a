"""Tests of the HH-RLHF builder: prompts are chat messages or the original transcripts."""

from alignjax.data.reading import catalogue
from tests.data.builders import preparing

START = '\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: “Über” 🙂?\n\nAssistant:'
ROWS = [
  {'chosen': f'{START} Yes.', 'rejected': f'{START} No\n\nmore'},
  {'chosen': f'{START} Yes.\n\nHuman: Why?\n\nAssistant: So', 'rejected': f'{START} No'},
  {'chosen': f'{START} A', 'rejected': f'{START}'},
]


def test_prompts_are_messages(tmp_path):
  builder = preparing.build(tmp_path, 'hh_rlhf', {'harmless-base/train.jsonl.gz': ROWS})
  ((_, row),) = catalogue.read(str(builder.data_path))
  turns = [('user', 'Hi'), ('assistant', 'Hello'), ('user', '“Über” 🙂?')]
  assert [(message['role'], message['content']) for message in row.pop('prompt')] == turns
  assert row == {'chosen': 'Yes.', 'rejected': 'No\n\nmore'}
  report = builder.reports['train']
  assert {reason: tally.count for reason, tally in report.dropped.items()} == {'prompts_differ': 1, 'empty_reply': 1}


def test_prompts_are_transcripts_byte_for_byte(tmp_path):
  builder = preparing.build(tmp_path, 'hh_rlhf/helpful-online-text', {'helpful-online/test.jsonl': ROWS[:1]})
  ((_, row),) = catalogue.read(str(builder.data_path))
  assert row['prompt'] == START
  assert {side: row['prompt'] + row[side] for side in ('chosen', 'rejected')} == ROWS[0]
