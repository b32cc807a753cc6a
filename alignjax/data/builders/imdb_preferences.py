"""Controlled sentiment: pairs of continuations of film reviews, preferred by a score."""

from collections.abc import Iterable
import itertools
import math
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from alignjax.data import sources
from alignjax.data.builders import base


class ImdbPreferences(base.PreferenceBuilder):
  """Beginnings of IMDB reviews, each with two continuations, the one of the higher score first.

  There is no such file to download: the preferences are those of your own model's continuations under your own scorer,
  as in the controlled-sentiment experiment of direct preference optimisation, whose scorer is a sentiment classifier.
  Reviews that stand in IMDB are no continuations of one prompt, so they are never paired with one another.

  The configuration `all_pairs` makes every pair of continuations of different scores; `best_and_worst` one pair of each
  prompt. A prompt whose continuations all score the same is dropped, and counted as `equal_scores`.
  """

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Draw continuations of the first few tokens of reviews, for instance with
  `python -m experiments.sample --samples=4`, score them, and write one line for each prompt to train.jsonl, and if you
  like test.jsonl, in --manual_dir: {"prompt": "This film", "responses": [" was", ...], "scores": [0.7, ...]}.
  """
  HOMEPAGE = 'https://arxiv.org/abs/2305.18290'
  BUILDER_CONFIGS = base.configs('all_pairs', 'best_and_worst')
  FILES: ClassVar = {split: (f'{split}.jsonl', f'{split}.jsonl.gz') for split in ('train', 'test')}

  def features(self) -> dict[str, tfds.features.FeatureConnector]:
    return {
      'prompt': base.text(),
      'chosen': base.text(),
      'rejected': base.text(),
      'score': base.two_numbers(),
    }

  def rows(self, fields: dict[str, Any], split: str) -> Iterable[base.Row]:
    del split
    prompt = base.field(fields, 'prompt', str)
    responses = [base.field({'responses': each}, 'responses', str) for each in base.field(fields, 'responses', list)]
    scores = base.field(fields, 'scores', list)
    if len(scores) != len(responses) or not all(map(_is_number, scores)):
      raise sources.Refused('wrong_type', "field 'scores': must be one finite number for each of the responses")
    ranked = sorted(zip(scores, responses, strict=True), key=lambda pair: pair[0], reverse=True)
    if self.builder_config.name == 'best_and_worst':
      ranked = [ranked[0], ranked[-1]] if ranked else []
    made = [
      {'prompt': prompt, 'chosen': chosen, 'rejected': rejected, 'score': [better, worse]}
      for (better, chosen), (worse, rejected) in itertools.combinations(ranked, 2)
      if better > worse
    ]
    if not made:
      raise sources.Dropped('equal_scores', 'no two responses of different scores')
    return made


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value)
