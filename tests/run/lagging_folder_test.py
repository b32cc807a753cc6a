"""Two processes, one of which sees changes of the work directory two seconds late, do what two others do."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from alignjax.run import training
from alignjax.training import metrics
from tests import runs
from tests.commands import cluster_test, train_test

ROOT = pathlib.Path(__file__).parents[2]
FIRST = 2  # the intact checkpoint


def run_two(config, lagging: str, logs: list[pathlib.Path]) -> list[str]:
  """Runs two processes to their end, and returns their output."""
  xla_flags = [flag for flag in os.environ['XLA_FLAGS'].split() if 'device_count' not in flag]
  environment = os.environ | {
    'LAGGING': lagging,
    'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
    'XLA_FLAGS': ' '.join(xla_flags),
  }
  address = f'localhost:{cluster_test.free_port(range(46000, 47000))}'
  flags = [f'--coordinator={address}', '--num_processes=2', '--local_devices=4', *train_test.arguments(config)]
  running = []
  for index, log in enumerate(logs):
    command = [sys.executable, '-m', 'tests.lagging', 'train', *flags, f'--process_id={index}']
    with log.open('w') as stream:
      running.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT))
  try:
    codes = [process.wait(timeout=180) for process in running]
  finally:
    for process in running:
      process.kill()
  output = [log.read_text() for log in logs]
  assert codes == [0, 0], '\n'.join(output)
  return output


@pytest.mark.slow  # starts four processes; tests/training/views_test.py tests the agreement with threads
def test_a_damaged_checkpoint_is_set_aside_and_the_model_exported(tiny_run, tmp_path):
  options = {'steps': 6, 'save_every': 2, 'eval_data': ()}
  config = runs.make_config(tiny_run, tmp_path / 'run', **options)
  training.train(runs.make_config(tiny_run, tmp_path / 'run', **options | {'steps': 4}))
  metadata = tmp_path / 'run' / 'checkpoints' / '4' / 'metadata' / 'metadata'
  metadata.write_text(metadata.read_text().replace('"step": 4', '"step": 3'))
  shutil.copytree(tmp_path / 'run', tmp_path / 'plain')
  run_two(runs.make_config(tiny_run, tmp_path / 'plain', **options), '/nowhere', [tmp_path / 'plain0', tmp_path / 'p1'])
  output = run_two(config, str(tmp_path / 'run'), [tmp_path / 'log0', tmp_path / 'log1'])
  assert f'resuming from step {FIRST}' in output[0]
  assert all('moved checkpoint 4 to' in text for text in output)
  for name in ('model.safetensors', 'config.json'):
    assert (tmp_path / 'run/model' / name).read_bytes() == (tmp_path / 'plain/model' / name).read_bytes()
  records = metrics.read_jsonl(tmp_path / 'run' / 'metrics.jsonl')
  assert [record['step'] for record in records] == list(range(1, 7))
