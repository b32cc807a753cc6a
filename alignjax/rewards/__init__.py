"""Rewards of responses to prompts: values that score samples, and add and scale."""

from alignjax.rewards.base import REWARDS, Part, Reward, RewardError, Sample, Score, Scores, factory, parse
from alignjax.rewards.model import RewardModel, reward_model
from alignjax.rewards.own import python
from alignjax.rewards.rules import exact_answer, length, matches, missing_end
from alignjax.rewards.sentiment import vader

__all__ = [
  'REWARDS',
  'Part',
  'Reward',
  'RewardError',
  'RewardModel',
  'Sample',
  'Score',
  'Scores',
  'exact_answer',
  'factory',
  'length',
  'matches',
  'missing_end',
  'parse',
  'python',
  'reward_model',
  'vader',
]
