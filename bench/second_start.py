"""Time and memory until the first batch, without kept tokens, when they are made, and at every later start.

  python -m bench.second_start
  python -m bench.second_start --pairs=20000

Each start is a process of its own, which reads the data as a training run does: hash of the file, tokens, plan of the
batches, first batch. `seconds` excludes imports and the tokenizer. `peak` is the largest resident memory above that
after them; it includes pages of mapped files. The fingerprint of the data and a hash of the first batches must be equal
for all starts.
"""

import hashlib
import json
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import time

from absl import app, flags
import jax
import numpy as np

from alignjax.data.batches import batching
from alignjax.data.tokens import artefact, encoding, tokenization
from alignjax.run import token_cache
from bench import read_pairs
from tests import assets

_PAIRS = flags.DEFINE_integer('pairs', 200_000, 'Number of pairs.')
_SENTENCES = flags.DEFINE_integer('sentences', 2, 'Sentences of 17 words in each prompt and response.')
_START = flags.DEFINE_string('start', None, 'Folder of a prepared benchmark: measures one start in this process.')
_CACHE = flags.DEFINE_string('cache', token_cache.OFF, 'Setting token_cache of the start.')

BATCHES = 4  # batches that are hashed
MIB = 2**20


def resident() -> int:
  """Bytes of resident memory now."""
  return int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()


def start(folder: pathlib.Path, cache: str) -> None:
  """Reads the data of a run and prints what it took as JSON."""
  tokenizer = tokenization.Tokenizer.load(folder / 'model')
  limits = encoding.Limits(512, 512, read_pairs.VOCABULARY)
  request = artefact.Request((str(folder / 'pairs.jsonl'),), tokenizer, limits)
  before = resident()
  pathlib.Path('/proc/self/clear_refs').write_text('5')  # resets the peak
  began = time.monotonic()
  data = token_cache.read(request, token_cache.configured(cache, ''), read_pairs.tell)
  batches = batching.make_batches(data, batching.BatchSpec(64))
  stream = iter(batches)
  first = next(stream)
  seconds = time.monotonic() - began
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith('VmHWM'))
  digest = hashlib.sha256()
  for batch in [first, *(next(stream) for _ in range(BATCHES - 1))]:
    for leaf in jax.tree.leaves((batch.data, batch.ids)):
      digest.update(np.ascontiguousarray(leaf))
  print(
    json.dumps(
      {
        'seconds': seconds,
        'peak': (peak - before) / MIB,
        'fingerprint': data.fingerprint[:16],
        'batches': digest.hexdigest()[:16],
        'steps': batches.plan.steps_per_epoch,
      }
    )
  )


def prepare(folder: pathlib.Path) -> None:
  """Writes the pairs and a tokenizer."""
  draw = random.Random(0)
  texts = read_pairs.sentences(draw)
  assets.write_tiny_tokenizer(folder / 'model')

  def text() -> str:
    return ' '.join(draw.choice(texts) for _ in range(_SENTENCES.value))

  read_pairs.write(
    folder / 'pairs.jsonl', (read_pairs.plain(f'{i} {text()}', text(), text()) for i in range(_PAIRS.value))
  )


def main(argv: list[str]) -> None:
  del argv
  if _START.value:
    start(pathlib.Path(_START.value), _CACHE.value)
    return
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    prepare(folder)
    size = (folder / 'pairs.jsonl').stat().st_size
    print(f'{_PAIRS.value} pairs, {size / MIB:.0f} MiB of JSON Lines')
    for what, cache in (('kept nothing', token_cache.OFF), *[(w, str(folder / 'tokens')) for w in ('first', 'second')]):
      command = [sys.executable, '-m', 'bench.second_start', f'--start={folder}', f'--cache={cache}']
      found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
      numbers = f'{found.pop("seconds"):8.2f} s, peak {found.pop("peak"):7.0f} MiB'
      print(f'{what:14} {numbers}, {found}', flush=True)
    kept = sum(path.stat().st_size for path in (folder / 'tokens').rglob('*.npy'))
    print(f'tokens on disk: {kept / MIB:.0f} MiB')


if __name__ == '__main__':
  app.run(main)
