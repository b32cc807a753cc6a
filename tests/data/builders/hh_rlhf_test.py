"""HH-RLHF: transcripts are split without a change."""

import pytest

from alignjax.data import catalogue, report, sources
from tests.data.builders import preparing

START = '\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: “Über” 🙂?\n\nAssistant:'


def test_prompt_and_response_are_the_transcript_byte_for_byte(tmp_path):
  texts = [(f'{START} Yes. \n', f'{START} No\t'), (f'{START}Human: so', f'{START}')]
  rows = [{'chosen': chosen, 'rejected': rejected} for chosen, rejected in texts]
  builder = preparing.build(tmp_path, 'hh_rlhf/helpful-online', {'helpful-online/train.jsonl.gz': rows})
  read = [row for _, row in catalogue.rows(str(builder.data_path))]
  assert [row['prompt'] for row in read] == [START, START]
  assert [(row['prompt'] + row['chosen'], row['prompt'] + row['rejected']) for row in read] == texts


@pytest.mark.parametrize(
  ('chosen', 'rejected'),
  [
    (f'{START} Yes\n\nHuman: Why?\n\nAssistant: So', f'{START} No'),
    ('\n\nHuman: A\n\nAssistant: B', '\n\nHuman: C\n\nAssistant: B'),
    ('Hello', 'Hi'),
  ],
)
def test_transcripts_without_a_common_prompt_are_dropped_and_counted(tmp_path, chosen, rejected):
  good = {'chosen': f'{START} Yes', 'rejected': f'{START} No'}
  rows = [good, {'chosen': chosen, 'rejected': rejected}, good]
  builder = preparing.build(tmp_path, 'hh_rlhf', {'harmless-base/test.jsonl': rows})
  assert builder.info.splits['test'].num_examples == 2
  counts = builder.reports['test']
  assert (counts.read, counts.kept, counts.dropped['prompts_differ'].count) == (3, 2, 1)
  assert counts.dropped['prompts_differ'].examples[0].startswith(f'{tmp_path}/manual/harmless-base/test.jsonl:2: ')


def test_rows_are_of_a_form_that_the_library_reads(tmp_path):
  rows = [{'chosen': f'{START} Yes', 'rejected': f'{START} No'}]
  builder = preparing.build(tmp_path, 'hh_rlhf', {'harmless-base/train.jsonl': rows})
  ((_, row),) = catalogue.rows(str(builder.data_path))
  (pair,) = sources.read_pairs(preparing.write(tmp_path / 'r.jsonl', [row]), report.DropReport())
  assert (pair.prompt, pair.responses) == (START, (' Yes', ' No'))
