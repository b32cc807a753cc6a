"""Sampling in groups, and the pairs made of samples."""

import json

import jax
import numpy as np
import pytest

from alignjax.data.reading import drops, sources
from alignjax.data.tokens import tokenization
from alignjax.models import checkpoint_io, transformer
from alignjax.parallel import mesh
from alignjax.types import PreferenceBatch
from experiments.quickstart import prompts, responses
from tests import assets

MESH = mesh.make_mesh(devices=jax.devices()[:1])


def _drawn(rows: list[list[tuple[str, float]]]) -> responses.Drawn:
  """Responses that were not really drawn: only their texts and rewards matter to pairs."""
  nothing = np.zeros(len(rows), np.int32)
  batch = PreferenceBatch(nothing, nothing, nothing, nothing, nothing, nothing)
  texts = [[text for text, _ in row] for row in rows]
  values = np.array([[reward for _, reward in row] for row in rows])
  return responses.Drawn([f'prompt {i}' for i in range(len(rows))], batch, texts, values)


def _pairs(path) -> list[tuple[str, str]]:
  return [pair.responses for pair in sources.read_examples(path, drops.DropReport())]


def test_the_best_meets_the_worst_and_the_second_best_the_second_worst(tmp_path):
  row = [('c', 0.3), ('e', 0.9), ('a', -0.5), ('d', 0.4), ('b', 0.1)]
  for most, expected in ((1, [('e', 'a')]), (2, [('e', 'a'), ('d', 'b')]), (9, [('e', 'a'), ('d', 'b')])):
    assert responses.write_pairs(tmp_path / 'pairs.jsonl', _drawn([row]), most) == 0
    assert _pairs(tmp_path / 'pairs.jsonl') == expected
  first = json.loads((tmp_path / 'pairs.jsonl').read_text().splitlines()[0])
  assert first == {
    'prompt': [{'role': 'user', 'content': 'prompt 0'}],
    'chosen': 'e',
    'rejected': 'a',
    'score': [0.9, -0.5],
  }


def test_ties_are_counted_and_empty_responses_passed_over(tmp_path):
  drawn = _drawn(
    [
      [('a', 0.5), ('b', 0.5), ('c', 0.5), ('d', 0.5)],  # nothing to prefer
      [('', 0.9), ('b', 0.5), ('c', 0.1), ('', -0.9)],
      [('', 0.9), ('', 0.5), ('c', 0.1), ('', -0.9)],  # nothing to compare with
    ]
  )
  assert responses.write_pairs(tmp_path / 'pairs.jsonl', drawn, 2) == 2
  assert _pairs(tmp_path / 'pairs.jsonl') == [('b', 'c')]


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  folder = assets.write_tiny_model(tmp_path_factory.mktemp('model'))
  config = checkpoint_io.load_config(folder)
  return transformer.build(config), checkpoint_io.load_params(folder, config), tokenization.Tokenizer.load(folder)


def _responder(model, group: int, samples: int) -> responses.Responder:
  def reward(samples):
    return np.array([len(sample.prompt) + 0.01 * len(sample.response) for sample in samples])

  return responses.Responder(model[0], MESH, model[2], reward, responses.Sizes(group, samples, 96, 6))


@pytest.fixture(name='responder', scope='module')
def make_responder(model):
  return _responder(model, 4, 2)


@pytest.mark.slow  # sampling/sampler_test.py checks rows beside others
def test_what_is_drawn_does_not_depend_on_the_grouping(model, responder):
  asked, key = prompts.split(5, 1)[0], jax.random.key(3)
  one, other = (side.draw(model[1], asked, key, rounds=2) for side in (responder, _responder(model, 16, 2)))
  assert one.texts == other.texts
  jax.tree.map(np.testing.assert_array_equal, one.batch, other.batch)
  # The first round is the only one of a single round, prompt by prompt; the second meets other chances.
  single = responder.draw(model[1], asked, key)
  assert [row[:2] for row in one.texts] == single.texts
  assert not any(row[:2] == row[2:] for row in one.texts)
  np.testing.assert_array_equal(np.floor(one.rewards), [[len(prompt)] * 4 for prompt in asked])


@pytest.mark.slow  # run_test.py has both, and rollouts_test.py compares such estimates with the enumerated KL
def test_kl_is_zero_at_the_reference_and_positive_away_from_it(model, responder):
  asked = prompts.split(5, 1)[0]
  drawn = responder.draw(model[1], asked, jax.random.key(0), rounds=2)
  same = responder.kl(model[1], model[1], drawn)
  assert abs(same['kl'].mean) < 1e-5
  assert abs(same['kl_of_tokens'].mean) < 1e-5
  moved = jax.tree.map(lambda x: 1.2 * x, model[1])
  drawn = responder.draw(moved, asked, jax.random.key(0), rounds=2)
  away = responder.kl(moved, model[1], drawn)
  assert away['kl_of_tokens'].mean > 0.1
  assert abs(away['kl'].mean - away['kl_of_tokens'].mean) < 4 * away['kl'].error
