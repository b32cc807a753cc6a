"""Compares sampling throughput with `generate` in transformers on the same model.

  python -m bench.peers.sampling --model=models/smollm2 --python=/path/to/environment/bin/python

Both sides draw 128 tokens after each of 8 prompts of 64 tokens, from all tokens at temperature 1, without end tokens,
so they draw the same number of tokens. Each side and dtype is a process of its own, and all of them live at once. In
each round every process draws once, in random order. A ratio is taken within a round, and reported as the median over
rounds with its range. The log-probability per token, averaged over everything drawn, must agree between the sides,
because both sample from one distribution. README.md describes the environment of --python, which has transformers.
"""

import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time
from typing import Any

from absl import app, flags
import jax
import numpy as np

from alignjax.sampling import sampler, sharded, text

TRANSFORMERS = pathlib.Path(__file__).with_name('transformers_sampling.py')
_MODEL = flags.DEFINE_string('model', 'models/smollm2', 'Folder of the model, in Hugging Face format.')
_PYTHON = flags.DEFINE_string('python', '', 'Python interpreter of an environment with torch and transformers.')
_DTYPES = flags.DEFINE_list('dtypes', ['float32', 'bfloat16'], 'Types in which to compute.')
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Rounds of one draw per process.', lower_bound=1)
_PROMPTS = flags.DEFINE_integer('prompts', 8, 'Number of prompts.')
_PROMPT = flags.DEFINE_integer('prompt', 64, 'Tokens per prompt.')
_RESPONSE = flags.DEFINE_integer('response', 128, 'Tokens per response.')
_WORKER = flags.DEFINE_string('worker', '', 'Dtype of this process if it draws; set by the parent process.')


class Worker:
  """A process that draws once for every line of its input."""

  def __init__(self, name: str, dtype: str, command: list[str]):
    self.name, self.dtype, self.seconds = name, dtype, []
    self.logps: list[float] = []  # one for each response: the mean over its tokens
    self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    self.draw()  # compiles and warms up
    self.seconds, self.logps = [], []

  def draw(self) -> None:
    print('draw', file=self._process.stdin, flush=True)
    line = self._process.stdout.readline()
    if not line:
      raise SystemExit(f'{self.name} in {self.dtype} ended: its error is above')
    result = json.loads(line)
    expected = _PROMPTS.value * _RESPONSE.value
    if result['tokens'] != expected:
      raise SystemExit(f'{self.name} in {self.dtype} drew {result["tokens"]} tokens, not {expected}')
    self.seconds.append(result['seconds'])
    self.logps += result['logps']
    self.peak = result['peak_mib']

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()


def serve() -> None:
  """Draws once for each line of standard input."""
  loaded = text.load(_MODEL.value, _WORKER.value)
  decoding = sampler.Decoding(samples=1, max_new_tokens=_RESPONSE.value)
  draws = sharded.ShardedSampler(loaded.model, loaded.mesh, decoding)
  placed = draws.place(loaded.params)
  tokens = _prompts(loaded.model.config.vocab_size)
  prompts = sampler.Prompts(tokens, np.full(len(tokens), tokens.shape[1], np.int32), np.arange(len(tokens)))
  for index, _ in enumerate(sys.stdin):
    start = time.perf_counter()
    drawn = jax.device_get(draws.draw(placed, jax.random.key(index), prompts))
    seconds = time.perf_counter() - start
    result = {'seconds': seconds, 'tokens': int(drawn.response_length.sum()), 'peak_mib': _peak_mib()}
    print(json.dumps(result | {'logps': drawn.logp.mean(axis=-1).ravel().tolist()}), flush=True)


def _prompts(vocab_size: int) -> np.ndarray:
  """[prompts, tokens]: random tokens, because the speed does not depend on them."""
  return np.random.default_rng(0).integers(vocab_size, size=(_PROMPTS.value, _PROMPT.value), dtype=np.int32)


def _peak_mib() -> float:
  status = pathlib.Path('/proc/self/status').read_text(encoding='utf-8')
  return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith('VmHWM'))


def compare() -> None:
  """Runs all processes and prints the table."""
  vocab_size = json.loads((pathlib.Path(_MODEL.value) / 'config.json').read_text(encoding='utf-8'))['vocab_size']
  prompts = json.dumps(_prompts(vocab_size).tolist())
  workers = {}
  for dtype in _DTYPES.value:
    own = [sys.executable, '-m', 'bench.peers.sampling', f'--worker={dtype}', *sys.argv[1:]]
    theirs = [_PYTHON.value, str(TRANSFORMERS), os.path.abspath(_MODEL.value), dtype, str(_RESPONSE.value), prompts]
    workers['alignjax', dtype] = Worker('alignjax', dtype, own)
    workers['transformers', dtype] = Worker('transformers', dtype, theirs)
  order, shuffle = list(workers.values()), random.Random(0)
  for _ in range(_ROUNDS.value):
    shuffle.shuffle(order)
    for worker in order:
      worker.draw()
  for worker in order:
    worker.close()
  print(f'{_PROMPTS.value} x {_RESPONSE.value} tokens after {_PROMPT.value}, {_ROUNDS.value} rounds')
  print('| | dtype | seconds | tokens/s | speed | range | log-probability per token | peak MiB |')
  print('|---|---|---|---|---|---|---|---|')
  for worker in workers.values():
    print(_row(worker, workers['transformers', worker.dtype]))


def _row(worker: Worker, base: Worker) -> str:
  ratios = [theirs / own for own, theirs in zip(worker.seconds, base.seconds, strict=True)]
  seconds, logps = statistics.median(worker.seconds), np.array(worker.logps)
  cells: list[Any] = [
    worker.name,
    worker.dtype,
    f'{seconds:.2f}',
    f'{_PROMPTS.value * _RESPONSE.value / seconds:.0f}',
    f'{statistics.median(ratios):.2f}',
    f'{min(ratios):.2f} to {max(ratios):.2f}',
    f'{logps.mean():.3f} ± {logps.std(ddof=1) / len(logps) ** 0.5:.3f}',
    f'{worker.peak:.0f}',
  ]
  return f'| {" | ".join(cells)} |'


def main(_):
  serve() if _WORKER.value else compare()


if __name__ == '__main__':
  app.run(main)
