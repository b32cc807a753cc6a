"""The gold reward."""

import sys

import numpy as np
import pytest

from alignjax import rewards


def score(*responses, prompt='How was it?'):
  return rewards.vader()([rewards.Sample(prompt, response, 5, True) for response in responses])


def test_vader_orders_responses_and_is_zero_without_sentiment():
  values = score('It was a lovely evening!', 'The table is in the room.', 'It was a horrible, ugly evening.', '')
  assert values.dtype == np.float64
  assert values.shape == (4,)
  assert values[0] > 0.5
  assert values[2] < -0.5
  np.testing.assert_array_equal(values[[1, 3]], 0.0)


def test_vader_does_not_read_the_prompt():
  assert score('Fine.', prompt='I hate this terrible film') == score('Fine.', prompt='What a great film')


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'vaderSentiment', None)
  with pytest.raises(ImportError, match=r"pip install 'alignjax\[demo\]'"):
    rewards.vader()
