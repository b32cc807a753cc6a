"""The base class of the TFDS builders: a builder declares its files and the form of their rows.

Builders write array_record, which TFDS reads without TensorFlow. (Its parquet writer loses rows.) The dataset always
has the columns of the form `preference`. Rows keep the order of the files, and numbers are float32, as in training.
"""

from collections.abc import Iterable, Iterator
import itertools
import pathlib
from typing import Any

from absl import logging
import numpy as np
import tensorflow_datasets as tfds

from alignjax.data.reading import drops, json_rows, rows, sources

COLUMNS = ('prompt', 'chosen', 'rejected', 'label', 'weight', 'score', 'behaviour_logp')


def configs(*names: str) -> list[tfds.core.BuilderConfig]:
  """Configurations that differ only in their names. The first is the default."""
  return [tfds.core.BuilderConfig(name=name) for name in names]


class PreferenceBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Base class of the builders.

  A subclass sets `splits`, the `form` of the rows in its files, and MANUAL_DOWNLOAD_INSTRUCTIONS. It overrides
  `patterns` if its files are not named {split}.jsonl.
  """

  VERSION = tfds.core.Version('1.0.0')
  form: str = 'preference'  # a name in `sources.FORMS`
  chat: bool = False  # prompts are messages instead of strings
  splits: tuple[str, ...]

  on_error: str = 'raise'  # or 'skip': what to do with malformed rows
  reports: dict[str, drops.DropReport]  # by split: counts of the rows that `download_and_prepare` read

  def pairs(self, files: Iterable[pathlib.Path], split: str, report: drops.DropReport) -> Iterator[rows.Example]:
    """The examples of a split, with two responses each."""
    del split
    return sources.read_examples([f'{self.form}:{path}' for path in files], report, on_error=self.on_error)

  def patterns(self, split: str) -> tuple[str, ...]:
    """Alternative glob patterns of the files of a split in --manual_dir."""
    return f'{split}.jsonl', f'{split}.jsonl.gz'

  def _info(self) -> tfds.core.DatasetInfo:
    prompt = {'role': tfds.features.Text(), 'content': tfds.features.Text()}
    features = {
      'prompt': tfds.features.Sequence(prompt) if self.chat else tfds.features.Text(),
      'chosen': tfds.features.Text(),
      'rejected': tfds.features.Text(),
      'label': tfds.features.Scalar(np.float32, optional=True),
      'weight': tfds.features.Scalar(np.float32, optional=True),
      'score': tfds.features.Tensor(shape=(2,), dtype=np.float32, optional=True),
      'behaviour_logp': tfds.features.Tensor(shape=(2,), dtype=np.float32, optional=True),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description=type(self).__doc__,
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,  # training shuffles
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, Any]]]:
    self.reports = {}
    folder = pathlib.Path(dl_manager.manual_dir)
    found = {split: self._find(folder, split) for split in self.splits}
    generators = {}
    for split, files in found.items():
      examples = self._generate_examples(files, split)
      first = next(examples, None)  # TFDS cannot write a split without rows
      if first is not None:
        generators[split] = itertools.chain([first], examples)
    if not generators:
      wanted = '; '.join(f'{split}: {" or ".join(self.patterns(split))}' for split in self.splits)
      raise ValueError(f'{folder}: has no rows for {self.info.full_name}, which reads {wanted}')
    return generators

  def _generate_examples(self, files: list[pathlib.Path], split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    if not files:
      return
    report = self.reports[split] = drops.DropReport()
    for i, example in enumerate(self.pairs(files, split, report)):
      if isinstance(example.prompt, str) == self.chat:
        wanted = 'messages' if self.chat else 'a string'
        raise rows.DataError(
          example.origin,
          'mixed_forms',
          f"field 'prompt': must be {wanted} in {self.info.full_name}; use another configuration",
        )
      _, row = json_rows.of_example(example)
      yield i, dict.fromkeys(COLUMNS) | row
    logging.info('%s, %s: %s', self.info.full_name, split, report)

  def _find(self, folder: pathlib.Path, split: str) -> list[pathlib.Path]:
    """The files of a split, sorted by name."""
    found = {pattern: sorted(folder.glob(pattern)) for pattern in self.patterns(split)}
    found = {pattern: files for pattern, files in found.items() if files}
    if len(found) > 1:
      both = ' and '.join(found)
      raise ValueError(f'{folder}: {both} both exist for {split} and may contain the same rows; keep one')
    return next(iter(found.values()), [])
