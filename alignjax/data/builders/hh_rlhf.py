"""Anthropic's HH-RLHF: human preferences about helpfulness and harmlessness."""

from collections.abc import Iterable
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from alignjax.data import sources
from alignjax.data.builders import base

TURN = '\n\nAssistant:'


class HhRlhf(base.PreferenceBuilder):
  """Transcripts of two conversations, split where their last assistant's turn begins.

  `prompt` ends with '\n\nAssistant:', and prompt + chosen is the transcript as it was published, byte for byte. A row
  whose transcripts differ before the last turn has no common prompt: it is dropped, and counted as `prompts_differ`.
  """

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Download train.jsonl.gz and test.jsonl.gz of a folder of https://huggingface.co/datasets/Anthropic/hh-rlhf, such as
  harmless-base, into a folder of that name in --manual_dir.
  """
  HOMEPAGE = 'https://github.com/anthropics/hh-rlhf'
  BUILDER_CONFIGS = base.configs('harmless-base', 'helpful-base', 'helpful-online', 'helpful-rejection-sampled')
  FILES: ClassVar = {
    split: (f'{{config}}/{split}.jsonl.gz', f'{{config}}/{split}.jsonl') for split in ('train', 'test')
  }

  def features(self) -> dict[str, tfds.features.FeatureConnector]:
    return {'prompt': base.text(), 'chosen': base.text(), 'rejected': base.text()}

  def rows(self, fields: dict[str, Any], split: str) -> Iterable[base.Row]:
    del split
    sides = [base.field(fields, name, str) for name in ('chosen', 'rejected')]
    starts = [side.rfind(TURN) + len(TURN) for side in sides]
    prompts = [side[:start] for side, start in zip(sides, starts, strict=True)]
    if TURN not in sides[0] or prompts[0] != prompts[1]:
      raise sources.Dropped('prompts_differ', 'the transcripts differ before the last turn of the assistant')
    chosen, rejected = (side[start:] for side, start in zip(sides, starts, strict=True))
    return [{'prompt': prompts[0], 'chosen': chosen, 'rejected': rejected}]
