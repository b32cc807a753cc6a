"""Rewards of responses to prompts."""

from alignjax.rewards.base import REWARDS, Reward, factory, parse
from alignjax.rewards.sentiment import vader

__all__ = [
  'REWARDS',
  'Reward',
  'factory',
  'parse',
  'vader',
]
