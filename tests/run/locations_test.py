"""Folders and names on the Hub. A local cache stands in for the Hub, so nothing is downloaded."""

import json
import pathlib
import shutil

import huggingface_hub
from huggingface_hub import constants, errors
import pytest

from alignjax import rewards
from alignjax.commands import data, merge, program, sample
from alignjax.data.reading import drops, sources
from alignjax.models import checkpoint_io, peft
from alignjax.run import locations, notebook, settings
from tests import assets

COMMIT = 'a' * 40
GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """The cache of the Hub, with one model, and no connection."""
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  repository = tmp_path / 'hub' / 'models--someone--tiny'
  for name in ('main', 'v1.0'):
    (repository / 'refs').mkdir(parents=True, exist_ok=True)
    (repository / 'refs' / name).write_text(COMMIT)
  assets.write_tiny_model(repository / 'snapshots' / COMMIT, layers=1)
  return tmp_path / 'hub'


def test_a_cached_model_is_found_by_its_name(cache):
  expected = str(cache / 'models--someone--tiny' / 'snapshots' / COMMIT)
  for name in ('someone/tiny', 'someone/tiny@v1.0', f'someone/tiny@{COMMIT}'):
    assert locations.resolve(name, '--model') == expected
  assert locations.name_of(expected) == 'someone/tiny'
  assert notebook.load('someone/tiny').model.config.layers == 1


PAIRS = {  # files of a dataset by name, with the prompt of their only row; None: not data
  'README.md': None,
  'dataset_infos.json': None,
  'data/train-00000-of-00002.jsonl': 'first',
  'data/train-00001-of-00002.jsonl': 'second',
  'data/test-00000-of-00001-1f2e3d4c5b6a7988.jsonl': 'held out',
  'data/train_prefs-00000-of-00001.jsonl': 'another split',
  'harmless/train.jsonl': 'harmless',
  'helpful/train.jsonl': 'helpful',
  'shards/valid/0000.jsonl': 'shard',
  'half/train-00000-of-00002.jsonl': 'half',
  'lone/rows.jsonl': 'lone',
}


@pytest.fixture
def pairs(cache):
  """The cache of the Hub with a dataset, at the revisions main and v1.0."""
  repository = cache / 'datasets--someone--pairs'
  for name in ('main', 'v1.0'):
    (repository / 'refs').mkdir(parents=True, exist_ok=True)
    (repository / 'refs' / name).write_text(COMMIT)
  for name, prompt in PAIRS.items():
    path = repository / 'snapshots' / COMMIT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {'prompt': prompt, 'chosen': 'yes', 'rejected': 'no'}
    path.write_text('' if prompt is None else json.dumps(row) + '\n')
  return repository / 'snapshots' / COMMIT


def _prompts(source):
  resolved = locations.resolve_data(source, '--data')
  return [example.prompt for example in sources.read_examples(resolved, drops.DropReport())]


@pytest.mark.parametrize(
  ('source', 'prompts'),
  [
    ('someone/pairs/data', ['first', 'second']),
    ('preference:someone/pairs/data', ['first', 'second']),
    ('someone/pairs/data:test', ['held out']),
    ('someone/pairs:train_prefs', ['another split']),
    ('someone/pairs@v1.0/harmless', ['harmless']),
    (f'someone/pairs@{COMMIT}/helpful/', ['helpful']),
    ('someone/pairs:valid', ['shard']),
    ('someone/pairs/lone', ['lone']),
    ('someone/pairs/data/train-00001-of-00002.jsonl[:1]', ['second']),
    ('someone/pairs/data[rest:0.1%]', ['first', 'second']),
  ],
)
def test_data_on_the_hub_is_found_by_its_name(pairs, source, prompts):
  assert _prompts(source) == prompts


