"""A reward model scores text as it was trained to: the same tokens, one by one, whatever else is scored with it."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import tokenizers

from alignjax import rewards, stats
from alignjax.data.batches import batching
from alignjax.data.reading import rows
from alignjax.data.tokens import encoding, tokenization
from alignjax.evaluation import reward_accuracy
from alignjax.models import checkpoint_io, folders, reward_scale, transformer
from alignjax.rewards import model as reward_models
from alignjax.training import forward
from tests import assets
from tests.models import token_batches

CHAT = [{'role': 'user', 'content': 'Name a film.'}]
TEXTS = ('The warm story.', 'Bad.', 'People always say so, and never this one')


def sample(prompt, response, finished=True):
  return rewards.Sample(prompt, response, tokens=0, finished=finished)


SAMPLES = [
  *(sample(CHAT, text) for text in TEXTS),
  *(sample('A film is', f' {text}') for text in TEXTS),
  sample(CHAT, TEXTS[0], finished=False),
  sample('A much longer prompt of many words about films and stories', ' good'),
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A reward model whose padding is its end token, as in many published models."""
  path = tmp_path_factory.mktemp('reward')
  assets.write_tiny_model(path / 'base', layers=1, vocab_size=384, max_positions=96)
  config = checkpoint_io.load_config(path / 'base', output='score')
  params = token_batches.params(transformer.build(config))
  checkpoint_io.save(path / 'model', config, params, assets_from=path / 'base')
  return path / 'model'


@pytest.fixture(scope='module')
def scorer(folder):
  return rewards.RewardModel.load(folder, normalise=False)


@pytest.fixture(scope='module')
def scores(scorer):
  return scorer(SAMPLES)


@pytest.mark.slow  # reward_model_test.py scores what a run has evaluated
def test_scores_are_the_rewards_of_training(folder, scores):
  """The prompt, the response and its end token are those of the training data; a response that was cut has no end."""
  tokenizer = tokenization.Tokenizer.load(folder)
  examples = [rows.Example(each.prompt, (each.response,)) for each in SAMPLES]
  data = encoding.tokenize(examples, tokenizer, encoding.Limits(64, 64, 384))
  assert all(tokens[-1] == tokenizer.eos_id for example in data for tokens in example.responses)
  batches = batching.make_batches(data, batching.BatchSpec(len(data), epochs=1, shuffle=False, buckets=((48, 48),)))
  batch = next(iter(batches)).data
  finished = np.array([[each.finished] for each in SAMPLES])
  batch = dataclasses.replace(batch, response_length=batch.response_length - ~finished)
  config = checkpoint_io.load_config(folder, output='score')
  model, params = transformer.build(config), checkpoint_io.load_params(folder, config)

  @jax.jit
  def expected(params):
    hidden = forward.hidden_states(model, params, batch, {stats.reward})
    return stats.statistics({stats.reward}, hidden, None, batch, chunk=1)[stats.reward]

  np.testing.assert_allclose(scores, expected(params)[:, 0], rtol=0, atol=1e-5)


def test_the_end_of_the_response_is_scored_although_padding_is_the_end_token(folder, scores):
  """Where the first padding id counts as the end, all responses to a conversation get the score of its question."""
  tokenizer = tokenization.Tokenizer.load(folder)
  assert tokenizer.pad_id == tokenizer.eos_id
  assert tokenizer.encode_prompt(CHAT).count(tokenizer.pad_id) == 1
  assert np.ptp(scores[:3]) > 0.1
  assert abs(scores[0] - scores[6]) > 1e-3  # the end token counts


@pytest.mark.parametrize(('batch_size', 'multiple'), [(8, 48), pytest.param(32, 24, marks=pytest.mark.slow)])
def test_a_score_depends_on_its_own_sample_alone(folder, scorer, scores, batch_size, multiple, monkeypatch):
  """Neither on the batch size, nor on the neighbours, nor on the padding."""
  order = np.random.default_rng(batch_size).permutation(len(SAMPLES))
  again = rewards.RewardModel.load(folder, normalise=False, batch_size=batch_size)
  monkeypatch.setattr(reward_models, 'MULTIPLE', multiple)
  rounding = 1e-6 * np.abs(np.asarray(scorer._loaded.params['score']['kernel'])).sum()  # of a sum of states of size 1
  np.testing.assert_allclose(again([SAMPLES[i] for i in order]), scores[order], rtol=0, atol=rounding)
  np.testing.assert_allclose(scorer(SAMPLES[:1]), scores[:1], rtol=0, atol=rounding)


def test_the_first_token_is_there_once(folder, scores):
  """The template writes it, and the tokenizer would, too."""
  scorer = rewards.RewardModel.load(folder, normalise=False)
  tokenizer = scorer._loaded.tokenizer
  scorer._loaded = scorer._loaded._replace(tokenizer=dataclasses.replace(tokenizer, prefix=(tokenizer.bos_id,)))
  found = scorer(SAMPLES)
  np.testing.assert_array_equal(found[:3], scores[:3])
  assert np.abs(found[3:6] - scores[3:6]).min() > 1e-4  # strings have none of their own


def test_dropout_in_the_configuration_has_no_effect(folder, scores, tmp_path):
  entries = json.loads((folder / 'config.json').read_text()) | {'attention_dropout': 0.5, 'classifier_dropout': 0.5}
  for path in folder.iterdir():
    if path.name not in ('config.json', 'alignjax_export.json'):
      (tmp_path / path.name).write_bytes(path.read_bytes())
  (tmp_path / 'config.json').write_text(json.dumps(entries))
  found = rewards.RewardModel.load(tmp_path, normalise=False)
  np.testing.assert_array_equal(found(SAMPLES), scores)
  np.testing.assert_array_equal(found(SAMPLES), scores)


