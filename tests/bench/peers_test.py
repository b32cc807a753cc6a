"""The comparison of training steps: what can be tested without the other libraries."""

import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from bench.peers import files, protocol, results, training, workers

RULES = results.Rules(tolerance=1e-4, disturbed=0.1)
SCALE = results.Scale(tokens=100, flops=4e9, peak=1e10)
LOSSES = [0.71, 0.62, 0.4]


def result(name='alignjax', *, seconds=(1.0, 2.0, 4.0), others=(0.0, 0.0, 0.0), losses=LOSSES):
  return results.Result(name, losses=list(losses), turns=list(map(results.Turn, seconds, others)))


def test_files_are_read_as_they_were_written(tmp_path):
  case = protocol.Case(batch=2, learning_rate=1e-3, cached=True)
  pairs = files.ragged_pairs(50, 6)
  protocol.write(tmp_path, case, pairs)
  read_case, read_pairs = protocol.read(tmp_path)
  assert read_case == case
  assert [[part.tolist() for part in pair] for pair in read_pairs] == [
    [part.tolist() for part in pair] for pair in pairs
  ]


def test_ragged_lengths_are_like_those_of_hh():
  lengths = np.array([[len(part) for part in pair] for pair in files.ragged_pairs(50, 2000)])
  prompt, *responses = np.median(lengths, axis=0)
  assert abs(prompt / 122 - 1) < 0.1
  assert all(abs(response / 31 - 1) < 0.1 for response in responses)
  assert lengths.min() >= 4
  assert lengths.max() == files.LIMIT


def test_the_reference_differs_from_the_policy(tmp_path):
  safetensors = pytest.importorskip('safetensors.numpy')
  files.write_models(tmp_path, files.QUICK_LLAMA | {'vocab_size': 20, 'hidden_size': 8, 'intermediate_size': 8})
  policy, reference = (
    safetensors.load_file(tmp_path / name / 'model.safetensors') for name in (protocol.POLICY, protocol.REFERENCE)
  )
  assert policy.keys() == reference.keys()
  away = {
    name: float(np.std(reference[name] - policy[name]) / np.std(policy[name])) for name in policy if 'proj' in name
  }
  np.testing.assert_allclose(list(away.values()), files.DIFFERENCE, rtol=0.3)


SCRIPT = """
from bench.peers import protocol
turns = protocol.Turns(warm_up=2, steps=2)
turns.work = protocol.rows(2, 3, 1)
print('a library prints')
losses = iter(range(100))
while turns.begin_step():
  turns.end_step(next(losses), pairs=1)
"""


@pytest.fixture
def worker(tmp_path):
  worker = workers.Worker('one', [sys.executable, '-c', SCRIPT], training.variables(huge_pages=False), tmp_path / 'log')
  yield worker
  worker.close()


def test_a_worker_reports_losses_and_memory_of_its_turns(worker):
  worker.prepare()
  worker.turn()
  found = worker.result
  assert found.losses == [0.5, 2.5, 4.5]  # means over two steps, two turns of which are not measured
  assert len(found.turns) == 1
  assert found.work == protocol.Work(6, 12.0, 2)
  assert 0 < found.peak <= found.peak_at_start
  assert 'a library prints' in worker.log.read_text()


def test_a_worker_that_ends_gives_its_last_words(tmp_path):
  script = 'raise ValueError("no such model")'
  ended = workers.Worker('one', [sys.executable, '-c', script], os.environ, tmp_path / 'log')
  with pytest.raises(workers.EndedError, match='no such model'):
    ended.prepare()
  ended.close()


def test_the_share_of_others_is_what_is_not_ones_own():
  before, now = workers.Processor(1.0, 10.0, 100.0), workers.Processor(2.0, 14.0, 110.0)
  assert now.others_since(before) == pytest.approx(0.3)
  own = workers.Processor.now(os.getpid())
  assert 0 < own.own <= own.busy <= own.total


def test_losses_are_compared_turn_by_turn():
  assert results.difference(result(), result()) == 0
  assert results.difference(result(), result(losses=[0.71, 0.62 * 1.01, 0.4])) == pytest.approx(0.01)
  assert results.difference(result(), result(losses=[0.71, math.nan, 0.4])) == math.inf
  with pytest.raises(ValueError, match='zip'):
    results.difference(result(), result(losses=LOSSES[:2]))


