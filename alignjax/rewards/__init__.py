"""Rewards of responses to prompts."""

from alignjax.rewards.sentiment import Reward, vader

__all__ = ['Reward', 'vader']
