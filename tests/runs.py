"""A tiny model, pairs to train it on, and the settings of a run: what tests of whole programs share."""

import json
import pathlib
import random

from alignjax.run import settings
from tests import assets

WORDS = ('film', 'story', 'warm', 'dull', 'bright', 'the', 'a', 'of', 'and', 'people', 'never', 'always', 'good', 'bad')


def write_pairs(path: pathlib.Path, count: int, seed: int) -> None:
  """Writes `count` random pairs as JSON lines. Chosen responses end in 'good', rejected ones in 'bad'."""
  generator = random.Random(seed)

  def text(words: int) -> str:
    return ' '.join(generator.choice(WORDS) for _ in range(words))

  with path.open('w', encoding='utf-8') as stream:
    for _ in range(count):
      row = {
        'prompt': text(4),
        'chosen': ' ' + text(3) + ' good',
        'rejected': ' ' + text(generator.randint(2, 4)) + ' bad',
      }
      stream.write(json.dumps(row) + '\n')


def write_folder(path: pathlib.Path) -> pathlib.Path:
  """Writes model/, train.jsonl (61 pairs) and eval.jsonl (11 pairs) into a folder, and returns it."""
  assets.write_tiny_model(path / 'model', layers=1, vocab_size=384)
  write_pairs(path / 'train.jsonl', 61, seed=0)
  write_pairs(path / 'eval.jsonl', 11, seed=1)
  return path


def make_config(folder: pathlib.Path, workdir: pathlib.Path | str, **overrides) -> settings.Config:
  """A run of 32 steps on the files of `write_folder`.

  Runs with the same batch size and buckets share their compiled programs, so override these only where they matter.
  """
  values = {
    'model': str(folder / 'model'),
    'data': (str(folder / 'train.jsonl'),),
    'eval_data': (str(folder / 'eval.jsonl'),),
    'steps': 32,
    'batch_size': 8,
    'buckets': ((16, 24),),
    'optimizer': 'adamw(5e-4)',
    'schedule': 'constant',
    'warmup': 0.0,
    'remat': 'none',
    'compute_dtype': 'float32',  # on every machine
    'eval_every': 8,
    'save_every': 5,
    'keep': 10,
    'doctor': 'off',  # tests/commands/doctor_test.py turns it on
    'workdir': str(workdir),
  }
  return settings.Config(**values | overrides)
