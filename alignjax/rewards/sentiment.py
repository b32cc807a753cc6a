"""Gold rewards, computed from the text of a response."""

from collections.abc import Sequence

import numpy as np

from alignjax.rewards import base


@base.factory
def vader() -> base.Score:
  """Sentiment of the response: the compound score of the VADER lexicon in [-1, 1], or 0 if no word carries sentiment.

  Returns:
    A reward that depends only on the response, not on the prompt.

  Raises:
    ImportError: the package vaderSentiment is not installed.

  References:
    Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM 2014.
  """
  try:
    from vaderSentiment import vaderSentiment
  except ImportError as error:
    raise ImportError("rewards.vader() requires the package vaderSentiment: pip install 'alignjax[demo]'") from error
  analyzer = vaderSentiment.SentimentIntensityAnalyzer()

  def score(samples: Sequence[base.Sample]) -> np.ndarray:
    return np.array([analyzer.polarity_scores(sample.response)['compound'] for sample in samples], np.float64)

  return score
