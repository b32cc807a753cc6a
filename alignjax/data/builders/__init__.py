"""TFDS builders of preference datasets, by name."""

import os
import pathlib

import tensorflow_datasets as tfds

from alignjax.data.builders import (
  base,
  hh_rlhf,
  imdb_preferences,
  jsonl_preferences,
  tldr_preferences,
  ultrafeedback_binarized,
)
from alignjax.data.reading import rows

BUILDERS: dict[str, type[base.PreferenceBuilder]] = {
  builder.name: builder
  for builder in (
    hh_rlhf.HhRlhf,
    imdb_preferences.ImdbPreferences,
    jsonl_preferences.JsonlPreferences,
    tldr_preferences.TldrPreferences,
    ultrafeedback_binarized.UltrafeedbackBinarized,
  )
}


def names() -> list[str]:
  """'name' or 'name/config' of everything that can be built."""
  return [
    '/'.join([name, *([config.name] if config else [])])
    for name, builder in BUILDERS.items()
    for config in builder.BUILDER_CONFIGS or [None]
  ]


def instructions(name: str) -> str:
  """Which files to put where before building a dataset.

  Raises:
    ValueError: an unknown name.
  """
  return ' '.join(_find(name)[0].MANUAL_DOWNLOAD_INSTRUCTIONS.split())


def _find(name: str) -> tuple[type[base.PreferenceBuilder], str | None]:
  """The builder and the configuration with this name."""
  place, _, config = name.partition('/')
  if name not in (*BUILDERS, *names()):
    raise ValueError(f'{name}: no such builder; available: {", ".join(names())}')
  return BUILDERS[place], config or None


def build(
  name: str, *, manual_dir: str | os.PathLike, data_dir: str | os.PathLike, on_error: str = 'raise'
) -> base.PreferenceBuilder:
  """Prepares a dataset from local files. Nothing is downloaded.

  Args:
    name: one of `names`; without a configuration, the first.
    manual_dir: the folder of the files to read.
    data_dir: the folder of all prepared datasets.
    on_error: 'raise' stops at the first malformed row; 'skip' counts malformed rows.

  Returns:
    The builder. Its `reports` count the rows of each split.

  Raises:
    ValueError: an unknown name, missing files, or a dataset that is already prepared.
    DataError: a malformed row.
  """
  rows.check_policy(on_error)
  builder_class, config = _find(name)
  manual_dir = pathlib.Path(manual_dir)
  builder = builder_class(config=config, data_dir=data_dir, file_format='array_record')
  if not manual_dir.is_dir() or not any(manual_dir.iterdir()):
    raise ValueError(f'{manual_dir}: the folder is missing or empty.\n{instructions(name)}')
  if builder.data_path.exists():
    raise ValueError(f'{builder.data_path}: already prepared; delete this folder to build it again')
  builder.on_error = on_error
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
  )
  return builder
