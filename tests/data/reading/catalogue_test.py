"""Tests of reading prepared TFDS datasets: lookup, decoding, and errors."""

import json
import pathlib
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow_datasets as tfds

from alignjax.data.reading import catalogue, drops, sources
from tests.data.builders import preparing

ROOT = pathlib.Path(__file__).parent.parent.parent


class Everything(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Features of all kinds, in two splits of which none is called train."""

  VERSION = tfds.core.Version('2.0.0')

  def _info(self):
    features = {
      'text': tfds.features.Text(),
      'texts': tfds.features.Sequence(tfds.features.Text()),
      'turns': tfds.features.Sequence({'role': tfds.features.Text(), 'turn': np.int64}),
      'nested': {'integer': tfds.features.Scalar(np.int64), 'double': tfds.features.Scalar(np.float64)},
      'vector': tfds.features.Tensor(shape=(2,), dtype=np.float32),
      'maybe': tfds.features.Scalar(np.float32, optional=True),
      'label': tfds.features.ClassLabel(names=['bad', 'good']),
      'flag': tfds.features.Scalar(np.bool_),
    }
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True)

  def _split_generators(self, dl_manager):
    return {'left': self._generate_examples(EXAMPLES), 'right': self._generate_examples(EXAMPLES[:1])}

  def _generate_examples(self, examples):
    yield from enumerate(examples)


EXAMPLES = [
  {
    'text': 'Über\0\n',
    'texts': ['a', ''],
    'turns': [{'role': 'user', 'turn': 7}, {'role': 'system', 'turn': 8}],
    'nested': {'integer': 2**40, 'double': 0.1},
    'vector': [0.3, -1.5],
    'maybe': 1e-30,
    'label': 'good',
    'flag': True,
  },
  {
    'text': '',
    'texts': [],
    'turns': [],
    'nested': {'integer': -1, 'double': 123456.7},
    'vector': [0, 3],
    'maybe': None,
    'label': 'bad',
    'flag': False,
  },
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder of prepared data sets, one of the library's builders and one of another's."""
  folder = tmp_path_factory.mktemp('catalogue')
  rows = [{'prompt': f'Über {i}', 'chosen': ' upon', 'rejected': ' a'} for i in range(20)]
  preparing.build(folder, 'jsonl_preferences/text', {'train.jsonl': rows, 'test.jsonl': rows[:3]})
  Everything(data_dir=folder / 'data', file_format='array_record').download_and_prepare()
  return folder / 'data'


@pytest.fixture(scope='module', autouse=True)
def _no_tensorflow(tmp_path_factory):
  """All tests of this file, and the datasets that they build, run where importing TensorFlow ends the process."""
  folder = tmp_path_factory.mktemp('modules')
  (folder / 'tensorflow.py').write_text("raise SystemExit('TensorFlow was imported')")
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(folder)
    yield
  assert 'tensorflow' not in sys.modules


@pytest.fixture(autouse=True)
def _data_dir(folder, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(folder))


def prompts(location):
  return [row['prompt'] for _, row in catalogue.read(location)]


@pytest.mark.parametrize(
  ('location', 'wanted'),
  [
    ('jsonl_preferences', range(20)),
    ('jsonl_preferences/text', range(20)),
    ('jsonl_preferences/text:train', range(20)),
    ('jsonl_preferences:test', range(3)),
    ('jsonl_preferences:train[:10%]', range(2)),
    ('jsonl_preferences:train[18:]+test[:1]', [18, 19, 0]),
  ],
)
def test_a_data_set_is_found_by_name_or_folder(folder, location, wanted):
  wanted = [f'Über {i}' for i in wanted]
  assert prompts(location) == wanted
  _, colon, split = location.partition(':')
  assert prompts(f'{folder}/jsonl_preferences/text/1.0.0{colon}{split}') == wanted


def test_pairs_are_read_by_an_expression(folder):
  pairs = list(sources.read_examples('tfds:jsonl_preferences:test[1:]', drops.DropReport()))
  assert [pair.origin for pair in pairs] == ['tfds:jsonl_preferences:test[1:]:1', 'tfds:jsonl_preferences:test[1:]:2']
  assert [pair.prompt for pair in pairs] == ['Über 1', 'Über 2']
  again = sources.read_examples(f'preference:tfds:{folder}/jsonl_preferences/text/1.0.0:test', drops.DropReport())
  assert len(list(again)) == 3
  with pytest.raises(ValueError, match='nothing: no such dataset'):
    next(sources.read_examples('tfds:nothing', drops.DropReport()))


def test_rows_are_numbered_from_1():
  assert [number for number, _ in catalogue.read('jsonl_preferences:test')] == [1, 2, 3]


def test_rows_are_what_json_would_hold():
  rows = [row for _, row in catalogue.read('everything:left')]
  wanted = [example | {'label': int(example['label'] == 'good')} for example in EXAMPLES]
  del wanted[1]['maybe']  # has no value
  assert rows == wanted
  assert json.loads(json.dumps(rows)) == rows  # so no type of numpy is left
  assert [type(row['flag']) for row in rows] == [bool, bool]
  assert type(rows[0]['label']) is int


@pytest.mark.parametrize(
  ('location', 'message'),
  [
    (
      'nothing',
      r'nothing: no such dataset is prepared in .*; available: everything, jsonl_preferences/text\. To prepare',
    ),
    ('nothing', 'To prepare one: alignjax data build NAME'),
    ('jsonl_preferences/chat', 'jsonl_preferences/chat: no such dataset is prepared'),
    ('imdb_reviews', 'imdb_reviews: no such dataset is prepared'),  # TFDS knows it, but it is not there
    ('two words', 'two words: no such dataset is prepared'),
    ('', 'no such dataset is prepared'),
    ('a/b/c', 'a/b/c: no such dataset is prepared'),
    ('/nowhere:train', '/nowhere: no such dataset is prepared'),
    (
      'jsonl_preferences:dev',
      "jsonl_preferences: no split 'dev'; available: train, test, and slices such as train",
    ),
    ('jsonl_preferences:train[', r"no split 'train\['"),
    ('everything', 'everything: name a split; available: left, right'),
  ],
)
def test_what_is_not_there_is_named(location, message):
  with pytest.raises(ValueError, match=message):
    next(catalogue.read(location))


def test_an_empty_folder_is_said_to_be_empty(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  with pytest.raises(ValueError, match=r'TFDS_DATA_DIR; available: none\. To prepare one'):
    next(catalogue.read('hh_rlhf'))


def test_a_format_that_loses_rows_is_refused(tmp_path):
  Everything(data_dir=tmp_path, file_format='parquet').download_and_prepare()
  with pytest.raises(ValueError, match=r'is stored as parquet, .* prepare it again with file_format=array_record'):
    next(catalogue.read(f'{tmp_path}/everything/2.0.0:left'))


def test_text_that_is_not_utf8_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(EXAMPLES[1], 'text', b'\xff')
  Everything(data_dir=tmp_path, file_format='array_record').download_and_prepare()
  location = f'{tmp_path}/everything/2.0.0:left'
  with pytest.raises(ValueError, match=re.escape(f'{location}:2: a text is not UTF-8')):
    list(catalogue.read(location))


@pytest.mark.parametrize(
  ('name', 'change', 'message'),
  [
    (
      'everything-left.array_record-00000-of-00001',
      lambda content: content[:-200],
      ':1: the files are damaged: .*; pre',
    ),
    ('everything-left.array_record-00000-of-00001', lambda content: None, ':1: the files are damaged: .*; prepare'),
    (
      'dataset_info.json',
      lambda content: content[:-9],
      'a .json file of the dataset is damaged: .*; prepare it again',
    ),
  ],
)
def test_damage_is_told(tmp_path, name, change, message):
  Everything(data_dir=tmp_path, file_format='array_record').download_and_prepare()
  path = tmp_path / 'everything' / '2.0.0' / name
  content = change(path.read_bytes())
  if content is None:
    path.unlink()
  else:
    path.write_bytes(content)
  with pytest.raises(ValueError, match=message):
    list(catalogue.read(f'{path.parent}:left'))


@pytest.mark.slow  # takes a second import of TFDS; that neither building nor reading imports it is tested above
def test_a_program_that_builds_and_reads_never_imports_tensorflow(tmp_path):
  """In a separate process, so that imports at the top of modules count too."""
  (tmp_path / 'tensorflow.py').write_text("raise SystemExit('TensorFlow was imported')")
  preparing.write(tmp_path / 'manual' / 'train.jsonl', [{'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}])
  program = f"""
    import sys
    sys.path.insert(0, {str(tmp_path)!r})
    from alignjax.data import builders
    from alignjax.data.reading import drops, sources
    builders.build('jsonl_preferences', manual_dir={str(tmp_path / 'manual')!r}, data_dir={str(tmp_path / 'data')!r})
    expression = {f'tfds:{tmp_path / "data/jsonl_preferences/text/1.0.0"}'!r}
    print([example.responses for example in sources.read_examples(expression, drops.DropReport())])
    assert 'tensorflow' not in sys.modules
  """
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(program)], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1] == "[('b', 'c')]"
