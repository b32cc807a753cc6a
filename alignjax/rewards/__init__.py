"""Rewards: what a response to a prompt is worth."""

from alignjax.rewards.sentiment import Reward, vader

__all__ = ['Reward', 'vader']
