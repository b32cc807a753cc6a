"""Controlled sentiment: pairs of continuations of film reviews, preferred by a score."""

from collections.abc import Iterable, Iterator
import itertools
import pathlib

from alignjax.data import report as report_lib
from alignjax.data import rows
from alignjax.data.builders import base


class ImdbPreferences(base.PreferenceBuilder):
  """Beginnings of IMDB reviews, each with two continuations, the one of the higher score first.

  There is no such file to download: the preferences are those of a scorer of yours among continuations of a model of
  yours, as in the controlled-sentiment experiment of https://arxiv.org/abs/2305.18290, whose scorer is a sentiment
  classifier. The reviews themselves are no continuations of one prompt, so they are never paired with one another.

  The configuration `all_pairs` makes every pair of continuations of different scores, `best_and_worst` one pair of each
  prompt.
  """

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Draw several continuations of the first few tokens of each review, for instance by
  `alignjax sample --samples=4`, score them, and write train.jsonl, and if you like test.jsonl, in
  --manual_dir, a line for each prompt: {"prompt": "This film", "responses": [" was", ...], "scores": [0.7, ...]}.
  """
  BUILDER_CONFIGS = base.configs('all_pairs', 'best_and_worst')
  splits = ('train', 'test')
  form = 'scored'

  def pairs(self, files: Iterable[pathlib.Path], split: str, report: report_lib.DropReport) -> Iterator[rows.Pair]:
    for each in super().pairs(files, split, report):  # the best response first
      ranked = list(zip(each.responses, each.score, strict=True))
      if self.builder_config.name == 'best_and_worst':
        ranked = [ranked[0], ranked[-1]]
      for (chosen, better), (rejected, worse) in itertools.combinations(ranked, 2):
        if better > worse:
          yield each._replace(responses=(chosen, rejected), score=(better, worse))