def test_losses_of_a_policy_that_equals_its_reference_prove_nothing():
  with pytest.raises(ValueError, match='prove nothing'):
    results.check_telling(result(losses=[math.log(2), 0.6931]), 1e-4)
  results.check_telling(result(), 1e-4)


def test_ratios_leave_disturbed_rounds_out():
  own = result('hand', seconds=(2.0, 2.0, 2.0), others=(0.0, 0.5, 0.0))
  assert results.ratios(result(), own, 0.1) == ([2.0, 0.5], True)
  assert results.ratios(result(others=(0.0, 0.0, 0.2)), own, 0.1) == ([2.0], True)
  assert results.ratios(result(others=(0.2, 0.2, 0.2)), own, 0.1) == ([2.0, 1.0, 0.5], False)


def test_the_table_refuses_rows_and_names_missing_contenders():
  wrong = [loss * (1 + 2e-4) for loss in LOSSES]
  found = [result(), result('hand', seconds=(2.0, 6.0, 8.0)), result('trl', losses=wrong)]
  found.append(results.Result('tunix', problem='no peers/tunix/bin/python'))
  lines = results.table(found, RULES, SCALE, {'hand': 6e9})
  heads, base, hand, trl, tunix = (
    [cell.strip() for cell in line.strip('|').split('|')] for line in (lines[0], *lines[2:])
  )
  assert len({len(line) for line in (heads, base, hand, trl, tunix)}) == 1
  hand = dict(zip(heads, hand, strict=True))
  assert (hand['seconds'], hand['time / alignjax'], hand['range']) == ('6.000', '2.00', '2.00 to 3.00')
  assert (hand['tokens/s'], hand['useful FLOPs'], hand['own FLOPs']) == ('17', '7%', '10%')
  assert dict(zip(heads, base, strict=True))['own FLOPs'] == ''
  assert trl[1].startswith('refused: its losses differ by 2.0e-04')
  assert not any(trl[2:])
  assert tunix[1] == 'unavailable: no peers/tunix/bin/python'


def test_a_row_at_the_tolerance_is_kept_and_one_that_is_not_finite_refused():
  kept, refused = result('a', losses=[loss * (1 + 0.9e-4) for loss in LOSSES]), result('b', losses=[math.nan] * 3)
  lines = results.table([result(), kept, refused], RULES, SCALE, {})
  assert [('refused' in line) for line in lines[2:]] == [False, False, True]


def test_flops_are_those_of_the_products():
  entries = files.LLAMA
  weights = sum(math.prod(shape) for name, shape in files.shapes(entries).items() if 'proj' in name)
  head = entries['hidden_size'] * entries['vocab_size']
  work = protocol.Work(positions=10, predicted=3)
  forward = 2 * (10 * weights + 3 * head)
  assert results.flops(work, entries, cached=False) == 4 * forward
  assert results.flops(work, entries, cached=True) == 3 * forward
  # A query and a key of 64 numbers in each of 6 heads of 8 layers, and as much for the values.
  assert results.flops(protocol.Work(attended=1), entries, cached=True) == 3 * 8 * 2 * 2 * 6 * 64


def test_a_shared_prompt_is_computed_once():
  shared, twice = protocol.shared_rows(1, 5, [3, 3]), protocol.rows(2, 8, 3)
  assert shared.predicted == twice.predicted == 6
  assert twice.positions - shared.positions == 5
  assert twice.attended - shared.attended == protocol.rows(1, 5, 0).attended


def test_cases_name_contenders_whose_modules_exist():
  for setting in training.CASES.values():
    assert setting.contenders[0] == training.BASE
    assert set(setting.contenders) <= training.CONTENDERS.keys()
  package = pathlib.Path(training.__file__).parent
  assert all((package / f'{contender.module}.py').exists() for contender in training.CONTENDERS.values())


def test_the_protocol_can_be_imported_without_alignjax():
  script = 'import json, sys; from bench.peers import protocol; print(json.dumps([*sys.modules]))'
  done = subprocess.run(
    [sys.executable, '-c', script], env=training.variables(huge_pages=False), capture_output=True, check=True
  )
  assert not {'alignjax', 'jax', 'torch'} & set(json.loads(done.stdout))
