"""Reads prepared TFDS datasets, without TensorFlow, as the same rows that JSON Lines would give."""

from collections.abc import Iterator
import os
import pathlib
import re
from typing import Any

from google.protobuf import json_format
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from alignjax.data.reading import rows

# 'name/config:split' or 'folder:split'; the split is anything TFDS accepts, such as 'train[:10%]'.
LOCATION = re.compile(r'(?P<place>.*?)(:(?!//)(?P<split>.+))?', re.DOTALL)
NAME = re.compile(r'[A-Za-z]\w*(/[\w.-]+)?')


def data_dir() -> str:
  """The folder of prepared datasets: the environment variable TFDS_DATA_DIR, or the default of TFDS."""
  return os.path.expanduser(tfds.core.constants.get_default_data_dir())


def read(location: str) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields the rows of a prepared dataset with their numbers, from 1.

  Text is decoded, lists of dictionaries (such as messages) become lists again, optional features without a value are
  omitted, and numbers become Python numbers. TFDS stores floats as float32: 0.1 comes back as 0.1, but 0.123456789 as
  0.12345679.

  Args:
    location: `name[/config][:split]` of a dataset in `data_dir()`, or `folder[:split]` for the folder of a prepared
      dataset. The split may be a slice such as `train[:10%]`. It may be omitted if it is `train` or the only one.

  Raises:
    ValueError: no such dataset or split, or files in a format that needs TensorFlow or loses rows.
    DataError: damaged files, or text that is not UTF-8.
  """
  place, split = LOCATION.fullmatch(location).group('place', 'split')
  try:
    builder = _find(place)
  except json_format.Error as error:
    raise ValueError(f'{place}: a .json file of the dataset is damaged: {error}; prepare it again') from None
  if tfds.core.FileFormat.ARRAY_RECORD not in builder.info.available_file_formats():
    raise ValueError(
      f'{place}: is stored as {builder.info.file_format.value}, which TFDS cannot read without TensorFlow, or reads '
      'only in part; prepare it again with file_format=array_record'
    )
  if not isinstance(builder.info.features, tfds.features.FeaturesDict):
    raise ValueError(f'{place}: the examples are not dictionaries, so they cannot be read as rows')
  source = builder.as_data_source(split=_split(builder, place, split), file_format='array_record')
  for index in range(len(source)):
    try:
      row = _plain(builder.info.features, source[index])
    except UnicodeDecodeError as error:
      raise rows.DataError(f'{location}:{index + 1}', 'not_utf8', f'a text is not UTF-8: {error}') from None
    except RuntimeError as error:  # array_record found a checksum that does not match
      message = f'the files are damaged: {error}; prepare the dataset again'
      raise rows.DataError(f'{location}:{index + 1}', 'damaged_array_record', message) from None
    yield index + 1, row


def _find(place: str) -> tfds.core.DatasetBuilder:
  if (pathlib.Path(place) / 'dataset_info.json').is_file():
    return tfds.builder_from_directory(place)
  folder = data_dir()
  try:
    if NAME.fullmatch(place):
      return read_only_builder.builder_from_files(place, data_dir=folder)
  except tfds.core.DatasetNotFoundError:
    pass
  available = ', '.join(_prepared(folder)) or 'none'
  raise ValueError(
    f'{place}: no such dataset is prepared in {folder}, the folder set by TFDS_DATA_DIR; available: {available}. To '
    'prepare one: alignjax data build NAME --manual_dir=FOLDER; omit NAME to list the known ones'
  )


def _prepared(folder: str) -> list[str]:
  """'name' or 'name/config' of each prepared dataset. Files are in name/version or name/config/version."""
  found = [path for depth in ('*/*', '*/*/*') for path in pathlib.Path(folder).glob(f'{depth}/dataset_info.json')]
  return sorted({path.parent.parent.relative_to(folder).as_posix() for path in found})


def _split(builder: tfds.core.DatasetBuilder, place: str, split: str | None) -> str:
  """Returns the split to read: the given one, or the default if there is only one choice."""
  known = list(builder.info.splits)
  if split is None and (len(known) == 1 or 'train' in known):
    return 'train' if 'train' in known else known[0]
  fault = 'name a split' if split is None else f'no split {split!r}'
  try:
    if split is not None and builder.info.splits[split].num_examples:
      return split
  except (KeyError, ValueError):
    pass
  raise ValueError(f'{place}: {fault}; available: {", ".join(known)}, and slices such as {known[0]}[:10%]')


def _plain(feature: tfds.features.FeatureConnector, value: Any) -> Any:
  """A decoded value of a feature, as JSON would represent it."""
  if isinstance(feature, tfds.features.FeaturesDict):
    # Sorted, because the order within TFDS differs from process to process.
    return {name: _plain(feature[name], value[name]) for name in sorted(feature) if value[name] is not None}
  if isinstance(feature, tfds.features.Sequence):
    if isinstance(feature.feature, tfds.features.FeaturesDict):  # stored as a dictionary of lists
      inner = feature.feature
      columns = {name: _plain(tfds.features.Sequence(inner[name]), value[name]) for name in sorted(inner)}
      return [dict(zip(columns, entries, strict=True)) for entries in zip(*columns.values(), strict=True)]
    return [_plain(feature.feature, each) for each in value]
  return _unboxed(value)


def _unboxed(value: Any) -> Any:
  if isinstance(value, np.ndarray):
    return [_unboxed(each) for each in value]
  if isinstance(value, bytes):
    return value.decode('utf-8')
  if isinstance(value, float | np.floating):
    return float(str(np.float32(value)))  # the shortest decimal with this float32 value
  return value.item() if isinstance(value, np.generic) else value
