"""Gold rewards, computed from the text of a response."""

from collections.abc import Sequence

import numpy as np

from alignjax.rewards import base


@base.factory
def vader() -> base.Reward:
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

  def reward(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    if len(prompts) != len(responses):
      raise ValueError(f'expected one prompt per response, got {len(prompts)} prompts and {len(responses)} responses')
    return np.array([analyzer.polarity_scores(response)['compound'] for response in responses], np.float64)

  return reward
