"""UltraFeedback, binarised: of four scored answers to a prompt the best one and another."""

from collections.abc import Iterable
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from alignjax.data import sources
from alignjax.data.builders import base


class UltrafeedbackBinarized(base.PreferenceBuilder):
  """Two conversations that are equal up to the last message, and the scores that GPT-4 gave to these."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Download the Parquet files of train_prefs and test_prefs from
  https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized into --manual_dir, or write the same rows to
  train_prefs.jsonl and test_prefs.jsonl.
  """
  HOMEPAGE = 'https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized'
  FILES: ClassVar = {
    split: (f'**/{split}_prefs-*.parquet', f'{split}_prefs.jsonl', f'{split}_prefs.jsonl.gz')
    for split in ('train', 'test')
  }

  def features(self) -> dict[str, tfds.features.FeatureConnector]:
    return {'chosen': base.messages(), 'rejected': base.messages(), 'score': base.two_numbers()}

  def rows(self, fields: dict[str, Any], split: str) -> Iterable[base.Row]:
    del split
    row = {name: _messages(fields, name) for name in ('chosen', 'rejected')}
    scores = [base.field(fields, name, (int, float)) for name in ('score_chosen', 'score_rejected')]
    return [{**row, 'score': scores}]


def _messages(fields: dict[str, Any], name: str) -> list[sources.Message]:
  return [
    {key: base.field(message, key, str) for key in ('role', 'content')} for message in base.field(fields, name, list)
  ]
