"""Packed rows against a batch of the same prompts, one row each: hidden states, gradients, neighbours, padding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.models import attention, packed_attention, transformer
from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from tests import packed_batches
from tests.models import token_batches

CONFIG = dataclasses.replace(token_batches.CONFIG, layers=1, remat='none', scan_layers=False)
DATA = packed_batches.examples()
PACKED, PLAIN = packed_batches.both(DATA)
VALID = packed_batches.valid(PACKED)


@functools.cache
def compiled(**changes):
  """Hidden states of both kinds of batch, and the gradients that a cotangent of each gives."""
  model = transformer.build(dataclasses.replace(CONFIG, **changes))

  def compute(params, batch, plain, cotangents):
    fields = plain.prompt, plain.prompt_length, plain.response, plain.response_length
    states, of_packed = jax.vjp(lambda params: model.packed(params, batch.rows, batch.rows.predicting), params)
    expected, of_plain = jax.vjp(lambda params: model.hidden(params, *fields), params)
    return states, expected, of_packed(cotangents[0]), of_plain(cotangents[1])

  params = jax.tree.map(jnp.asarray, token_batches.params(model))
  return functools.partial(jax.jit(compute), params)


def cotangents(batch, plain):
  """The same numbers at each response token, in both layouts."""
  width = CONFIG.width
  other = np.random.default_rng(7).standard_normal((*plain.response.shape, width)).astype(np.float32)
  other = np.where(packed_batches.valid(batch)[..., None], other, 0)
  own = np.zeros((*batch.rows.target.shape, width), np.float32)
  for (row, slot, n), first in np.ndenumerate(batch.rows.first):
    length = int(batch.response_length[row, slot, n])
    if batch.weight[row, slot] > 0:
      own[row, first : first + length] = other.reshape(*batch.response.shape, width)[row, slot, n, :length]
  return own, other


def assert_close(found, expected):
  """Compares all arrays of two trees by the largest number in any of them."""
  scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=2e-6), found, expected)


@pytest.mark.parametrize(
  'changes',
  [
    pytest.param({}, id='llama', marks=pytest.mark.slow),
    pytest.param({'layers': 2} | token_batches.FAMILY, id='family', marks=pytest.mark.slow),
    pytest.param(token_batches.GPT, id='gpt', marks=pytest.mark.slow),
    pytest.param(
      {'layers': 2, 'scan_layers': True, 'remat': 'dots'} | token_batches.FAMILY,
      id='scanned',
      marks=pytest.mark.slow,
    ),
    pytest.param(
      {'layers': 2, 'sliding_window': 9, 'full_attention_every': 2, 'local_rope_theta': 10.0, 'score_cap': 2.0},
      id='windows',
      marks=pytest.mark.slow,
    ),
  ],
)
def test_states_and_gradient_are_those_of_a_batch(changes):
  states, expected, gradient, expected_gradient = compiled(**changes)(PACKED, PLAIN, cotangents(PACKED, PLAIN))
  assert_close(packed_batches.apart(states, PACKED)[VALID], np.asarray(expected)[VALID])
  assert_close(gradient, expected_gradient)


@pytest.mark.slow
@pytest.mark.parametrize('responses', [1, 5])
def test_any_number_of_responses(responses):
  batch, plain = packed_batches.both(packed_batches.examples(6, responses))
  states, expected, gradient, expected_gradient = compiled()(batch, plain, cotangents(batch, plain))
  valid = packed_batches.valid(batch)
  assert_close(packed_batches.apart(states, batch)[valid], np.asarray(expected)[valid])
  assert_close(gradient, expected_gradient)


def test_states_are_those_of_a_batch_and_neighbours_and_padding_change_no_bit_of_them():
  model = transformer.build(CONFIG)
  params = jax.tree.map(jnp.asarray, token_batches.params(model))
  packed = jax.jit(lambda rows: model.packed(params, rows, rows.predicting))
  before = np.asarray(packed(PACKED.rows))
  fields = PLAIN.prompt, PLAIN.prompt_length, PLAIN.response, PLAIN.response_length
  expected = np.asarray(jax.jit(model.hidden)(params, *fields))
  assert_close(packed_batches.apart(before, PACKED)[VALID], expected[VALID])
  rng, rows = np.random.default_rng(0), PACKED.rows
  for slot in (0, 3):
    others = rng.integers(0, CONFIG.vocab_size, rows.tokens.shape).astype(np.int32)
    own = rows.segment == slot
    changed = dataclasses.replace(rows, tokens=np.where(own, rows.tokens, others))
    after = np.asarray(packed(changed))
    read = np.take_along_axis(own, rows.predicting, axis=1)
    assert read.any()
    np.testing.assert_array_equal(before[read], after[read])
    assert not np.array_equal(before[~read], after[~read])


@pytest.mark.parametrize(
  ('window', 'cap', 'groups'), [pytest.param(None, None, 1, marks=pytest.mark.slow), (7, 3.0, 2)]
)
def test_attention_and_its_gradient_are_those_of_a_mask_over_all_positions(window, cap, groups):
  rng, rows = np.random.default_rng(1), PACKED.rows
  count, length = rows.tokens.shape
  query, d_out = rng.standard_normal((2, count, length, 2 * groups, 4))
  key, value = rng.standard_normal((2, count, length, 2, 4))
  seen = (rows.segment[:, :, None] == rows.segment[:, None]) & (rows.segment >= 0)[:, None]
  seen &= np.tri(length, dtype=bool) & ((rows.branch[:, None] == 0) | (rows.branch[:, :, None] == rows.branch[:, None]))
  if window is not None:
    seen &= rows.position[:, :, None] - rows.position[:, None] < window
  seen_by_any = rows.segment >= 0
  scores = attention.Scores('xla', 0.4, cap)

  # The oracle, in float64: softmax over the keys that a query sees, and its derivatives.
  spread = [np.repeat(x, groups, axis=2) for x in (key, value)]
  products = 0.4 * np.einsum('sqhd,skhd->shqk', query, spread[0])
  capped = products if cap is None else cap * np.tanh(products / cap)
  weights = np.exp(
    np.where(seen[:, None], capped, -np.inf) - np.where(seen[:, None], capped, -99).max(-1, keepdims=True)
  )
  weights /= np.where(seen_by_any[:, None, :, None], weights.sum(-1, keepdims=True), 1)
  d_out = np.where(seen_by_any[..., None, None], d_out, 0)
  out = np.einsum('shqk,skhd->sqhd', weights, spread[1])
  d_weights = np.einsum('sqhd,skhd->shqk', d_out, spread[1])
  d_products = weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True)) * 0.4
  d_products *= 1 if cap is None else 1 - np.square(capped / cap)
  d_query = np.einsum('shqk,skhd->sqhd', d_products, spread[0])
  d_key = np.einsum('shqk,sqhd->skhd', d_products, query).reshape(*key.shape[:3], groups, 4).sum(3)
  d_value = np.einsum('shqk,sqhd->skhd', weights, d_out).reshape(*key.shape[:3], groups, 4).sum(3)

  @jax.jit
  def compute(inputs, d_out, rows):
    def attend(query, key, value):
      return packed_attention.attend(query, key, value, packed_attention.Pairs.of(rows), scores, window)

    out, pull = jax.vjp(attend, *inputs)
    return out, *pull(d_out.reshape(out.shape))

  inputs = [x.astype(np.float32) for x in (query, key, value)]
  found = compute(inputs, d_out.astype(np.float32), rows)
  for x, expected in zip(found, (out, d_query, d_key, d_value), strict=True):
    assert_close(np.asarray(x).reshape(expected.shape), expected)


@pytest.mark.slow
def test_eight_devices_compute_what_one_does():
  mesh = parallel_mesh.make_mesh(2, 2, 2)
  batch, plain = packed_batches.both(DATA, unit=4)
  given = cotangents(batch, plain)
  _, states, _, (gradient,) = compiled()(batch, plain, given)
  model = transformer.build(CONFIG, rules.constraint(mesh))
  params = token_batches.params(model)
  params = jax.device_put(params, rules.param_shardings(mesh, params))
  rows, own = jax.device_put((batch.rows, given[0]), rules.batch_sharding(mesh))

  @jax.jit
  def compute(params, rows, cotangent):
    found, pull = jax.vjp(lambda params: model.packed(params, rows, rows.predicting), params)
    return found, *pull(cotangent)

  found, own_gradient = compute(params, rows, own)
  valid = packed_batches.valid(batch)
  assert_close(packed_batches.apart(found, batch)[valid], np.asarray(states)[valid])
  assert_close(jax.device_get(own_gradient), gradient)
