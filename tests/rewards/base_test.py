"""Rewards as expressions, and the checks of what they return."""

import functools
import importlib
import pickle
import sys
import threading

import numpy as np
import pytest

from alignjax import expressions, rewards
from alignjax.data.reading import rows

SAMPLES = [
  rewards.Sample('2 + 2?', ' 4 ', 2, True, {'answer': 4}),
  rewards.Sample('What?', 'It was a lovely day', 6, True, {'answer': 'no'}),
  rewards.Sample('What?', 'A horrible, ugly', 8, False, {'answer': 'no'}),
]


def reward_of(score, name='own'):
  return rewards.Reward((rewards.Part(1.0, name, score),))


def own_function(samples):
  return [len(sample.response) for sample in samples]


def own_scaled(samples, scale):
  return [scale * sample.tokens for sample in samples]


own_partial = functools.partial(own_scaled, scale=2.0)


class Own:
  def __call__(self, samples):
    return np.zeros(len(samples), np.float32)

  def method(self, samples):
    return [True] * len(samples)


own_object = Own()


@pytest.fixture(name='registry')
def own_registry(monkeypatch):
  monkeypatch.setattr(rewards.base, 'REWARDS', dict(rewards.REWARDS))
  return rewards.base


def test_a_sum_is_the_sum_of_its_parts_which_are_kept_by_name():
  reward = rewards.parse('0.7 * vader() + 0.3 * length(target=6, scale=2) - missing_end(1.0) / 2')
  total, parts = reward.scores(SAMPLES)
  vader, length, end = parts.values()
  assert list(parts) == ['vader()', 'length(target=6, scale=2)', 'missing_end(penalty=1.0)']
  np.testing.assert_array_equal(end, [0.0, 0.0, 1.0])
  np.testing.assert_allclose(length, np.exp([-2.0, 0.0, -0.5]), rtol=1e-15)
  np.testing.assert_allclose(total, 0.7 * vader + 0.3 * length - 0.5 * end, rtol=1e-15)
  np.testing.assert_array_equal(reward(SAMPLES), total)
  assert total.dtype == np.float64


@pytest.mark.parametrize(
  'text',
  [
    'vader()',
    '-vader()',
    '0.5 * vader() - missing_end(penalty=1.0)',
    "-2.0 * matches(regex='a') + vader()",
    '3 * length(target=6, scale=2)',
  ],
)
def test_a_name_builds_the_reward_again(text):
  reward = rewards.parse(text)
  assert rewards.parse(repr(reward)).name == reward.name
  np.testing.assert_array_equal(rewards.parse(repr(reward))(SAMPLES), reward(SAMPLES))


def test_the_algebra_is_that_of_a_vector_space():
  a, b = rewards.length(6, 2), rewards.missing_end()
  for left, right in [
    (a - b, a + -1 * b),
    (2 * (a + b), a * 2 + 2.0 * b),
    (sum([a, b]), b + a),
    ((a + b) / 4, 0.25 * a + 0.25 * b),
    (-(a - b), b - a),
  ]:
    np.testing.assert_allclose(left(SAMPLES), right(SAMPLES), rtol=1e-15)
  with pytest.raises(ZeroDivisionError, match='cannot be divided by 0'):
    a / 0
  with pytest.raises(ValueError, match='finite number'):
    float('inf') * a
  with pytest.raises(TypeError):
    a + 1
  with pytest.raises(TypeError):
    True * a


def test_equal_parts_are_scored_once_and_labels_are_unique():
  calls = []

  def score(samples):
    calls.append(len(samples))
    return np.ones(len(samples))

  part = reward_of(score)
  total, parts = (part + 2 * part).scores(SAMPLES)
  np.testing.assert_array_equal(total, 3.0)
  assert calls == [3]
  assert list(parts) == ['own']
  two = rewards.parse('length(1, 2) + length(3, 4) + 2 * length(1, 2)')
  assert two.labels == {'length(target=1, scale=2)': 'length', 'length(target=3, scale=4)': 'length_2'}


def test_samples_and_examples_can_be_sent_to_other_processes():
  kept = [*SAMPLES, rewards.Sample('a', 'b', 1, True), rows.Example('a', ('b',))]
  assert pickle.loads(pickle.dumps(kept)) == kept


def test_rules_score_what_they_name():
  np.testing.assert_array_equal(rewards.exact_answer('answer')(SAMPLES), [1.0, 0.0, 0.0])
  np.testing.assert_array_equal(rewards.matches(r'^\s*\d+')(SAMPLES), [1.0, 0.0, 0.0])
  np.testing.assert_array_equal(rewards.missing_end(2.5)(SAMPLES), [0.0, 0.0, 2.5])
  assert rewards.length(6, 2)(SAMPLES)[1] == 1.0
  assert rewards.missing_end()([]).shape == (0,)


