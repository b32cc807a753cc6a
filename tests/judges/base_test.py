"""Judges: both orders, ties, rewards as judges, agreement, and what goes wrong in a user's judge."""

import numpy as np
import pytest

from alignjax import expressions, judges, rewards
from alignjax.judges import base

RNG = np.random.default_rng(0)
QUALITY = {f'response {i}': value for i, value in enumerate(RNG.normal(size=12))}


def pair(first, second, **fields):
  return tuple(rewards.Sample('prompt', text, len(text), finished=True, **fields) for text in (first, second))


PAIRS = [pair(*RNG.choice(list(QUALITY), 2, replace=False)) for _ in range(30)]
DIFFERENCE = np.array([QUALITY[a.response] - QUALITY[b.response] for a, b in PAIRS])


def biased(bias, scale=1.0):
  """A judge that prefers the first place by `bias` nats."""

  def compare(pairs):
    log_odds = np.array([scale * (QUALITY[a] - QUALITY[b]) + bias for _, a, b in pairs])
    return 1 / (1 + np.exp(-log_odds))

  return compare


@pytest.mark.parametrize('bias', [-3.0, 0.0, 0.7, 6.0])
def test_a_fixed_position_bias_is_removed_exactly_and_reported(bias):
  verdicts = base.both_orders(biased(bias))(PAIRS)
  np.testing.assert_allclose(verdicts.log_odds, DIFFERENCE, rtol=0, atol=1e-11)
  np.testing.assert_allclose(verdicts.position_bias, bias, rtol=0, atol=1e-11)
  np.testing.assert_allclose(verdicts.probability, 1 / (1 + np.exp(-DIFFERENCE)), atol=1e-11)
  np.testing.assert_array_equal(verdicts.wins, DIFFERENCE > 0)


def test_exchanging_the_responses_exchanges_the_verdict():
  judged = base.both_orders(biased(2.0))
  there, back = judged(PAIRS), judged([(b, a) for a, b in PAIRS])
  np.testing.assert_array_equal(there.log_odds, -back.log_odds)
  np.testing.assert_array_equal(there.position_bias, back.position_bias)
  np.testing.assert_array_equal(there.wins + back.wins, 1.0)


def test_a_hard_judge_that_contradicts_itself_calls_a_tie():
  first_place = base.both_orders(lambda pairs: np.ones(len(pairs)))(PAIRS)
  np.testing.assert_array_equal(first_place.wins, 0.5)
  np.testing.assert_array_equal(first_place.position_bias, base.LARGEST)
  hard = base.both_orders(lambda pairs: np.array([QUALITY[a] > QUALITY[b] for _, a, b in pairs], float))(PAIRS)
  np.testing.assert_array_equal(hard.wins, DIFFERENCE > 0)
  np.testing.assert_array_equal(base.both_orders(lambda pairs: np.full(len(pairs), 0.5))(PAIRS).wins, 0.5)


def test_a_reward_as_a_judge_reads_whole_samples():
  """Also what texts do not show: whether a response is finished, its tokens, and the columns of the row."""
  judge = judges.parse("as_judge(length(target=4, scale=2) - 0.5 * missing_end(1.0) + exact_answer('answer'), scale=2)")
  reward = rewards.parse("length(target=4, scale=2) - 0.5 * missing_end(1.0) + exact_answer('answer')")
  row = {'fields': {'answer': 'yes'}}
  cut = rewards.Sample('prompt', 'no', 4, finished=False, **row)
  pairs = [pair('yes', 'no', **row), (cut, cut._replace(finished=True)), (cut, cut)]
  first, second = (reward([each[i] for each in pairs]) for i in (0, 1))
  np.testing.assert_allclose(judge(pairs), 1 / (1 + np.exp(-(first - second) / 2)), rtol=1e-12)
  verdicts = judge.verdicts(pairs)
  assert verdicts.wins.tolist() == [1.0, 0.0, 0.5]
  assert verdicts.position_bias.tolist() == [0.0] * 3


def test_agreement_counts_ties_as_one_half():
  first, second = np.array([1, 1, 0, 0.5, 0.5]), np.array([1, 0, 0, 1, 0.5])
  assert base.agreement(first, second).tolist() == [1, 0, 1, 0.5, 0.5]


@pytest.mark.parametrize(
  ('compare', 'message'),
  [
    (lambda pairs: np.full(len(pairs), np.nan), 'judge mine(): it returned nan for pair 0: not a probability'),
    (lambda pairs: np.full(len(pairs), 1.5), 'it returned 1.5 for pair 0'),
    (lambda pairs: [0.5], 'it must return one probability per pair, an array of shape (60,) for 30 pairs in both'),
    (lambda pairs: 'better', 'it must return numbers'),
    (lambda pairs: pairs[0].first, "AttributeError: 'tuple' object has no attribute 'first'"),
  ],
)
def test_a_judge_that_fails_is_named(compare, message):
  with pytest.raises(judges.JudgeError) as error:
    judges.Judge('mine()', base.both_orders(compare))([*PAIRS])
  assert message in str(error.value)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('vader()', 'this is a reward, not a judge'),
    ('as_judge(matches("a")) + as_judge(matches("b"))', r'\+ joins two rewards, but this is a judge'),
    ('as_judge(0.5)', 'the first argument must be a reward, not 0.5'),
    ('as_judge(matches("a"), scale=0)', 'scale=0 must be positive and finite'),
    ('as_jugde(matches("a"))', 'did you mean as_judge'),
  ],
)
def test_expressions_that_are_not_judges(text, message):
  with pytest.raises(expressions.ExpressionError, match=message):
    judges.parse(text)


def test_the_name_builds_the_judge_again():
  judge = judges.parse('as_judge(0.5 * matches("a") - missing_end(1.0))')
  assert judges.parse(judge.name).name == judge.name
