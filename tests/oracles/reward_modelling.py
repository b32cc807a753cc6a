"""Oracles of `alignjax.objectives.reward_modelling`: rankings by enumerating who is chosen among whom."""

import itertools

import numpy as np

from tests.oracles.data import Case, expected, log_sigmoid


def bradley_terry(d, margin=False, centre=0.0):
  gap = d.reward[:, 0] - d.reward[:, 1]
  if margin:
    gap = gap - (d.score[:, 0] - d.score[:, 1])
  return expected(lambda h: -log_sigmoid(h), gap, d.label) + centre * d.reward.sum(axis=1) ** 2


def over_the_first_two(loss, d):
  """E over the label of a loss of ordered rewards [N]."""
  losses = np.zeros(len(d.label))
  for row, (reward, q) in enumerate(zip(d.reward, d.label, strict=True)):
    swapped = reward[[1, 0, *range(2, len(reward))]]
    losses[row] = q * loss(reward) + (1 - q) * loss(swapped)
  return losses


def plackett_luce(d):
  def loss(reward):
    """The chance of each choice in turn: the best of those that are left."""
    chances = [np.exp(reward[i]) / np.exp(reward[i:]).sum() for i in range(len(reward) - 1)]
    return -np.log(np.prod(chances))

  return over_the_first_two(loss, d)


def all_pairs(d):
  def loss(reward):
    return np.mean([-log_sigmoid(better - worse) for better, worse in itertools.combinations(reward, 2)])

  return over_the_first_two(loss, d)


def reward_regression(d):
  return ((d.reward - d.score) ** 2).sum(axis=1) / d.score.shape[1]


CASES = (
  Case('bradley_terry()', lambda d, _: bradley_terry(d)),
  Case('bradley_terry(margin=True, centre=0.05)', lambda d, _: bradley_terry(d, True, 0.05)),
  Case('plackett_luce()', lambda d, _: plackett_luce(d)),
  Case('plackett_luce()', lambda d, _: plackett_luce(d), responses=4),
  Case('all_pairs()', lambda d, _: all_pairs(d)),
  Case('all_pairs()', lambda d, _: all_pairs(d), responses=4),
  Case('reward_regression()', lambda d, _: reward_regression(d)),
  Case('reward_regression()', lambda d, _: reward_regression(d), responses=1),
)
