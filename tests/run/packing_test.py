"""Runs on packed rows: what decides on them, what they refuse, and that a run computes what it does in buckets."""

import dataclasses
import json

import numpy as np
import pytest

from alignjax import objectives
from alignjax.data.batches import batching, packed
from alignjax.data.tokens import dataset
from alignjax.run import packing_choice, settings, training
from tests import packed_batches, runs

SPEC = batching.BatchSpec(8, epochs=1)
OBJECTIVE = objectives.dpo()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'buckets': ((8, 8),)}, r'config\.buckets = \[\(8, 8\)\] are batch shapes'),
    ({'prompts': ('prompts.jsonl',)}, r'does not support responses that the policy draws'),
    ({'attention': 'cudnn'}, r"does not support config\.attention = 'cudnn': use --packing=off"),
  ],
)
def test_what_packing_does_not_support_is_refused_or_avoided(changes, message):
  with pytest.raises(ValueError, match=message):
    packing_choice.check(settings.Config(packing='on', **changes), OBJECTIVE)
  avoided = settings.Config(packing='auto', **changes)
  packing_choice.check(avoided, OBJECTIVE)
  assert packing_choice.rows(avoided, OBJECTIVE, 1) is None


def test_objectives_that_depend_on_the_order_of_a_batch_are_refused():
  ordered = dataclasses.replace(OBJECTIVE, couples_rows=True, ordered=True)
  with pytest.raises(ValueError, match='depends on the order of the prompts in a batch: use --packing=off'):
    packing_choice.check(settings.Config(packing='on'), ordered)
  assert packing_choice.rows(settings.Config(packing='auto'), ordered, 1) is None


def test_rows_are_multiples_of_microbatches_and_shards_and_hold_what_rewards_read():
  config = settings.Config(packing='on', microbatches=3)
  assert packing_choice.rows(config, objectives.dpo(), 2) == packed.Rows(6, final=False)
  assert packing_choice.rows(config, objectives.bradley_terry(), 2) == packed.Rows(6, final=True)
  assert packing_choice.rows(settings.Config(), objectives.dpo(), 2) is None


def test_the_cheaper_of_both_is_chosen_and_announced():
  ragged = packed_batches.examples(160, longest=(400, 90))
  even = dataset.pack([dataset.TokenExample(range(32), [range(32)] * 2)] * 8)  # of the very size of a bucket
  said = []
  assert packing_choice.choose(ragged, SPEC, packed.Rows(), 'auto', said.append) == packed.Rows()
  assert packing_choice.choose(even, SPEC, packed.Rows(8), 'auto', said.append) is None
  assert packing_choice.choose(even, SPEC, packed.Rows(8), 'on', said.append) == packed.Rows(8)
  assert [text.rsplit(' ', 2)[-1] for text in said] == ['rows', 'buckets', 'rows']
  assert packing_choice.choose(ragged, SPEC, None, 'off', said.append) is None


def records(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize('objective', ['dpo(beta=0.1)', 'bradley_terry()'])
def test_a_run_evaluates_as_in_buckets_and_resumes_bit_by_bit(tmp_path, objective):
  folder = runs.write_folder(tmp_path)

  def run(name, **changes):
    config = runs.make_config(folder, tmp_path / name, objective=objective, steps=6, doctor='stop')
    training.train(dataclasses.replace(config, **{'packing': 'on', 'buckets': ()} | changes))
    return records(tmp_path / name)

  whole, plain = run('whole'), run('plain', packing='off')
  for name in [name for name in whole[0] if name.startswith('eval/')]:
    np.testing.assert_allclose(whole[0][name], plain[0][name], rtol=3e-6, atol=1e-6)
  run('parts', steps=3)
  parts = run('parts', microbatches=1)
  for one, other in zip(whole, parts, strict=True):
    same = {key: value for key, value in one.items() if not key.startswith(('time/', 'eval/'))}
    assert same == {key: other[key] for key in same}
