"""Fills a reference cache in processes that are killed again and again; a program, run by caching_test.py.

  python -m tests.training.caching_kills <folder> <kills>

Writes the caches whole/ and killed/, and prints how many processes were killed and how many examples were written
again after their shard had been committed. It forks before JAX starts its devices, so imports are paid once.
"""

import json
import os
import pathlib
import random
import signal
import sys
import time
import traceback

import numpy as np

from alignjax.data.batches import reference_cache
from alignjax.run import preparation, settings
from alignjax.training import caching
from tests import assets, runs

PAIRS, SHARD = 800, 16


def fill(folder: pathlib.Path, cache: str, pause: float) -> None:
  """Fills a cache. Notes what it writes in a file, one example a line."""
  caching.SHARD = SHARD
  write, log = reference_cache.Writer.write, os.open(folder / 'written', os.O_WRONLY | os.O_CREAT | os.O_APPEND)

  def noted(writer, ids, values):
    os.write(log, ''.join(f'{index}\n' for index in ids if index >= 0).encode())
    write(writer, ids, values)
    time.sleep(pause)

  reference_cache.Writer.write = noted
  config = settings.Config(
    model=str(folder / 'model'),
    data=(str(folder / 'train.jsonl'),),
    batch_size=8,
    compute_dtype='float32',
    buckets=((24, 24),),
    reference_cache=str(folder / cache),
    remat='none',
  )
  preparation.prepare(config, lambda text: None)


def fork(folder: pathlib.Path, cache: str, pause: float = 0.0) -> int:
  child = os.fork()
  if child:
    return child
  code = 1
  try:
    fill(folder, cache, pause)
    code = 0
  except BaseException:
    traceback.print_exc()
  finally:
    os._exit(code)


def written_by(folder: pathlib.Path) -> list[int]:
  """The examples that the last process has written so far."""
  file = folder / 'written'
  return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def kept(folder: pathlib.Path) -> set[int]:
  """The examples in committed shards."""
  return {int(index) for path in folder.glob('killed/*/[!.]*/ids.npy') for index in np.load(path)}


def main(folder: pathlib.Path, kills: int) -> None:
  assets.write_tiny_model(folder / 'model', layers=1, vocab_size=384)
  runs.write_pairs(folder / 'train.jsonl', PAIRS, seed=0)
  assert os.waitpid(fork(folder, 'whole'), 0)[1] == 0
  draw, killed, twice = random.Random(0), 0, 0
  while killed < kills:
    committed = kept(folder)
    (folder / 'written').unlink(missing_ok=True)
    child = fork(folder, 'killed', pause=0.02)
    while not written_by(folder) and os.waitpid(child, os.WNOHANG) == (0, 0):
      time.sleep(0.01)  # compiling
    time.sleep(draw.uniform(0, 0.13))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    killed += 1
    twice += len(committed.intersection(written_by(folder)))
  committed = kept(folder)
  (folder / 'written').unlink()
  assert os.waitpid(fork(folder, 'killed'), 0)[1] == 0
  twice += len(committed.intersection(written_by(folder)))
  print(json.dumps({'kills': killed, 'twice': twice, 'left': PAIRS - len(committed)}))


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