def test_the_form_the_columns_and_the_part_of_an_expression_are_kept(pairs):
  (resolved,) = locations.resolve_data('preference[prompt=question]:someone/pairs/lone[split:5%]', '--data')
  assert resolved == f'preference[prompt=question]:{pairs}/lone/rows.jsonl[split:5%]'


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    (
      'someone/pairs',
      r'the split train more than once: name a part of it, such as someone/pairs/data; there are data, ',
    ),
    ('someone/pairs@v1.0:none', r'no files of the split none: .* such as someone/pairs@v1\.0/data/test-00000'),
    ('someone/pairs/half', r'of the 2 files of the split train of someone/pairs, only 1 are there'),
    ('someone/pairs/empty', r'someone/pairs has no folder empty with data files, whose names end with \.jsonl'),
    ('someone/pairs/data[:1]', r'a range of rows needs one file, but these are 2: .* someone/pairs/data/train-00000'),
    ('someone/pairs/lone/rows.jsonl:test', r'rows\.jsonl is a file, which has no splits: leave out :test'),
    ('someone/other', r'--data=someone/other: there is no such file, and .* does not hold someone/other completely'),
    ('hh:someone/other@v2:test', r'hf download someone/other --repo-type dataset --revision v2 --local-dir <folder>'),
  ],
)
def test_data_that_cannot_be_found_is_refused_with_what_to_type(pairs, source, message):
  with pytest.raises(ValueError, match=message):
    locations.resolve_data(source, '--data')


@pytest.mark.parametrize(
  'source',
  [
    'pairs.jsonl',
    'data/pairs.jsonl',
    'hh:/x/y/z.jsonl',
    'hf:owner/name:train',
    'tfds:a/b:train',
    'gs://a/b.jsonl',
    'x',
  ],
)
def test_paths_and_schemes_are_left_as_they_are(cache, source):
  assert locations.resolve_data(source, '--data') == (source,)
  assert locations.resolve_data(pathlib.Path(source), '--data') == (pathlib.Path(source),)


def test_what_lies_in_a_local_folder_is_no_name(cache, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'runs').mkdir()
  assert locations.resolve_data('runs/data/missing.jsonl', '--data') == ('runs/data/missing.jsonl',)


def test_with_a_connection_only_the_files_that_are_meant_are_downloaded(pairs, monkeypatch):
  asked = []

  def download(name, repo_type, revision, allow_patterns):
    asked.append((name, repo_type, revision, allow_patterns))
    return str(pairs)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
  monkeypatch.setattr(huggingface_hub.HfApi, 'list_repo_files', lambda *args, **options: list(PAIRS))
  assert _prompts('someone/pairs@v1.0/data:test') == ['held out']
  assert asked == [('someone/pairs', 'dataset', 'v1.0', ['data/test-00000-of-00001-1f2e3d4c5b6a7988.jsonl'])]


def test_a_closed_dataset_is_explained(cache, monkeypatch):
  def listing(*args, **options):
    raise errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError)

  monkeypatch.setattr(huggingface_hub.HfApi, 'list_repo_files', listing)
  with pytest.raises(ValueError, match='the Hugging Face Hub has no dataset someone/secret that you may read'):
    locations.resolve_data('someone/secret', '--data')


def test_programs_take_names_of_models_and_of_data(pairs, tmp_path, capsys):
  flags = ['inspect', '--model=someone/tiny', '--data=someone/pairs/data', '--max_prompt=32', '--max_response=32']
  assert program.execute(data.PROGRAM, ['data', *flags]) == 0
  assert 'first' in capsys.readouterr().out
  flags = ['--model=someone/tiny', '--prompts=preference:someone/pairs/data', '--max_new_tokens=1', '--greedy']
  assert program.execute(sample.PROGRAM, ['sample', *flags, f'--output={tmp_path / "out.jsonl"}']) == 0
  written = [json.loads(line)['prompt'] for line in (tmp_path / 'out.jsonl').read_text().splitlines()]
  assert written == ['first', 'second']


