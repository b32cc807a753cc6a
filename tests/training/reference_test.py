"""A reference from a cache: the same losses as from one that runs in every step, for training and evaluation."""

import json
import pathlib

import jax
import numpy as np
import pytest

from alignjax import objectives, risk
from alignjax.data.batches import reference_cache
from alignjax.models import checkpoint_io
from alignjax.run import preparation, settings, training
from alignjax.training import caching
from tests import assets, runs


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp('reference')
  assets.write_tiny_model(path / 'model', layers=1, vocab_size=384)
  assets.write_tiny_model(path / 'other', layers=1, vocab_size=384, seed=1)
  runs.write_pairs(path / 'train.jsonl', 13, seed=0)
  runs.write_pairs(path / 'eval.jsonl', 5, seed=1)
  return path


def config_of(folder, workdir, **overrides):
  values = {
    'model': str(folder / 'model'),
    'reference': str(folder / 'other'),
    'data': (str(folder / 'train.jsonl'),),
    'eval_data': (str(folder / 'eval.jsonl'),),
    'steps': 2,
    'batch_size': 16,
    'buckets': ((16, 24),),
    'optimizer': 'sgd(0.1)',
    'remat': 'none',
    'compute_dtype': 'float32',
    'doctor': 'off',
    'workdir': str(folder / workdir),
  }
  return settings.Config(**values | overrides)


def records(folder, workdir, **overrides):
  training.train(config_of(folder, workdir, **overrides))
  lines = (folder / workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def contents(root: pathlib.Path) -> dict[str, bytes]:
  return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*') if path.is_file()}


def watch(monkeypatch) -> list[int]:
  """A list to which every example is added that is written into a cache."""
  written, write = [], reference_cache.Writer.write

  def watched(writer, ids, values):
    written.extend(int(index) for index in ids if index >= 0)
    write(writer, ids, values)

  monkeypatch.setattr(reference_cache.Writer, 'write', watched)
  return written


# step_test.py has both columns in the step, doctor_test.py compares a cache with the live reference, and
# preparation_test.py reads the cache of an adapter's base.
@pytest.mark.slow
@pytest.mark.parametrize(
  ('objective', 'column'),
  [('dpo(beta=0.1)', 'reference_logp'), ('tdpo(beta=0.1)', 'reference_states')],
)
def test_a_cache_gives_the_losses_of_a_live_reference(folder, objective, column, capsys, monkeypatch):
  name = objective.split('(')[0]
  live = records(folder, f'{name}-live', objective=objective)
  capsys.readouterr()
  options = {'objective': objective, 'reference_cache': str(folder / f'{name}-cache')}
  preparation.prepare(config_of(folder, 'nowhere', **options), print)
  said = capsys.readouterr().out
  assert (
    said.count('reference cache of 13 examples: writing') == said.count('reference cache of 5 examples: writing') == 1
  )
  monkeypatch.setattr(caching, 'compute', None)  # it is there: nothing may make it again
  found = records(folder, f'{name}-found', **options)
  said = capsys.readouterr().out
  assert 'doctor' not in said
  assert f'reference cache: {column} of 13 examples' in said
  for expected, record in zip(live, found, strict=True):
    for key in ('loss', 'gradient_norm', 'eval/loss', 'eval/reward_accuracy'):
      if key in expected:
        np.testing.assert_allclose(record[key], expected[key], rtol=1e-5, err_msg=key)
  assert abs(live[0]['eval/loss'] - np.log(2)) > 0.003  # the reference is another model, so that a wrong one is seen


def test_a_damaged_shard_is_computed_again_and_no_other(folder, monkeypatch, caplog):
  monkeypatch.setattr(caching, 'SHARD', 8)
  options = {'eval_data': (), 'batch_size': 8, 'reference_cache': str(folder / 'damaged')}
  preparation.prepare(config_of(folder, 'nowhere', **options), print)
  before = contents(folder / 'damaged')
  first, second = sorted((folder / 'damaged').glob('*/*/reference_logp.npy'))
  second.write_bytes(second.read_bytes()[:-4])
  written = watch(monkeypatch)
  preparation.prepare(config_of(folder, 'nowhere', **options), print)
  assert f'{second}: has ' in caplog.text
  assert sorted(written) == np.load(second.with_name('ids.npy')).tolist()
  assert len(written) < 13
  assert contents(folder / 'damaged') == before
  assert first.parent != second.parent


def test_a_cache_without_use_is_refused(folder):
  with pytest.raises(ValueError, match="reference_cache = 'x' is set, but"):
    records(folder, 'no-use', objective='simpo(beta=2.0, gamma=0.5)', reference_cache='x', reference='')


def test_what_is_worth_keeping_follows_from_what_an_objective_needs():
  dpo, ra_dpo = objectives.dpo(), objectives.ra_dpo(risk=risk.cvar(0.9))
  number, states = reference_cache.Column((), 'float32'), reference_cache.Column((64,), 'bfloat16')
  assert caching.columns(dpo.needs, 64, 'bfloat16') == {'reference_logp': number}
  assert caching.columns((dpo + ra_dpo).needs, 64, 'bfloat16') == {'reference_states': states}
  with pytest.raises(ValueError, match='nothing to cache'):
    caching.columns(objectives.sft().needs, 64, 'bfloat16')


def test_the_program_with_cached_states_reads_the_head_alone(folder):
  """Of the reference, a step that has cached states holds the head and not the trunk."""
  config = checkpoint_io.load_config(folder / 'other')
  head = checkpoint_io.load_head(folder / 'other', config)
  assert sum(leaf.size for leaf in jax.tree.leaves(head)) == config.vocab_size * config.width
