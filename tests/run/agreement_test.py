"""What is compared between the processes of a run, and how a difference reads."""

from alignjax.run import agreement, preparation
from tests import runs


def test_equal_statements_do_not_differ():
  assert agreement.differences([{'seed': 1, 'steps': [2]}] * 3) == []


def test_each_difference_is_one_line_with_values_and_processes():
  first = {'seed': 0, 'steps': 4, 'workdir id': 'ab'}
  statements = [first, first | {'seed': 1, 'workdir id': ''}, first, first, first | {'seed': 2}]
  assert agreement.differences(statements) == [
    'seed: 0 on processes 0, 2-3, 1 on process 1, 2 on process 4',
    "workdir id: 'ab' on processes 0, 2-4, none on process 1",
  ]


def test_an_entry_that_only_one_process_has_differs():
  assert agreement.differences([{}, {'reference_fingerprint': 'ff'}]) == [
    "reference_fingerprint: none on process 0, 'ff' on process 1"
  ]


def test_contents_are_compared_and_locations_are_not(tiny_run, tmp_path):
  def statement(workdir='run', **overrides):
    config = runs.make_config(tiny_run, tmp_path / workdir, **overrides)
    seen = []
    preparation.prepare(config, lambda text: None, seen.append)
    return agreement.statement(config, *seen)

  first = statement()
  copy = tmp_path / 'copy.jsonl'
  copy.write_bytes((tiny_run / 'train.jsonl').read_bytes())
  assert statement(data=(str(copy),), workdir='elsewhere') == first
  runs.write_pairs(copy, 61, seed=9)
  changed = statement(data=(str(copy),), eval_data=(), seed=3, objective='ipo()', steps=5)
  assert {name for name in first if first[name] != changed[name]} == {
    'config.seed',
    'config.objective',
    'config.steps',
    'data_fingerprint',
    'eval_data_fingerprint',
  }
  assert {'model_fingerprint', 'reference_fingerprint', 'version of jax', 'config.mesh.fsdp'} <= first.keys()
