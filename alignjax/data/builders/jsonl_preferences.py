"""Your own preference pairs."""

from collections.abc import Iterable, Iterator
import pathlib
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from alignjax.data import report as report_lib
from alignjax.data import row_form, sources
from alignjax.data.builders import base


class JsonlPreferences(base.PreferenceBuilder):
  """Rows of JSON Lines in any of the library's forms, checked as they are when they are read for training.

  The configuration is `text` for prompts that are strings and `chat` for prompts that are messages. Pairs of equal
  responses are dropped, and counted.
  """

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Put train.jsonl, and if you like validation.jsonl and test.jsonl, or the same names with .gz, into --manual_dir.
  `python -m experiments.data convert` writes such files.
  """
  BUILDER_CONFIGS = base.configs('text', 'chat')
  FILES: ClassVar = {split: (f'{split}.jsonl', f'{split}.jsonl.gz') for split in ('train', 'validation', 'test')}

  def features(self) -> dict[str, tfds.features.FeatureConnector]:
    return {
      'prompt': base.text() if self.builder_config.name == 'text' else base.messages(),
      'chosen': base.text(),
      'rejected': base.text(),
      'label': tfds.features.Scalar(np.float32, optional=True),
      'weight': tfds.features.Scalar(np.float32, optional=True),
      'score': base.two_numbers(optional=True),
      'behaviour_logp': base.two_numbers(optional=True),
    }

  def read(self, files: Iterable[pathlib.Path], split: str, report: report_lib.DropReport) -> Iterator[base.Row]:
    del split
    empty = dict.fromkeys(self.features())
    for pair in sources.read_pairs(files, report):
      config = 'text' if isinstance(pair.prompt, str) else 'chat'
      if config != self.builder_config.name:
        message = f"field 'prompt': this row is for jsonl_preferences/{config}; keep the two kinds in different folders"
        raise sources.DataError(pair.origin, 'mixed_forms', message)
      yield empty | row_form.of_pair(pair)
