"""The built-in prompts."""

import pytest

from experiments.quickstart import prompts


def test_train_and_held_out_prompts_share_no_thing():
  train, held_out = prompts.split(96, 72)
  assert len(train) == 96
  assert len(held_out) == 72
  things = [thing.strip() for line in prompts.THINGS.strip().splitlines() for thing in line.split(';')]
  assert len(set(things)) == len(things) >= 160
  for thing in things:
    assert sum(f' {thing}' in prompt.rstrip('.?') + ' ' for prompt in train + held_out) >= 1
  assert not set(train) & set(held_out)


def test_fewer_prompts_are_a_part_of_more():
  train, held_out = prompts.split(10, 5)
  more_train, more_held_out = prompts.split(20, 15)
  assert more_train[:10] == train
  assert more_held_out[-5:] == held_out


@pytest.mark.parametrize(('train', 'held_out'), [(0, 5), (5, 0), (1000, 5)])
def test_more_prompts_than_exist_are_refused(train, held_out):
  with pytest.raises(ValueError, match=f'train={train} and held_out={held_out}'):
    prompts.split(train, held_out)
