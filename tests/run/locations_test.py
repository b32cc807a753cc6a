"""Folders and names on the Hub. A local cache stands in for the Hub, so nothing is downloaded."""

import json
import pathlib
import shutil

import huggingface_hub
from huggingface_hub import constants, errors
import pytest

from alignjax.commands import merge, program
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


def test_a_folder_comes_before_a_name(cache, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'someone' / 'tiny').mkdir(parents=True)
  assert locations.resolve('someone/tiny', '--model') == 'someone/tiny'
  assert locations.name_of('someone/tiny') == 'someone/tiny'


def test_a_run_gets_folders_in_place_of_names(cache):
  config = settings.Config(model='someone/tiny@v1.0', reference='someone/tiny', adapter_from='')
  found = locations.with_folders(config)
  assert found.model == found.reference == locations.resolve('someone/tiny', '')
  assert found.adapter_from == found.base_model == ''
  assert locations.with_folders(found) == found


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
  def download(name, revision, allow_patterns):
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
