"""The sampler against enumeration, against the training forward, and under changes of the batch around a row."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import numerics
from alignjax.models import tabular, transformer
from alignjax.parallel import mesh as mesh_lib
from alignjax.parallel import rules
from alignjax.sampling import sampler, strategies
from tests.models import token_batches

END = 2
BATCH = token_batches.batch(0, prompt=6, samples=2, response=5, prompts=8)
TABLE_CONFIG = tabular.TabularConfig(vocab_size=3, order=3)
TABLE = tabular.build(TABLE_CONFIG)


@functools.cache
def _decoder():
  model = transformer.build(token_batches.CONFIG)
  params = token_batches.params(model)
  params['embed']['embedding'] *= 2.0  # sharper distributions
  return model, params


@functools.cache
def _compiled(model, decoding):
  return jax.jit(functools.partial(sampler.sample, model, decoding=decoding))


def _sample(model, params, prompt, prompt_length, seed=0, row_ids=None, **options):
  decoding = sampler.Decoding(**{'samples': 2, 'max_new_tokens': 5, 'end_ids': (END,)} | options)
  return _compiled(model, decoding)(params, sampler.Prompts(prompt, prompt_length, row_ids), jax.random.key(seed))


def _training_logits(model, params, drawn):
  hidden = model.hidden(params, BATCH.prompt, BATCH.prompt_length, drawn.response, drawn.response_length)
  return hidden @ model.head(params).kernel


def _table_params(seed=0):
  return {'logits': jax.random.normal(jax.random.key(seed), (TABLE_CONFIG.contexts, 3))}


def test_responses_to_one_prompt_follow_the_enumerated_distribution():
  """Every response of at most 3 tokens over 3 tokens, the last of which ends it."""
  params, samples = _table_params(), 30000
  prompt = np.array([[1, 0]], np.int32)
  drawn = _sample(TABLE, params, prompt, np.array([2], np.int32), samples=samples, max_new_tokens=3)
  log_probs = np.asarray(jax.nn.log_softmax(params['logits']))
  expected, logps = {}, {}
  for tokens in itertools.chain.from_iterable(itertools.product(range(3), repeat=r) for r in (1, 2, 3)):
    if END in tokens[:-1] or (len(tokens) < 3 and tokens[-1] != END):
      continue
    rows = [TABLE_CONFIG.context([1, 0, *tokens[:t]]) for t in range(len(tokens))]
    logps[tokens] = [log_probs[row, token] for row, token in zip(rows, tokens, strict=True)]
    expected[tokens] = samples * np.exp(sum(logps[tokens]))
  np.testing.assert_allclose(sum(expected.values()), samples, rtol=1e-5)
  counts = dict.fromkeys(expected, 0)
  length, response, logp = (np.asarray(x)[0] for x in (drawn.response_length, drawn.response, drawn.logp))
  for i in range(samples):
    tokens = tuple(response[i, : length[i]].tolist())
    counts[tokens] += 1
    if counts[tokens] == 1:
      np.testing.assert_allclose(logp[i, : length[i]], logps[tokens], atol=1e-5)
  statistic = sum((counts[tokens] - mean) ** 2 / mean for tokens, mean in expected.items())
  freedom = len(expected) - 1
  assert abs(statistic - freedom) < 3 * np.sqrt(2 * freedom)


@pytest.mark.parametrize(
  'strategy',
  [
    pytest.param(strategies.chain(), id='model', marks=pytest.mark.slow),  # below, too, they are compared
    pytest.param(strategies.chain(strategies.temperature(0.7), strategies.top_k(9)), id='sharper'),
  ],
)
def test_log_probs_are_those_of_the_training_forward(strategy):
  model, params = _decoder()
  drawn = _sample(model, params, BATCH.prompt, BATCH.prompt_length, strategy=strategy, end_ids=(2, 7, 12, 17, 22))
  valid = numerics.length_mask(drawn.response_length, 5)
  assert 0.5 < np.mean(valid) < 1, 'some responses must end early'

  @jax.jit
  def expected(params, drawn):
    logits = _training_logits(model, params, drawn)
    return [numerics.select(jax.nn.log_softmax(x), drawn.response) for x in (logits, strategy(logits))]

  for logp, wanted in zip((drawn.logp, drawn.strategy_logp), expected(params, drawn), strict=True):
    np.testing.assert_allclose(logp, np.where(valid, wanted, 0.0), atol=1e-4)


@pytest.mark.slow  # the log-probabilities are compared above, and strategies_test.py has greedy
def test_greedy_takes_the_most_probable_token_of_the_training_forward():
  model, params = _decoder()
  drawn = _sample(model, params, BATCH.prompt, BATCH.prompt_length, strategy=strategies.greedy())
  logits = jax.jit(_training_logits, static_argnums=0)(model, params, drawn)
  valid = np.asarray(numerics.length_mask(drawn.response_length, 5))
  np.testing.assert_array_equal(np.asarray(drawn.response)[valid], np.argmax(logits, axis=-1)[valid])
  assert len(np.unique(np.asarray(drawn.response)[valid])) > 5
  np.testing.assert_allclose(drawn.strategy_logp, 0.0, atol=1e-6)
  assert np.all(np.asarray(drawn.logp)[valid] < 0)


def test_a_response_ends_with_its_first_end_token_and_is_padded_with_zeros():
  drawn = _sample(TABLE, _table_params(), BATCH.prompt % 3, BATCH.prompt_length, samples=50)
  response, length, finished = map(np.asarray, (drawn.response, drawn.response_length, drawn.finished))
  assert finished.any()
  assert not finished.all()
  for b, n in np.ndindex(length.shape):
    valid = response[b, n, : length[b, n]].tolist()
    assert END not in valid[:-1]
    assert finished[b, n] == (valid[-1] == END)
    assert finished[b, n] or len(valid) == 5
  padding = ~np.asarray(numerics.length_mask(drawn.response_length, 5))
  for values in (response, np.asarray(drawn.logp), np.asarray(drawn.strategy_logp)):
    np.testing.assert_array_equal(values[padding], 0)


@pytest.mark.slow  # the log-probabilities above are of five end tokens
def test_any_of_several_end_tokens_ends_a_response_and_without_one_none_ends():
  prompt, length, params = BATCH.prompt % 3, BATCH.prompt_length, _table_params()
  ends_both = _sample(TABLE, params, prompt, length, end_ids=(0, END))
  assert np.all(np.isin(np.asarray(ends_both.response), [0, 1, END]))
  one_token = np.asarray(ends_both.response_length) == 1
  assert {0, END} <= set(np.asarray(ends_both.response)[one_token][:, 0])
  endless = _sample(TABLE, params, prompt, length, end_ids=())
  np.testing.assert_array_equal(endless.response_length, 5)
  assert not np.any(endless.finished)


def test_a_row_does_not_depend_on_the_rows_beside_it():
  model, params = _decoder()
  whole = _sample(model, params, BATCH.prompt, BATCH.prompt_length, row_ids=np.arange(8))
  rows = np.array([5, 0, 3, 3, 6, 0, 0, 5])  # of the same shape, which compiles no other program
  part = _sample(model, params, BATCH.prompt[rows], BATCH.prompt_length[rows], row_ids=rows)
  np.testing.assert_array_equal(part.response, np.asarray(whole.response)[rows])
  np.testing.assert_allclose(part.logp, np.asarray(whole.logp)[rows], atol=1e-5)


def test_more_samples_or_more_tokens_continue_the_same_draws():
  prompt, length, params = BATCH.prompt % 3, BATCH.prompt_length, _table_params()
  samples = _sample(TABLE, params, prompt, length, samples=50)  # as above
  tokens = _sample(TABLE, params, prompt, length, samples=4, max_new_tokens=9)
  np.testing.assert_array_equal(np.asarray(tokens.response)[:, :, :5], np.asarray(samples.response)[:, :4])


def test_rows_samples_tokens_and_keys_draw_independently():
  prompt, length, params = np.ones((40, 1), np.int32), np.ones(40, np.int32), {'logits': jnp.zeros((64, 3))}
  options = {'samples': 40, 'end_ids': ()}
  response = np.asarray(_sample(TABLE, params, prompt, length, **options).response)
  other_key = np.asarray(_sample(TABLE, params, prompt, length, seed=1, **options).response)
  pairs = [
    (response, other_key),
    (response[1:], response[:-1]),
    (response[:, 1:], response[:, :-1]),
    (response[..., 1:], response[..., :-1]),
    (response, response.transpose(1, 0, 2)),  # row 3, sample 5 against row 5, sample 3
  ]
  for left, right in pairs[:-1]:
    assert abs(np.mean(left == right) - 1 / 3) < 0.03
  assert abs(np.mean((pairs[-1][0] == pairs[-1][1])[~np.eye(40, dtype=bool)]) - 1 / 3) < 0.03


def test_the_loop_stops_when_every_response_has_ended():
  steps = []

  def decode(params, cache, token):
    jax.debug.callback(lambda: steps.append(1))
    return TABLE.decode(params, cache, token)

  model = TABLE._replace(decode=decode)
  drawn = _sample(model, _table_params(), BATCH.prompt % 3, BATCH.prompt_length, max_new_tokens=200)
  jax.effects_barrier()
  assert len(steps) == np.max(drawn.response_length) < 60


@pytest.mark.slow  # layouts_test.py compares eight devices with one
def test_eight_devices_draw_what_one_does():
  model, params = _decoder()
  mesh = mesh_lib.make_mesh(data=4, fsdp=1, tensor=2)
  sharded_params = jax.device_put(params, rules.param_shardings(mesh, params))
  fields = jax.device_put((BATCH.prompt, BATCH.prompt_length), rules.batch_sharding(mesh))
  rows = {'row_ids': np.arange(8)}
  drawn = _sample(model, sharded_params, *fields, **rows)
  expected = _sample(model, params, BATCH.prompt, BATCH.prompt_length, **rows)
  np.testing.assert_array_equal(drawn.response, expected.response)
  np.testing.assert_allclose(drawn.logp, expected.logp, atol=1e-5)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'samples': 0}, 'samples=0 and max_new_tokens=5 must both be at least 1'),
    ({'max_new_tokens': 0}, 'max_new_tokens=0'),
    ({'end_ids': (2, -1)}, r'end_ids=\(2, -1\) must not be negative'),
  ],
)
def test_wrong_arguments_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    _sample(TABLE, _table_params(), BATCH.prompt % 3, BATCH.prompt_length, **options)
