"""The lookup model against contexts and probabilities written out by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.models import tabular

CONFIG = tabular.TabularConfig(vocab_size=3, order=2)
MODEL = tabular.build(CONFIG)
TABLE = np.random.default_rng(0).standard_normal((CONFIG.contexts, 3)).astype(np.float32)
PARAMS = {'logits': jnp.asarray(TABLE)}
PROMPT, PROMPT_LENGTH = np.array([[2, 0, 1], [1, 2, 2]], np.int32), np.array([3, 1], np.int32)
RESPONSE = np.array([[[0, 2, 1], [1, 1, 0]], [[2, 0, 0], [0, 1, 2]]], np.int32)
LENGTH = np.full((2, 2), 3, np.int32)


def test_contexts_number_the_last_tokens_in_base_four():
  assert CONFIG.contexts == 16
  assert CONFIG.context([]) == 15
  assert CONFIG.context([1]) == 3 * 4 + 1
  assert CONFIG.context([0, 2, 1]) == 2 * 4 + 1


def test_each_entry_reads_the_row_of_what_precedes_it():
  states = MODEL.hidden(PARAMS, PROMPT, PROMPT_LENGTH, RESPONSE, LENGTH)
  logits = np.asarray(states @ MODEL.head(PARAMS).kernel)
  for b, n, t in itertools.product(range(2), range(2), range(3)):
    before = [*PROMPT[b, : PROMPT_LENGTH[b]], *RESPONSE[b, n, :t]]
    row = np.array([3, 3, *before])[-2:] @ [4, 1]
    np.testing.assert_array_equal(logits[b, n, t], TABLE[row])


def test_decode_mirrors_hidden():
  states = MODEL.hidden(PARAMS, PROMPT, PROMPT_LENGTH, RESPONSE, LENGTH)
  cache = MODEL.prefill(PARAMS, PROMPT, PROMPT_LENGTH, samples=2, max_new_tokens=3)
  token = np.array([[1, 1], [1, 1]], np.int32)
  for t in range(3):
    cache, state = MODEL.decode(PARAMS, cache, token)
    np.testing.assert_array_equal(state, states[:, :, t])
    token = RESPONSE[:, :, t]


def test_the_gradient_of_a_log_probability_is_that_of_its_row_alone():
  """d log softmax(row)_v / d row = one_hot(v) - softmax(row)."""

  def logp(params):
    states = MODEL.hidden(params, PROMPT, PROMPT_LENGTH, RESPONSE, LENGTH)
    return jax.nn.log_softmax(states @ MODEL.head(params).kernel)[0, 0, 1, 2]

  gradient = jax.grad(logp)(PARAMS)['logits']
  row = CONFIG.context([1, 0])
  probabilities = np.exp(TABLE[row]) / np.exp(TABLE[row]).sum()
  expected = np.zeros_like(TABLE)
  expected[row] = np.eye(3)[2] - probabilities
  np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_init_draws_one_row_for_each_context():
  params = MODEL.init(jax.random.key(0))
  assert jax.tree.map(lambda x: x.shape, params) == {'logits': (16, 3)}
  assert np.std(params['logits']) > 0.5


def test_sizes_are_checked():
  with pytest.raises(ValueError, match='vocab_size=0 and order=1'):
    tabular.TabularConfig(vocab_size=0, order=1)
  with pytest.raises(ValueError, match='order=20 with vocab_size=9 has too many contexts'):
    tabular.TabularConfig(vocab_size=9, order=20)
