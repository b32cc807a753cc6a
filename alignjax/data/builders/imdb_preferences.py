"""Controlled sentiment: pairs of continuations of film reviews, ranked by a score."""

from collections.abc import Iterable, Iterator
import itertools
import pathlib

from alignjax.data.builders import base
from alignjax.data.reading import drops, rows


class ImdbPreferences(base.PreferenceBuilder):
  """Beginnings of IMDB reviews, each with two continuations, the one with the higher score first.

  There is no file to download. You sample the continuations from your own model and score them yourself, as in the
  controlled-sentiment experiment of https://arxiv.org/abs/2305.18290, which uses a sentiment classifier. The reviews
  themselves do not continue a common prompt, so they are never paired with each other.

  The configuration `all_pairs` makes a pair of every two continuations with different scores, `best_and_worst` makes
  one pair per prompt.
  """

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Sample several continuations of the first few tokens of each review, for instance with
  `alignjax sample --samples=4`, score them, and write train.jsonl, and optionally test.jsonl, to
  --manual_dir, with one line per prompt: {"prompt": "This film", "responses": [" was", ...], "scores": [0.7, ...]}.
  """
  BUILDER_CONFIGS = base.configs('all_pairs', 'best_and_worst')
  splits = ('train', 'test')
  form = 'scored'

  def pairs(self, files: Iterable[pathlib.Path], split: str, report: drops.DropReport) -> Iterator[rows.Example]:
    for each in super().pairs(files, split, report):  # the best response first
      ranked = list(zip(each.responses, each.score, strict=True))
      if self.builder_config.name == 'best_and_worst':
        ranked = [ranked[0], ranked[-1]]
      for (chosen, better), (rejected, worse) in itertools.combinations(ranked, 2):
        if better > worse:
          yield each._replace(responses=(chosen, rejected), score=(better, worse))
