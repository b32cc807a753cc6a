"""TFDS builders of preference data, by name."""

import os
import pathlib

import tensorflow_datasets as tfds

from alignjax.data import sources
from alignjax.data.builders import (
  base,
  hh_rlhf,
  imdb_preferences,
  jsonl_preferences,
  tldr_preferences,
  ultrafeedback_binarized,
)

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
  """What to put where to build a data set.

  Raises:
    ValueError: an unknown name.
  """
  return ' '.join(_find(name)[0].MANUAL_DOWNLOAD_INSTRUCTIONS.split())


def _find(name: str) -> tuple[type[base.PreferenceBuilder], str | None]:
  """The builder and the configuration that are meant."""
  place, _, config = name.partition('/')
  if name not in (*BUILDERS, *names()):
    raise ValueError(f'{name}: no such builder; there are {", ".join(names())}')
  return BUILDERS[place], config or None


def build(
  name: str, *, manual_dir: str | os.PathLike, data_dir: str | os.PathLike, on_error: str = 'raise'
) -> base.PreferenceBuilder:
  """Prepares a data set from files that are there; nothing is downloaded.

  Args:
    name: one of `names`; without a configuration, the first.
    manual_dir: where the files are.
    data_dir: the folder of all prepared data sets.
    on_error: 'raise' stops at the first malformed row; 'skip' counts malformed rows.

  Returns:
    The builder, whose `reports` say what became of the rows.

  Raises:
    ValueError: an unknown name, missing files, or data that were prepared before.
    DataError: a malformed row.
  """
  sources.check_policy(on_error)
  builder_class, config = _find(name)
  manual_dir = pathlib.Path(manual_dir)
  builder = builder_class(config=config, data_dir=data_dir, file_format='array_record')
  if not manual_dir.is_dir() or not any(manual_dir.iterdir()):
    raise ValueError(f'{manual_dir}: no such folder, or an empty one.\n{instructions(name)}')
  if builder.data_path.exists():
    raise ValueError(f'{builder.data_path}: is already prepared; delete this folder to build it anew')
  builder.on_error = on_error
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
  )
  return builder
