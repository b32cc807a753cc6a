"""Kills a training run at random times, resumes it, and compares it bit for bit with an uninterrupted run.

  python -m bench.kill_resume --kills=5

Creates a tiny random model and a tiny dataset in a temporary folder. Prints one JSON object: the number of kills, how
many of them interrupted a checkpoint, the number of metrics compared, and whether all metrics and the final parameters
are bitwise equal. Exits with code 0 if they are.
"""

from collections.abc import Sequence
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from alignjax.training import metrics
from tests import assets

ROOT = pathlib.Path(__file__).parents[1]
WORDS = ('film', 'story', 'warm', 'dull', 'bright', 'the', 'a', 'of', 'and', 'people', 'never', 'always', 'good', 'bad')


def write_pairs(path: pathlib.Path, count: int, seed: int) -> None:
  """Writes pairs of random words; chosen responses end with 'good' and rejected ones with 'bad'."""
  generator = random.Random(seed)

  def text(words: int) -> str:
    return ' '.join(generator.choice(WORDS) for _ in range(words))

  rows = [{'prompt': text(4), 'chosen': f' {text(3)} good', 'rejected': f' {text(3)} bad'} for _ in range(count)]
  path.write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')


def start(folder: pathlib.Path, workdir: pathlib.Path, steps: int) -> subprocess.Popen:
  """Starts or resumes a run, with its output in a log file."""
  settings = {
    'steps': steps,
    'batch_size': 8,
    'buckets': '((16, 24),)',
    'optimizer': 'adamw(1e-3)',
    'save_every': 3,
    'eval_every': 10,
  }
  command = [sys.executable, '-m', 'alignjax', 'train', f'--model={folder / "model"}', f'--workdir={workdir}']
  command += [f'--data={folder / "train.jsonl"}', f'--eval_data={folder / "eval.jsonl"}', '--local_devices=2']
  command += [f'--config.{name}={value}' for name, value in settings.items()]
  environment = os.environ | {'PYTHONPATH': str(ROOT)}
  with (folder / 'log').open('a', encoding='utf-8') as log:
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen, folder: pathlib.Path) -> None:
  """Waits for a run and raises a RuntimeError if it fails."""
  if process.wait() != 0:
    raise RuntimeError(f'exit code {process.returncode}:\n{(folder / "log").read_text(encoding="utf-8")}')


def wait_for_progress(process: subprocess.Popen, workdir: pathlib.Path) -> None:
  """Waits until a run writes new records. A resumed run first removes the records of lost steps, then adds its own."""
  file, least = workdir / 'metrics.jsonl', None
  while process.poll() is None:
    lines = file.read_bytes().count(b'\n') if file.exists() else 0
    least = lines if least is None else min(lines, least)
    if lines > max(least, 1):  # the first record is the evaluation before training; the step compiles after it
      return
    time.sleep(0.005)


def deterministic(workdir: pathlib.Path) -> list[dict[str, float]]:
  """All metrics except timings."""
  records = metrics.read_jsonl(workdir / 'metrics.jsonl')
  return [{k: v for k, v in record.items() if not k.startswith(metrics.TIME_PREFIX)} for record in records]


def run(kills: int, steps: int, seed: int, folder: pathlib.Path) -> dict[str, object]:
  """Runs the comparison in an empty folder and returns the results."""
  assets.write_tiny_model(folder / 'model')
  write_pairs(folder / 'train.jsonl', 61, seed=0)
  write_pairs(folder / 'eval.jsonl', 11, seed=1)
  whole, killed = folder / 'whole', folder / 'killed'
  process = start(folder, whole, steps)
  wait_for_progress(process, whole)
  began = time.monotonic()
  finish(process, folder)
  window = 1.2 * (time.monotonic() - began) / kills  # so that the run is usually still active at the last kill
  generator = random.Random(seed)
  done, in_a_save = 0, 0
  for _ in range(kills):
    process = start(folder, killed, steps)
    wait_for_progress(process, killed)
    time.sleep(generator.uniform(0, window))
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
      break  # the run finished before the kill
    done += 1
    in_a_save += any((killed / 'checkpoints').glob('*-tmp*'))
  finish(start(folder, killed, steps), folder)
  expected, got = deterministic(whole), deterministic(killed)
  weights = [(path / 'model' / 'model.safetensors').read_bytes() for path in (whole, killed)]
  return {
    'kills': done,
    'kills_while_saving': in_a_save,
    'steps': steps,
    'metrics_compared': sum(len(record) for record in expected),
    'metrics_identical': got == expected,
    'parameters_identical': weights[0] == weights[1],
  }


def main(argv: Sequence[str]) -> None:
  if argv[1:]:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  given = flags.FLAGS
  with tempfile.TemporaryDirectory() as folder:
    result = run(given.kills, given.steps, given.seed, pathlib.Path(folder))
  print(json.dumps(result))
  sys.exit(0 if result['metrics_identical'] and result['parameters_identical'] else 1)


if __name__ == '__main__':
  flags.DEFINE_integer('kills', 5, 'How often to kill the run.', lower_bound=1)
  flags.DEFINE_integer('steps', 60, 'Number of updates of the run.', lower_bound=1)
  flags.DEFINE_integer('seed', 0, 'Seed of the kill times.')
  app.run(main)
