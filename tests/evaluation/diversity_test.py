"""Distinct n-grams, counted by hand."""

import math

import pytest

from alignjax.evaluation import diversity


def test_shares_counted_by_hand():
  responses = [['a', 'b', 'a', 'b'], ['a', 'b'], ['c']]
  assert diversity.distinct_n(responses, 1) == pytest.approx(3 / 7)
  assert diversity.distinct_n(responses, 2) == pytest.approx(2 / 4)  # ab ba ab ab
  assert diversity.distinct_n(responses, 4) == 1.0
  assert math.isnan(diversity.distinct_n(responses, 5))


def test_n_grams_do_not_span_responses():
  assert diversity.distinct_n([[1, 2], [3, 4]], 2) == 1.0
  assert diversity.distinct_n([[1, 2], [1, 2]], 2) == 0.5


def test_n_below_one_is_refused():
  with pytest.raises(ValueError, match='n=0 must be at least 1'):
    diversity.distinct_n([[1]], 0)
