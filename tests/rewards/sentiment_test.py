"""The gold reward."""

import sys

import numpy as np
import pytest

from alignjax import rewards


def test_vader_orders_responses_and_is_zero_without_sentiment():
  responses = ['It was a lovely evening!', 'The table is in the room.', 'It was a horrible, ugly evening.', '']
  values = rewards.vader()(['How was it?'] * 4, responses)
  assert values.dtype == np.float64
  assert values.shape == (4,)
  assert values[0] > 0.5
  assert values[2] < -0.5
  np.testing.assert_array_equal(values[[1, 3]], 0.0)


def test_vader_does_not_read_the_prompt():
  reward = rewards.vader()
  assert reward(['I hate this terrible film'], ['Fine.']) == reward(['What a great film'], ['Fine.'])


def test_prompts_and_responses_must_align():
  with pytest.raises(ValueError, match='got 2 prompts and 1 responses'):
    rewards.vader()(['a', 'b'], ['c'])


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'vaderSentiment', None)
  with pytest.raises(ImportError, match=r"pip install 'alignjax\[demo\]'"):
    rewards.vader()
