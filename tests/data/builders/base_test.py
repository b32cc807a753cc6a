"""Tests of what all builders share: every row is written once and in order, and errors name what is wrong."""

import pytest
import tensorflow_datasets as tfds

from alignjax.data import builders
from alignjax.data.reading import catalogue, rows
from tests.data.builders import preparing

TRANSCRIPT = '\n\nHuman: Question {}?\n\nAssistant:'


def transcripts(count, first=0):
  """Rows of hh_rlhf, all different."""
  prompts = [TRANSCRIPT.format(i) for i in range(first, first + count)]
  return [{'chosen': f'{prompt} Good', 'rejected': f'{prompt} Bad'} for prompt in prompts]


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """So many rows that a writer which works in batches of 1000, as TFDS has one, would show what it loses."""
  folder = tmp_path_factory.mktemp('hh')
  files = {'harmless-base/train.jsonl.gz': transcripts(2500), 'harmless-base/test.jsonl': transcripts(30, first=2500)}
  return preparing.build(folder, 'hh_rlhf/harmless-base-text', files)


def prompts(builder, split):
  return [row['prompt'] for _, row in catalogue.read(f'{builder.data_path}:{split}')]


def test_every_row_is_there_once_and_in_order(prepared):
  assert prompts(prepared, 'train') == [TRANSCRIPT.format(i) for i in range(2500)]
  assert prompts(prepared, 'test') == [TRANSCRIPT.format(i) for i in range(2500, 2530)]
  assert {split: info.num_examples for split, info in prepared.info.splits.items()} == {'train': 2500, 'test': 30}
  assert {split: report.kept for split, report in prepared.reports.items()} == {'train': 2500, 'test': 30}


@pytest.mark.parametrize(
  ('split', 'wanted'),
  [
    ('train[:10%]', range(250)),
    ('train[2490:]', range(2490, 2500)),
    ('test[90%:]+train[:2]', [2527, 2528, 2529, 0, 1]),
  ],
)
def test_parts_of_splits(prepared, split, wanted):
  assert prompts(prepared, split) == [TRANSCRIPT.format(i) for i in wanted]


def test_the_usual_ways_of_tfds_read_it_at_random(prepared):
  source = tfds.builder_from_directory(prepared.data_path).as_data_source(split='train')
  assert len(source) == 2500
  assert source[1234]['prompt'].decode() == TRANSCRIPT.format(1234)


@pytest.mark.parametrize(
  ('line', 'reason', 'message'),
  [
    (b'{"chosen": ', 'not_json', 'not JSON'),
    (b'[]', 'not_an_object', 'each row must be a JSON object'),
    ({'chosen': 'x'}, 'missing_field', "field 'rejected'"),
    ({'chosen': 'x', 'rejected': 'y', 'more': 3}, 'unknown_field', 'more'),
  ],
)
def test_a_malformed_row_ends_the_build_with_its_place_or_is_counted(tmp_path, line, reason, message):
  files = {'harmless-base/train.jsonl': [*transcripts(2), line]}
  with pytest.raises(rows.DataError, match=message) as caught:
    preparing.build(tmp_path, 'hh_rlhf', files)
  assert caught.value.reason == reason
  assert str(caught.value).startswith(f'{tmp_path}/manual/harmless-base/train.jsonl:3: ')
  assert not list((tmp_path / 'data').glob('**/*.array_record*'))  # nothing half done is left
  builder = preparing.build(tmp_path, 'hh_rlhf', files, on_error='skip')
  assert builder.info.splits['train'].num_examples == 2
  assert builder.reports['train'].dropped[reason].count == 1


def test_a_damaged_stream_ends_the_build(tmp_path):
  path = preparing.write(tmp_path / 'manual' / 'harmless-base' / 'train.jsonl.gz', transcripts(50))
  path.write_bytes(path.read_bytes()[:-20])
  with pytest.raises(rows.DataError, match='damaged or truncated'):
    preparing.build(tmp_path, 'hh_rlhf/harmless-base-text', {})


def test_a_split_without_files_is_left_out(tmp_path):
  builder = preparing.build(tmp_path, 'hh_rlhf/harmless-base-text', {'harmless-base/test.jsonl': transcripts(3)})
  assert list(builder.info.splits) == list(builder.reports) == ['test']


@pytest.mark.parametrize(
  ('name', 'files', 'message'),
  [
    ('nothing', {}, 'nothing: no such builder; available: hh_rlhf/harmless-base'),
    ('hh_rlhf/kind', {}, 'hh_rlhf/kind: no such builder; available: '),
    ('hh_rlhf', {}, r'manual: the folder is missing or empty.\nDownload train.jsonl.gz and test.jsonl.gz'),
    (
      'hh_rlhf/helpful-base',
      {'harmless-base/train.jsonl': []},
      r'has no rows for hh_rlhf/helpful-base/1\.0\.0, which reads train: helpful-base/train\.jsonl\.gz or',
    ),
    ('hh_rlhf/harmless-base-text', {'harmless-base/train.jsonl': [b'']}, 'the file is empty'),
    (
      'hh_rlhf/harmless-base-text',
      {'harmless-base/train.jsonl': transcripts(1), 'harmless-base/train.jsonl.gz': transcripts(1)},
      'harmless-base/train.jsonl.gz and harmless-base/train.jsonl both exist for train',
    ),
  ],
)
def test_what_is_missing_is_named(tmp_path, name, files, message):
  with pytest.raises(ValueError, match=message):
    preparing.build(tmp_path, name, files)


def test_what_is_prepared_is_not_built_again_from_other_files(prepared):
  folder = prepared.data_path.parent.parent.parent
  with pytest.raises(ValueError, match='already prepared; delete this folder'):
    builders.build('hh_rlhf/harmless-base-text', manual_dir=folder.parent / 'manual', data_dir=folder)


def test_a_split_whose_rows_are_all_dropped_is_told(tmp_path):
  same = {'prompt': 'a', 'chosen': 'b', 'rejected': 'b'}
  files = {'train.jsonl': [same, same | {'rejected': 'c'}], 'test.jsonl': [same]}
  builder = preparing.build(tmp_path, 'jsonl_preferences', files)
  assert list(builder.info.splits) == ['train']
  assert (builder.reports['test'].read, builder.reports['test'].kept) == (1, 0)


def test_every_builder_says_what_to_put_where():
  for name, builder in builders.BUILDERS.items():
    assert builder.name == name
    assert '--manual_dir' in builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    assert tfds.builder_cls(name) is builder