def test_functions_partials_and_callable_objects_of_users():
  for name, expected in [
    ('own_function', [3, 19, 16]),
    ('own_partial', [4.0, 12.0, 16.0]),
    ('own_object', [0.0, 0.0, 0.0]),  # an exact 0 is a reward like any other
    ('own_object.method', [1.0, 1.0, 1.0]),
  ]:
    reward = rewards.parse(f"python('{__name__}:{name}')")
    np.testing.assert_array_equal(reward(SAMPLES), expected)
    assert list(reward.scores(SAMPLES).parts) == [f"python(path='{__name__}:{name}')"]


def test_the_file_of_a_function_identifies_a_reward(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  file = tmp_path / 'scores_of_mine.py'

  def identity(source):
    file.write_text(source, encoding='utf-8')
    monkeypatch.delitem(sys.modules, 'scores_of_mine', raising=False)
    importlib.invalidate_caches()
    return rewards.parse("python('scores_of_mine:score') + missing_end()").fingerprints

  source = 'def score(samples):\n  return [1.0] * len(samples)\n'
  first = identity(source)
  assert list(first) == ["python(path='scores_of_mine:score')"]
  assert identity(source) == first != identity(source.replace('1.0', '2.0'))


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ("python('nowhere')", 'package.module:function'),
    ("python('no.such.module:f')", "importing no.such.module failed: ModuleNotFoundError: No module named 'no'"),
    (f"python('{__name__}:missing')", f'{__name__} has no missing'),
    (f"python('{__name__}:SAMPLES')", 'not a function of samples'),
    (f"python('{__name__}:Own')", 'not a function of samples'),
    ("matches('(')", 'is not a regular expression'),
    ('length(4, 0)', 'scale=0 must be positive'),
    ('vader() + 1', r'\+ joins two rewards, but this is 1'),
    ('vader() * vader()', r'\* scales a reward by a number'),
    ('1', 'this is 1, not a reward'),
    ('vadr()', r'did you mean vader\(\)'),
  ],
)
def test_a_wrong_expression_is_an_error_that_names_the_place(text, message):
  with pytest.raises(expressions.ExpressionError, match=message):
    rewards.parse(text)


def test_a_missing_column_is_named():
  with pytest.raises(rewards.RewardError, match=r"exact_answer\(field='key'\).*no column 'key'; it has: 'answer'"):
    rewards.exact_answer('key')(SAMPLES)


@pytest.mark.parametrize(
  ('returned', 'message'),
  [
    ([1.0, 2.0], r'reward own must return one number per sample, .* samples 0 to 2, got shape \(2,\)'),
    (0.0, r'got shape \(\)'),
    (np.ones((3, 1)), r'got shape \(3, 1\)'),
    (
      [1.0, float('nan'), 2.0],
      r"reward own is nan for sample 1, and not finite for 1 of 3 samples. Response: 'It was a lovely day'",
    ),
    ([1.0, 2.0, -np.inf], 'is -inf for sample 2'),
    ([1.0, None, None], 'is nan for sample 1, and not finite for 2 of 3'),
    (['a', 'b', 'c'], 'reward own must return numbers for samples 0 to 2'),
  ],
)
def test_what_is_not_one_finite_number_per_sample_is_an_error(returned, message):
  reward = rewards.missing_end() + reward_of(lambda samples: returned)
  with pytest.raises(rewards.RewardError, match=message):
    reward(SAMPLES)


def test_a_reward_that_raises_is_named_with_its_samples_and_message():
  def broken(samples):
    raise KeyError('no such key')

  with pytest.raises(rewards.RewardError, match="reward own: scoring samples 40 to 42 failed: KeyError: 'no such key'"):
    reward_of(broken).scores(SAMPLES, first=40)

  def late(samples):
    raise TimeoutError('the service is down')

  with pytest.raises(rewards.RewardError, match='failed: TimeoutError: the service is down'):
    reward_of(late).scores(SAMPLES, seconds=30)


def test_a_reward_that_hangs_is_an_error_after_the_time_limit():
  release = threading.Event()
  hanging = reward_of(lambda samples: release.wait(60))
  with pytest.raises(rewards.RewardError, match=r'reward own: scoring samples 0 to 2 took longer than 0\.05 seconds'):
    hanging.scores(SAMPLES, seconds=0.05)
  release.set()


def test_a_slow_reward_is_watched():
  seen = threading.Event()
  waiting = reward_of(lambda samples: [float(seen.wait(60))] * len(samples))
  np.testing.assert_array_equal(waiting.scores(SAMPLES, seconds=60, tick=seen.set).total, 1.0)


def test_users_own_rewards_register_under_their_name(registry):
  @registry.factory
  def shouting(weight: float = 1.0):
    return lambda samples: [weight * sample.response.isupper() for sample in samples]

  reward = registry.parse('2 * shouting() + vader()')
  assert reward.name == '2.0 * shouting(weight=1.0) + vader()'

  def vader():
    return lambda samples: np.zeros(len(samples))

  with pytest.raises(ValueError, match='two rewards are called vader'):
    registry.factory(vader)