def test_a_reward_of_zero_is_a_reward(folder):
  scorer = rewards.RewardModel.load(folder, normalise=False)
  scorer._loaded.params['score']['kernel'] *= 0
  np.testing.assert_array_equal(scorer(SAMPLES[:2]), [0.0, 0.0])
  scorer._scale = reward_scale.RewardScale(2.0, 4.0, 'nothing')
  np.testing.assert_array_equal(scorer(SAMPLES[:2]), [-0.5, -0.5])


def test_as_an_expression_it_is_normalised_with_the_scale_in_its_folder(folder, scores):
  with pytest.raises(ValueError, match=r'reward\.json: is missing, .* use normalise=False'):
    rewards.parse(f'reward_model("{folder}")')
  scale = reward_models.calibrate(folder, SAMPLES, 'samples')
  assert (scale.mean, scale.std, scale.source) == (scores.mean(), scores.std(), 'samples')
  checkpoint_io.load_config(folder, output='score')  # the manifest does not cover it
  found = rewards.parse(f'2.0 * reward_model("{folder}") - missing_end(1.0)').scores(SAMPLES)
  part = found.parts[f"reward_model(folder='{folder}', normalise=True, compute_dtype='float32')"]
  np.testing.assert_allclose(part, (scores - scores.mean()) / scores.std(), rtol=1e-6)
  np.testing.assert_allclose(found.total, 2 * part - [not each.finished for each in SAMPLES])
  assert rewards.parse(f'reward_model("{folder}")').collective
  with pytest.raises(ValueError, match="compute_dtype='float16'"):
    rewards.parse(f'reward_model("{folder}", compute_dtype="float16")')


@pytest.mark.parametrize(
  'text', ['{"mean": 0}', '{"mean": 0, "std": 0}', '{"mean": "a", "std": 1}', '{"mean": 0, "std": true}']
)
def test_a_damaged_scale_is_refused(tmp_path, text):
  (tmp_path / folders.REWARD).write_text(text)
  with pytest.raises(ValueError, match=r'reward\.json: mean=.* must be finite numbers, and std positive'):
    reward_scale.read(tmp_path)


@pytest.mark.parametrize('scores', [[1.0], [1.0, 1.0], [1.0, np.nan]])
def test_rewards_without_a_scale_are_refused(scores):
  with pytest.raises(ValueError, match='rewards of some samples have no scale'):
    reward_scale.RewardScale.of(scores, 'some samples')


def test_long_prompts_lose_their_first_tokens_and_long_responses_are_refused(scorer):
  words = ' '.join(['film'] * 200)
  one, other = scorer([sample('A ' + words, ' good'), sample('The ' + words, ' good')])
  assert one == pytest.approx(other, abs=1e-6)
  with pytest.raises(ValueError, match=r'sample 1: the response has \d+ tokens, and the reward model reads 96 tokens'):
    scorer([SAMPLES[0], sample('A', f' {words} {words}')])


def test_a_token_that_the_model_has_no_embedding_for_is_refused(folder, tmp_path):
  tokenizer = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  shutil.copytree(folder, tmp_path / 'model', ignore=shutil.ignore_patterns('alignjax_export.json'))
  tokenizer.add_special_tokens(['<|think|>'])
  tokenizer.save(str(tmp_path / 'model' / 'tokenizer.json'))
  scorer = rewards.RewardModel.load(tmp_path / 'model', normalise=False)
  with pytest.raises(ValueError, match=r'sample 1 has token id 384 .*, but the model has 384 embeddings'):
    scorer([SAMPLES[0], sample('Hello <|think|>', 'there')])


def test_a_language_model_is_not_a_reward_model(folder):
  with pytest.raises(ValueError, match=r'tensor score\.weight is missing: the folder holds a language model'):
    rewards.RewardModel.load(folder.parent / 'base', normalise=False)


def test_accuracy_by_subset():
  found = reward_accuracy.accuracy(np.array([1.0, 0.0, 2.0, 0.0]), np.array([0.0, 1.0, 1.0, 0.0]), ['a', 'a', 'a', 'b'])
  assert found.by_subset['a'].mean == pytest.approx(2 / 3)
  assert found.by_subset['b'].mean == 0.5  # a tie
  assert found.overall.mean == pytest.approx(2.5 / 4)
  assert found.macro == pytest.approx((2 / 3 + 0.5) / 2)
  with pytest.raises(ValueError, match='expected the rewards of pairs and their subsets'):
    reward_accuracy.accuracy(np.zeros(2), np.zeros(2), ['a'])


def test_accuracy_of_a_reward_model_on_pairs(scorer, scores):
  pairs = [
    reward_accuracy.Pair(CHAT, TEXTS[0], TEXTS[1], 'chat'),
    reward_accuracy.Pair(CHAT, TEXTS[1], TEXTS[0], 'chat'),
    reward_accuracy.Pair('A film is', f' {TEXTS[0]}', f' {TEXTS[2]}', 'text'),
  ]
  found = reward_accuracy.evaluate(scorer, pairs)
  assert found.by_subset['chat'].mean == 0.5
  assert found.by_subset['text'].mean == float(scores[3] > scores[5])
