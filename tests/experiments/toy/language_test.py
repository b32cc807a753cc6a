"""The language of the studies: its text, its gold reward, and its pairs."""

import jax
import numpy as np
import pytest

from alignjax import stats
from experiments.toy import language


def test_gold_is_the_documented_function():
  rng = np.random.default_rng(0)
  response, length = rng.integers(1, 5, size=(50, 3, 8)), rng.integers(1, 9, size=(50, 3))
  expected = np.zeros((50, 3))
  for place in np.ndindex(50, 3):
    words = response[place][: length[place]].tolist()
    expected[place] = 1 - ((words.count(1) - 3) / 3) ** 2 - 0.3 * words.count(2)
  np.testing.assert_allclose(language.gold(response, length), expected, rtol=1e-12)
  best = np.array([[1, 1, 1, 0]])
  assert language.gold(best, np.array([4])) == 1.0


def test_text_is_the_chain():
  text = language.text(20_000, np.random.default_rng(1))
  response, length = text.response[:, 0], text.response_length[:, 0]
  places = np.arange(language.RESPONSE) < length[:, None]
  assert np.all(response[~places] == 0)
  ended = response[np.arange(len(length)), length - 1] == language.END
  assert np.all(ended | (length == language.RESPONSE))
  first = (response[:, 0] == language.END).mean()
  assert abs(first - language.ENDS) < 5 * np.sqrt(language.ENDS * (1 - language.ENDS) / len(length))
  transitions = language._transitions()
  last = text.prompt[:, -1]
  token = np.bincount(last).argmax()
  follows = np.bincount(response[last == token, 0], minlength=language.TOKENS) / (last == token).sum()
  assert np.abs(follows - transitions[token]).max() < 5 * np.sqrt(0.25 / (last == token).sum())
  np.testing.assert_allclose(transitions.sum(axis=1), 1.0, rtol=1e-12)


def test_no_prompt_is_on_two_sides():
  sides = [language.prompts(2000, np.random.default_rng(2), side) for side in (None, 0, 1)]
  found = [set(map(tuple, side.tolist())) for side in sides]
  assert all(side.shape == (2000, language.PROMPT) and (side > 0).all() for side in sides)
  assert not found[0] & found[1] | found[0] & found[2] | found[1] & found[2]


@pytest.mark.slow
def test_pairs_prefer_the_higher_gold_reward_and_know_what_drew_them():
  """With a model as it is initialised: labels follow the Bradley-Terry model, log-probabilities are the sampler's."""
  policy = language.model(width=8, layers=1)
  params, rng = policy.init(jax.random.key(0)), np.random.default_rng(3)
  drawn = language.draw(policy, params, language.prompts(2000, rng), jax.random.key(1), 2)
  pairs = language.pairs(policy, params, drawn, rng)
  np.testing.assert_allclose(pairs.cached[stats.reference_logp.name].sum(-1), pairs.behaviour_logp, atol=2e-5)
  rewards = language.gold(np.asarray(pairs.response), np.asarray(pairs.response_length))
  gap = np.abs(rewards[:, 0] - rewards[:, 1])
  expected = 1 / (1 + np.exp(-language.SHARPNESS * gap[gap > 0]))
  agreed = rewards[gap > 0, 0] > rewards[gap > 0, 1]
  error = np.sqrt((expected * (1 - expected)).sum())
  assert abs(agreed.sum() - expected.sum()) < 4 * error
  warmer = language.draw(policy, params, drawn.prompt[:50], jax.random.key(1), 2, temperature=1.5)
  shifted = language.pairs(policy, params, warmer, rng)
  assert np.abs(shifted.cached[stats.reference_logp.name].sum(-1) - shifted.behaviour_logp).max() > 0.05
  judged = language.Judge(policy, 16)(params, params, jax.random.key(2))
  assert judged['kl'] == 0.0
  assert set(judged) == {'gold', 'kl', 'length', 'validation/gold'}