def test_prompts_of_on_policy_training_and_reward_models_take_names(pairs):
  config = settings.Config(model='someone/tiny', prompts=('preference:someone/pairs/lone',))
  assert locations.with_paths(config).prompts == (f'preference:{pairs}/lone/rows.jsonl',)
  with pytest.raises(
    ValueError, match=r'reward_model=someone/scores: there is no such folder, and .* hf download some'
  ):
    rewards.parse('reward_model("someone/scores")')


def test_a_folder_comes_before_a_name(cache, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'someone' / 'tiny').mkdir(parents=True)
  assert locations.resolve('someone/tiny', '--model') == 'someone/tiny'
  assert locations.name_of('someone/tiny') == 'someone/tiny'


def test_a_run_gets_folders_in_place_of_names(cache):
  config = settings.Config(model='someone/tiny@v1.0', reference='someone/tiny', adapter_from='', data=('x.jsonl',))
  found = locations.with_paths(config)
  assert found.data == ('x.jsonl',)
  assert found.model == found.reference == locations.resolve('someone/tiny', '')
  assert found.adapter_from == found.base_model == ''
  assert locations.with_paths(found) == found


@pytest.mark.parametrize(
  ('location', 'message'),
  [
    ('someone/other', r'there is no such folder, and .*hub does not hold someone/other completely and .* cannot be '),
    ('someone/other@v2', r'on a machine with access: hf download someone/other --revision v2 --local-dir <folder>'),
    ('someone/tiny@v2', r'does not hold someone/tiny completely'),
    ('models/smollm2', 'or type: alignjax download smollm2 --out=models/smollm2'),
    ('nowhere', r'--model=nowhere: there is no such folder; models on the Hugging Face Hub have names such as'),
    ('/nowhere/else', 'there is no such folder'),
    ('a/b/c', 'there is no such folder'),
  ],
)
def test_without_a_connection_the_error_gives_what_to_type(cache, location, message):
  with pytest.raises(ValueError, match=message):
    locations.resolve(location, '--model')


@pytest.mark.parametrize(
  ('error', 'message'),
  [
    ('GatedRepoError', 'someone/big asks for a licence: accept it on https://huggingface.co/someone/big, and type: hf'),
    ('RepositoryNotFoundError', 'has no repository someone/big that you may read: check the name'),
    ('RevisionNotFoundError', 'someone/big has no revision v3 on the Hugging Face Hub'),
    ('LocalEntryNotFoundError', 'cannot be reached'),
  ],
)
def test_answers_of_the_hub_are_explained(monkeypatch, error, message):
  def download(name, repo_type, revision, allow_patterns):
    kind = getattr(errors, error)
    raise kind.__new__(kind)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
  with pytest.raises(ValueError, match=message):
    locations.resolve('someone/big@v3', '--model')


def test_what_holds_no_usable_weights_is_refused_with_a_remedy(tmp_path):
  adapter = tmp_path / 'adapter'
  shutil.copytree(GOLDEN / 'peft_llama_tied', adapter)
  with pytest.raises(ValueError, match=r'adapter/config\.json: is missing, because the folder holds an adapter: give'):
    checkpoint_io.load_config(adapter)
  (adapter / peft.WEIGHTS).rename(adapter / 'adapter_model.bin')
  config = checkpoint_io.load_config(GOLDEN / 'llama_tied')
  with pytest.raises(ValueError, match=r'only adapter_model.bin, .* convert it where torch is installed: python -c '):
    peft.load(adapter, config)
  old = assets.write_tiny_model(tmp_path / 'old')
  (old / 'model.safetensors').rename(old / 'pytorch_model.bin')
  with pytest.raises(ValueError, match=r"only pytorch_model.bin, .*save_pretrained\('.*old-safetensors'\)"):
    checkpoint_io.load_params(old, checkpoint_io.load_config(old))


def test_merging_takes_names(cache, tmp_path):
  flags = ['merge', '--method=linear()', '--models=someone/tiny,someone/tiny@v1.0', f'--out={tmp_path / "merged"}']
  assert program.execute(merge.PROGRAM, flags) == 0
  record = json.loads((tmp_path / 'merged' / 'merge.json').read_text())
  assert len(record['models']) == 2
