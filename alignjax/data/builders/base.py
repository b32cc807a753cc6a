"""What the TFDS builders of preference data share: a builder is its features, its files and one row function.

They write array_record, which TFDS reads without TensorFlow; its parquet writer loses rows. Rows keep the order of the
files. Numbers are float32, as in training.
"""

from collections.abc import Iterable, Iterator, Mapping
import gzip
import itertools
import json
import pathlib
from typing import Any, ClassVar
import zlib

import numpy as np
import pyarrow.parquet
import tensorflow_datasets as tfds

from alignjax.data import report as report_lib
from alignjax.data import sources

Row = Mapping[str, Any]

PARQUET_ROWS = 1024  # read at once


def text() -> tfds.features.Text:
  return tfds.features.Text()


def messages() -> tfds.features.Sequence:
  """A conversation: a list of {'role': ..., 'content': ...}."""
  return tfds.features.Sequence({'role': tfds.features.Text(), 'content': tfds.features.Text()})


def two_numbers(*, optional: bool = False) -> tfds.features.Tensor:
  """One number for `chosen` and one for `rejected`."""
  return tfds.features.Tensor(shape=(2,), dtype=np.float32, optional=optional)


def configs(*names: str) -> list[tfds.core.BuilderConfig]:
  """Configurations that differ in their names alone; the first is the default."""
  return [tfds.core.BuilderConfig(name=name) for name in names]


class PreferenceBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Base of the builders. A subclass states FEATURES, FILES and MANUAL_DOWNLOAD_INSTRUCTIONS, and defines `rows`."""

  VERSION = tfds.core.Version('1.0.0')
  # By split, glob patterns in the folder of --manual_dir, alternatives to one another; {config} is the configuration.
  FILES: ClassVar[Mapping[str, tuple[str, ...]]]
  HOMEPAGE: ClassVar[str | None] = None

  reports: dict[str, report_lib.DropReport]  # by split, of the rows that `download_and_prepare` read

  def features(self) -> dict[str, tfds.features.FeatureConnector]:
    """Of one row; the row forms are those of `sources`."""
    raise NotImplementedError

  def rows(self, fields: dict[str, Any], split: str) -> Iterable[Row] | None:
    """The rows that one record of a file makes; None where it belongs to another split.

    Raises:
      Refused: the record is malformed, which ends the build.
      Dropped: the record holds no preference, or one that no row can express; it is counted.
    """
    raise NotImplementedError

  def read(self, files: Iterable[pathlib.Path], split: str, report: report_lib.DropReport) -> Iterator[Row]:
    """The rows of a split, counted in `report`."""
    for path in files:
      for number, fields in records(path):
        origin = f'{path}:{number}'
        try:
          made = self.rows(fields, split)
        except sources.Dropped as problem:
          report.read += 1
          report.drop(problem.reason, origin, problem.message)
        except sources.Refused as problem:
          raise sources.DataError(origin, problem.reason, problem.message) from None
        else:
          if made is not None:
            report.read += 1
            yield from made

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=type(self).__doc__,
      features=tfds.features.FeaturesDict(self.features()),
      homepage=self.HOMEPAGE,
      disable_shuffling=True,  # row i is row i of the files, and `shuffle` is the business of training
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, Row]]]:
    self.reports = {}
    folder = pathlib.Path(dl_manager.manual_dir)
    found = {split: self._find(folder, split) for split in self.FILES}
    generators = {}
    for split, files in found.items():
      examples = self._generate_examples(files, split)
      first = next(examples, None)
      if first is None:
        del self.reports[split]  # TFDS cannot write a split without rows
      else:
        generators[split] = itertools.chain([first], examples)
    if not generators:
      wanted = '; '.join(f'{split}: {" or ".join(self._patterns(split))}' for split in self.FILES)
      raise ValueError(f'{folder}: holds no rows for {self.name}. It needs {wanted}.\n{self.instructions()}')
    return generators

  def _generate_examples(self, files: Iterable[pathlib.Path], split: str) -> Iterator[tuple[int, Row]]:
    self.reports[split] = report_lib.DropReport()
    yield from enumerate(self.read(files, split, self.reports[split]))

  def _patterns(self, split: str) -> list[str]:
    config = self.builder_config.name if self.builder_config else ''
    return [pattern.format(config=config) for pattern in self.FILES[split]]

  def _find(self, folder: pathlib.Path, split: str) -> list[pathlib.Path]:
    """The files of a split, in order of their names."""
    found = {pattern: sorted(folder.glob(pattern)) for pattern in self._patterns(split)}
    found = {pattern: files for pattern, files in found.items() if files}
    if len(found) > 1:
      raise ValueError(
        f'{folder}: {" and ".join(found)} are both there for {split}, and may hold the same rows; keep one'
      )
    return next(iter(found.values()), [])

  def instructions(self) -> str:
    return ' '.join(self.MANUAL_DOWNLOAD_INSTRUCTIONS.split())


def records(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
  """The records of a Parquet file, or of a file of one JSON object on each line, numbered from 1.

  Raises:
    DataError: a line that is not a JSON object, a damaged gzip stream.
  """
  if path.suffix == '.parquet':
    with pyarrow.parquet.ParquetFile(path) as file:
      batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=PARQUET_ROWS))
      yield from enumerate(itertools.chain.from_iterable(batches), 1)
    return
  with gzip.open(path, 'rb') if path.suffix == '.gz' else path.open('rb') as file:
    number = 0
    try:
      for number, line in enumerate(file, 1):
        if line.strip():
          yield number, _object(line, f'{path}:{number}')
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
      message = f'the gzip stream is damaged or cut off here ({error}); copy the file again'
      raise sources.DataError(f'{path}:{number + 1}', 'damaged_gzip', message) from None


def _object(line: bytes, origin: str) -> dict[str, Any]:
  try:
    fields = json.loads(line)
  except ValueError as error:  # of the encoding, too
    raise sources.DataError(origin, 'not_json', f'not JSON: {error}; write one JSON object on each line') from None
  if not isinstance(fields, dict):
    raise sources.DataError(origin, 'not_an_object', 'the line is not a JSON object, {...}')
  return fields


def field(fields: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
  """A field of a record, if it has the right type; strings that UTF-8 cannot hold are refused."""
  if not isinstance(fields, Mapping):
    raise sources.Refused('wrong_type', f"an object with the field '{name}' is wanted here")
  if not isinstance(fields.get(name), kind):
    wanted = ' or '.join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
    raise sources.Refused('wrong_type', f"field '{name}': must be there, as {wanted}")
  if isinstance(fields[name], str):
    sources.check_text(fields[name], name)
  return fields[name]
