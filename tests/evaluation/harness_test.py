"""The answers of lm-evaluation-harness's Hugging Face backend, from a file that it wrote, and those of alignjax."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

from alignjax.evaluation import harness
from tests import assets

FILE = pathlib.Path(__file__).parents[1] / 'golden' / 'harness.json'
ASKED = json.loads(FILE.read_text())


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """The model of tests/golden/make_harness.py."""
  folder = assets.write_tiny_model(tmp_path_factory.mktemp('harness') / 'model', layers=1, max_positions=96)
  return harness.TextModel.load(folder, batch_size=32)


def test_log_likelihoods_are_those_of_the_other_backend(model):
  """Also of contexts that end with spaces, or are longer than what the model reads."""
  pairs, expected = zip(*(((context, text), answer) for context, text, answer in ASKED['choice']), strict=True)
  assert len({context for context, _ in pairs}) == 50
  found, greedy = zip(*model.loglikelihood(pairs), strict=True)
  logp, expected_greedy = zip(*expected, strict=True)
  error = np.abs(np.array(found) - logp) / np.abs(logp)
  print(f'largest relative error of {len(found)} log-likelihoods: {error.max():.1e}')
  assert error.max() < 2e-5
  assert greedy == expected_greedy


@pytest.mark.slow  # the test below generates greedily, too
def test_generated_texts_are_those_of_the_other_backend(model):
  contexts, kinds, expected = zip(*ASKED['generation'], strict=True)
  (until,) = {tuple(kind['until']) for kind in kinds}
  assert model.generate(contexts, harness.Generation(until, max_tokens=16)) == list(expected)
  assert len(set(expected)) > 40


@pytest.mark.slow  # the contexts above are long, too
def test_likelihoods_of_texts_are_those_of_the_other_backend(model):
  """Some are longer than what the model reads, and are scored in parts."""
  texts, expected = zip(*ASKED['text'], strict=True)
  assert max(len(model.tokenizer.encode_prompt(text)) for text in texts) > 2 * model.max_length
  np.testing.assert_allclose(model.loglikelihood_rolling(texts), expected, rtol=2e-5)


def test_a_generated_text_is_the_greedy_continuation(model):
  (text,) = model.generate(['The film was'], harness.Generation(max_tokens=16))
  other = ' and'
  (_, greedy), (_, of_other) = model.loglikelihood([('The film was', text), ('The film was', other)])
  assert (greedy, of_other) == (True, False)


def test_what_cannot_be_scored_is_named(model):
  with pytest.raises(ValueError, match="the continuation '' of 'a' has no tokens"):
    model.loglikelihood([('a', '')])
  with pytest.raises(ValueError, match='the model reads at most 96'):
    model.loglikelihood([('a', ' word' * 200)])
  with pytest.raises(ValueError, match='max_gen_toks=96: must be less than the 96 tokens'):
    model.generate(['a'], harness.Generation(max_tokens=96))


@pytest.mark.skipif(importlib.util.find_spec('lm_eval') is None, reason='lm-eval is an extra')
def test_requests_become_generations():
  from alignjax.run import harness as adapter

  assert adapter.generation({'until': 'x', 'max_gen_toks': 5}, 0) == harness.Generation(('x',), 5)
  sampled = adapter.generation({'do_sample': True, 'temperature': 0.7, 'top_p': 0.9}, 3)
  assert sampled == harness.Generation((), 256, 0.7, 0, 0.9, 3)
