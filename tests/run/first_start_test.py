"""What a run keeps from its first start: the date that its chat template prints, and the type of activations."""

import dataclasses
import datetime
import json
import pathlib
import shutil

import pytest

from alignjax.data.tokens import tokenization
from alignjax.run import arithmetic, first_start, preparation, training
from alignjax.training import metrics
from tests import assets, runs

DATED = "{{ '<|im_start|>system\\nToday is ' + strftime_now('%d %b %Y') + '<|im_end|>\\n' }}" + assets.CHAT_TEMPLATE
DAYS = [datetime.datetime(2026, 1, 31, 23, 59, 59, 7), datetime.datetime(2026, 2, 1)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A model whose template prints the date, and conversations."""
  folder = runs.write_folder(tmp_path_factory.mktemp('dated'))
  (folder / 'model' / 'chat_template.jinja').write_text(DATED)
  given = [json.loads(line) for line in (folder / 'train.jsonl').read_text().splitlines()]
  rows = [row | {'prompt': [{'role': 'user', 'content': row['prompt']}]} for row in given]
  (folder / 'train.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return folder


def configure(folder: pathlib.Path, workdir: str, **overrides):
  options = {'eval_data': (), 'steps': 4, 'save_every': 2, 'buckets': ((128, 24),)}
  return runs.make_config(folder, folder / workdir, reference_cache=str(folder / 'cache'), **options | overrides)


def losses(workdir: pathlib.Path) -> list[float]:
  return [record['loss'] for record in metrics.read_jsonl(workdir / 'metrics.jsonl') if 'loss' in record]


@pytest.mark.slow  # the next test keeps the date, and recovery restores it
def test_a_run_that_is_resumed_on_another_day_has_the_same_tokens_cache_and_losses(folder, monkeypatch, capsys):
  monkeypatch.setattr(first_start, '_clock', lambda: DAYS[0])
  whole = configure(folder, 'whole')
  training.train(whole)
  first, second = folder / 'whole', folder / 'resumed'
  shutil.copytree(first / 'checkpoints' / '2', second / 'checkpoints' / '2')  # which holds the date
  lines = (first / 'metrics.jsonl').read_text(encoding='utf-8').splitlines(keepends=True)
  (second / 'metrics.jsonl').write_text(''.join(lines[:2]), encoding='utf-8')
  monkeypatch.setattr(first_start, '_clock', lambda: DAYS[1])
  training.train(dataclasses.replace(whole, workdir=str(second)))
  printed = capsys.readouterr().out
  assert 'resuming from step 2' in printed
  assert printed.count('reference cache of 61 examples: writing') == 1
  assert losses(second) == losses(first)
  assert len(losses(first)) == 4
  assert (second / first_start.FILE).read_text() == (first / first_start.FILE).read_text() == '2026-01-31T23:59:59\n'
  new = preparation.prepare(dataclasses.replace(whole, reference_cache='', workdir=str(folder / 'new')), print)
  old = preparation.prepare(dataclasses.replace(whole, reference_cache=''), print)
  assert new.training.data.fingerprint != old.training.data.fingerprint  # a new run has the new date


def test_the_date_is_kept_before_there_is_a_checkpoint(tmp_path, monkeypatch):
  monkeypatch.setattr(first_start, '_clock', lambda: DAYS[0])
  first = first_start.date(str(tmp_path / 'run'))
  monkeypatch.setattr(first_start, '_clock', lambda: DAYS[1])
  assert first_start.date(str(tmp_path / 'run')) == first == DAYS[0].replace(microsecond=0)
  assert first_start.date('') == DAYS[1]
  (tmp_path / 'run' / first_start.FILE).write_text('yesterday')
  with pytest.raises(ValueError, match=r'first_start\.txt: does not hold the date of the first start'):
    first_start.date(str(tmp_path / 'run'))


def test_a_template_without_a_date_leaves_no_trace(tiny_run, tmp_path, monkeypatch):
  def asked() -> datetime.datetime:
    raise AssertionError('the date is not needed')

  monkeypatch.setattr(first_start, '_clock', asked)
  tokenizer = tokenization.Tokenizer.load(tiny_run / 'model', lambda: first_start.date(str(tmp_path)))
  assert tokenizer.template.date is None
  assert not list(tmp_path.iterdir())


def test_a_run_keeps_its_type_of_activations_on_a_machine_that_would_choose_another(tiny_run, tmp_path, monkeypatch):
  config = runs.make_config(tiny_run, tmp_path / 'run', compute_dtype='auto')
  monkeypatch.setattr(arithmetic, 'faster', lambda: 'bfloat16')
  monkeypatch.setattr(training.preparation, 'check_settings', lambda config: None)
  monkeypatch.setattr(training, '_train', lambda found, given, *_: (found.compute_dtype, given.compute_dtype))
  assert training.train(config) == ('bfloat16', 'bfloat16')  # computes with it, and records it
  for step, content in enumerate([{'config': {'compute_dtype': 'bfloat16'}}, {'config': []}]):  # the last is damaged
    folder = tmp_path / 'run' / 'checkpoints' / str(step) / 'metadata'
    folder.mkdir(parents=True)
    (folder / 'metadata').write_text(json.dumps({'content': content}))
  monkeypatch.setattr(arithmetic, 'faster', lambda: 'float32')
  assert training.train(config) == ('bfloat16', 'bfloat16')
  assert training.train(dataclasses.replace(config, compute_dtype='float32')) == ('float32', 'float32')
  assert training.train(dataclasses.replace(config, workdir=str(tmp_path / 'other'))) == ('float32', 'float32')


def test_a_run_that_samples_from_an_adapted_model_computes_in_float32(tmp_path, monkeypatch):
  monkeypatch.setattr(arithmetic, 'faster', lambda: 'bfloat16')
  config = runs.settings.Config(adapter='lora()', workdir=str(tmp_path))
  assert first_start.settled(config).compute_dtype == 'bfloat16'
  assert first_start.settled(dataclasses.replace(config, prompts=('prompts.jsonl',))).compute_dtype == 'float32'
