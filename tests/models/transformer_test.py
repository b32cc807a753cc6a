"""The decoder against a float64 oracle, against itself on plain sequences, and under changes that must not matter."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import numerics
from alignjax.models import block, layers, transformer
from alignjax.parallel import mesh as mesh_lib
from alignjax.parallel import rules
from tests.models import llama_oracle, token_batches
from tests.models.token_batches import FAMILY, GPT

CONFIG = dataclasses.replace(token_batches.CONFIG, remat='none')
P, N, R = 6, 2, 5


@functools.cache
def _model(**changes):
  return transformer.build(dataclasses.replace(CONFIG, **changes))


@functools.cache
def _params(**changes):
  return token_batches.params(_model(**changes))


def _fields(batch):
  return batch.prompt, batch.prompt_length, batch.response, batch.response_length


def _loss_and_states(hidden, params, batch, cotangent):
  """sum(cotangent * hidden) over valid entries, and the states themselves."""
  states = hidden(params, *_fields(batch))
  valid = numerics.length_mask(batch.response_length, batch.response.shape[2])[..., None]
  return jnp.sum(jnp.where(valid, cotangent * states.astype(jnp.float32), 0.0)), states


@functools.cache
def _compiled(**changes):
  return jax.jit(jax.grad(functools.partial(_loss_and_states, _model(**changes).hidden), has_aux=True))


def _compute(params, batch, cotangent=None, **changes):
  """Valid hidden states in float32, and the gradient of `_loss_and_states`, as numpy arrays."""
  cotangent = _cotangent(batch) if cotangent is None else cotangent
  gradient, states = jax.device_get(_compiled(**changes)(params, batch, cotangent))
  assert states.dtype == jnp.dtype(changes.get('compute_dtype', 'float32'))
  assert np.all(np.isfinite(states.astype(np.float32))), 'padding entries must be finite'
  return states.astype(np.float32)[token_batches.valid(batch)], gradient


def _cotangent(batch):
  return np.random.default_rng(7).standard_normal((*batch.response.shape, CONFIG.width)).astype(np.float32)


def _relative_difference(a, b):
  """Of two trees as vectors."""
  return _norm(jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), a, b)) / _norm(b)


def _norm(tree):
  return np.sqrt(sum(np.sum(np.square(np.asarray(x, np.float64))) for x in jax.tree.leaves(tree)))


@pytest.mark.parametrize('tied_embeddings', [True, False])
def test_hidden_and_head_are_those_of_the_float64_oracle(tied_embeddings):
  config, params = (
    dataclasses.replace(CONFIG, tied_embeddings=tied_embeddings),
    _params(tied_embeddings=tied_embeddings),
  )
  model = _model(tied_embeddings=tied_embeddings)
  batch = token_batches.batch(0, P, N, R)
  states = np.asarray(jax.jit(model.hidden)(params, *_fields(batch)))
  expected = llama_oracle.response_states(params, config, batch)
  valid = token_batches.valid(batch)
  np.testing.assert_allclose(states[valid], expected[valid], atol=1e-5)
  logits = states[1, 0, 0] @ np.asarray(model.head(params).kernel)
  prompt = batch.prompt[1, : batch.prompt_length[1]]
  np.testing.assert_allclose(logits, llama_oracle.logits(params, config, prompt)[-1], atol=1e-4)


def test_gradient_is_that_of_finite_differences_of_the_oracle():
  params, batch = _params(), token_batches.batch(1, P, N, R)
  cotangent = _cotangent(batch) * token_batches.valid(batch)[..., None]
  _, gradient = _compute(params, batch, cotangent)
  rng = np.random.default_rng(3)
  for _ in range(2):
    direction = jax.tree.map(lambda x: rng.standard_normal(x.shape), params)
    losses = []
    for step in (1e-5, -1e-5):
      moved = jax.tree.map(lambda x, d, step=step: np.asarray(x, np.float64) + step * d, params, direction)
      losses.append(np.sum(cotangent * llama_oracle.response_states(moved, CONFIG, batch)))
    along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g.astype(np.float64) * d), gradient, direction)))
    tolerance = 1e-6 * _norm(gradient) * _norm(direction)
    np.testing.assert_allclose(along, (losses[0] - losses[1]) / 2e-5, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
  'changes',
  [
    pytest.param({}, id='llama'),
    pytest.param(
      FAMILY, id='family', marks=pytest.mark.slow
    ),  # its windows: attention_test.py; its layers: golden_test.py
  ],
)
def test_sharing_the_prompt_changes_neither_value_nor_gradient(changes):
  """With one token as the prompt and all others as one response, `hidden` is a plain causal forward."""
  params, batch = _params(**changes), token_batches.batch(2, P, N, R)
  plain, where = token_batches.concatenated(batch)
  states, gradient = _compute(params, batch, **changes)
  cotangent = np.zeros((*plain.response.shape, CONFIG.width), np.float32)
  cotangent[where] = _cotangent(batch)[token_batches.valid(batch)]
  plain_gradient, plain_states = _compiled(**changes)(params, plain, cotangent)
  np.testing.assert_allclose(states, np.asarray(plain_states)[where], atol=1e-5)
  assert _relative_difference(gradient, plain_gradient) < 1e-6


def test_what_stands_at_padding_changes_no_bit():
  params, batch = _params(), token_batches.batch(3, P, N, R)
  other = token_batches.with_other_padding(batch)
  assert (other.prompt != batch.prompt).any()
  assert (other.response != batch.response).any()
  jax.tree.map(np.testing.assert_array_equal, _compute(params, batch), _compute(params, other))


@pytest.mark.slow  # step_test.py pads the batch of a step, and golden_test.py the prompts and responses of every family
def test_more_padding_changes_nothing():
  params, batch = _params(), token_batches.batch(4, P, N, R)
  more = [(0, 0), (0, 0), (0, 4)]
  wide = dataclasses.replace(
    batch,
    prompt=np.pad(batch.prompt, [(0, 0), (0, 3)]),
    response=np.pad(batch.response, more, constant_values=5),
  )
  states, gradient = _compute(params, batch)
  wide_states, wide_gradient = _compute(params, wide, np.pad(_cotangent(batch), [*more, (0, 0)]))
  np.testing.assert_allclose(wide_states, states, atol=1e-5)
  assert _relative_difference(wide_gradient, gradient) < 1e-6


@pytest.mark.parametrize('window', [None, pytest.param(3, marks=pytest.mark.slow)])  # attention_test.py has windows
def test_an_entry_depends_on_exactly_the_tokens_before_it(window):
  """Tokens are unique within a row, so nonzero rows of the embedding gradient identify the tokens an entry depends on.

  A window widens with each layer, so one layer is used.
  """
  changes = {} if window is None else {'sliding_window': window, 'layers': 1}
  params, batch = _params(layers=1) if changes else _params(), token_batches.distinct(4, P, N, R)
  for row, sample, entry in [(0, 0, 0), (0, 1, 2), (1, 0, 1), (3, 1, 4)]:
    cotangent = np.zeros((*batch.response.shape, CONFIG.width), np.float32)
    cotangent[row, sample, entry] = 1 + np.arange(CONFIG.width)
    _, gradient = _compute(params, batch, cotangent, **changes)
    seen = set(np.flatnonzero(np.abs(gradient['embed']['embedding']).sum(axis=1) > 0))
    prompt = batch.prompt[row, : batch.prompt_length[row]]
    before = [*prompt, *batch.response[row, sample, :entry]]
    assert seen == set(before if window is None else before[-window:])


@pytest.mark.slow  # the test below has scanned and unrolled layers
@pytest.mark.parametrize(
  ('remat', 'scan_layers'),
  [
    ('dots', True),
    pytest.param('full', True, marks=pytest.mark.slow),
    pytest.param('none', False, marks=pytest.mark.slow),
    pytest.param('dots', False, marks=pytest.mark.slow),
    pytest.param('full', False, marks=pytest.mark.slow),
  ],
)
def test_settings_of_computation_change_nothing(remat, scan_layers):
  params, batch = _params(), token_batches.batch(5, P, N, R)
  states, gradient = _compute(params, batch)
  other_states, other_gradient = _compute(params, batch, scan_layers=scan_layers, remat=remat)
  np.testing.assert_allclose(other_states, states, atol=1e-5)
  assert _relative_difference(other_gradient, gradient) < 1e-6


def test_scanned_layers_take_turns_with_windows_as_unrolled_ones_do():
  params, batch = _params(**FAMILY), token_batches.batch(5, P, N, R)
  states = [jax.jit(_model(**FAMILY, scan_layers=scan).hidden)(params, *_fields(batch)) for scan in (True, False)]
  np.testing.assert_allclose(*(np.asarray(x)[token_batches.valid(batch)] for x in states), atol=1e-5)
  assert dataclasses.replace(CONFIG, **FAMILY).windows == (4, None)
  assert _model(**FAMILY).head(params).soft_cap == 2.0


@pytest.mark.slow  # golden_test.py compares scanned layers, and decoding, with transformers
def test_scanned_layers_without_rotary_positions_are_unrolled_ones():
  params, batch = _params(), token_batches.batch(5, P, N, R)
  models = [_model(unrotated_every=2, scan_layers=scan) for scan in (True, False)]
  scanned, unrolled = (
    np.asarray(jax.jit(m.hidden)(params, *_fields(batch)))[token_batches.valid(batch)] for m in models
  )
  np.testing.assert_allclose(scanned, unrolled, atol=1e-5)
  plain = np.asarray(jax.jit(_model().hidden)(params, *_fields(batch)))[token_batches.valid(batch)]
  assert np.abs(plain - unrolled).max() > 1e-2


def test_longrope_chooses_its_factors_by_the_length_of_padded_sequences(monkeypatch):
  params, batch, lengths = _params(), token_batches.batch(5, P, N, R), []
  at = layers.LongRopeScaling.at
  monkeypatch.setattr(layers.LongRopeScaling, 'at', lambda self, length: lengths.append(length) or at(self, length))
  factors = (1.0,) * (CONFIG.rotary_width // 2)
  model = _model(rope_scaling=layers.LongRopeScaling(factors, factors, original_positions=8, extension=1.0))
  jax.eval_shape(model.hidden, params, *_fields(batch))
  prefill = functools.partial(model.prefill, samples=N, max_new_tokens=R)
  cache = jax.eval_shape(prefill, params, batch.prompt, batch.prompt_length)
  jax.eval_shape(model.decode, params, cache, batch.response[:, :, 0])
  assert lengths == [P + R] * 3


@pytest.mark.parametrize('scan_layers', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_remat_keeps_less_for_the_backward_pass(scan_layers):
  params, batch = _params(), token_batches.batch(5, P, N, R)
  kept = []
  for remat in ('none', 'dots', 'full'):
    model = _model(remat=remat, scan_layers=scan_layers)
    backward = jax.eval_shape(lambda p, model=model: jax.vjp(lambda p: model.hidden(p, *_fields(batch)), p)[1], params)
    kept.append(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(backward)))
  assert kept[0] > 1.3 * kept[1] > 1.3 * 1.3 * kept[2]


def test_remat_keeps_of_experts_only_the_logits_of_the_router():
  batch, kept = token_batches.batch(5, P, N, R), {}
  for experts in (2, 64):
    model = _model(experts=experts, experts_per_token=2, remat='dots')
    params = jax.eval_shape(model.init, jax.random.key(0))
    backward = jax.eval_shape(lambda p, model=model: jax.vjp(lambda p: model.hidden(p, *_fields(batch)), p)[1], params)
    weights, kept_now = (sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) for tree in (params, backward))
    kept[experts] = kept_now - weights
  logits = CONFIG.layers * len(batch.prompt) * (P + N * R) * 4
  assert kept[64] - kept[2] <= (64 - 2) * logits


@pytest.mark.slow  # test_every_part_computes_in_the_compute_dtype has the types
def test_bfloat16_is_close_to_float32():
  params, batch = _params(), token_batches.batch(6, P, N, R)
  states, gradient = _compute(params, batch)
  rounded_states, rounded_gradient = _compute(params, batch, compute_dtype='bfloat16')
  assert 1e-4 < _relative_difference(rounded_states, states) < 0.02
  assert {x.dtype for x in jax.tree.leaves(rounded_gradient)} == {np.dtype('float32')}
  assert 1e-4 < _relative_difference(rounded_gradient, gradient) < 0.03


@pytest.mark.parametrize('changes', [FAMILY, GPT], ids=['family', 'gpt'])
def test_every_part_computes_in_the_compute_dtype(changes):
  model, batch = _model(compute_dtype='bfloat16', **changes), token_batches.batch(8, P, N, R)
  params = _params(**changes)
  prefill = functools.partial(model.prefill, samples=N, max_new_tokens=R)
  cache = jax.eval_shape(prefill, params, batch.prompt, batch.prompt_length)
  _, state = jax.eval_shape(model.decode, params, cache, batch.response[:, :, 0])
  assert jax.eval_shape(model.hidden, params, *_fields(batch)).dtype == state.dtype == jnp.bfloat16


@pytest.mark.slow  # golden_test.py decodes, too
@pytest.mark.parametrize(
  ('compute_dtype', 'tolerance'),
  [('float32', 1e-5), pytest.param('bfloat16', 0.1, marks=pytest.mark.slow)],  # its dtypes are tested above
)
def test_decode_mirrors_hidden_entry_by_entry(compute_dtype, tolerance):
  params, batch = _params(), token_batches.batch(8, P, N, R)
  model = _model(compute_dtype=compute_dtype)
  states = np.asarray(jax.jit(model.hidden)(params, *_fields(batch)), np.float32)
  prefill = jax.jit(functools.partial(model.prefill, samples=N, max_new_tokens=R))
  cache, decode = prefill(params, batch.prompt, batch.prompt_length), jax.jit(model.decode)
  last = batch.prompt[np.arange(len(batch.prompt)), batch.prompt_length - 1]
  token = np.broadcast_to(last[:, None], batch.response.shape[:2])
  for t in range(R):
    cache, state = decode(params, cache, token)
    assert state.dtype == compute_dtype
    valid = t < batch.response_length
    np.testing.assert_allclose(np.asarray(state, np.float32)[valid], states[:, :, t][valid], atol=tolerance)
    token = batch.response[:, :, t]


@pytest.mark.slow  # tests/training/step_test.py takes the gradient of a step on a mesh
def test_eight_devices_compute_what_one_does():
  mesh = mesh_lib.make_mesh(data=4, fsdp=1, tensor=2)
  batch, params = token_batches.batch(9, P, N, R), _params(**FAMILY)
  model = transformer.build(dataclasses.replace(CONFIG, **FAMILY), rules.constraint(mesh))
  sharded_batch = jax.device_put(batch, rules.batch_sharding(mesh))
  sharded_params = jax.device_put(params, rules.param_shardings(mesh, params))
  compute = jax.jit(jax.grad(functools.partial(_loss_and_states, model.hidden), has_aux=True))
  gradient, states = compute(sharded_params, sharded_batch, _cotangent(batch))
  assert states.sharding.shard_shape(states.shape)[0] == 1, 'prompts must stay split over the data axis'
  expected_states, expected_gradient = _compute(params, batch, **FAMILY)
  np.testing.assert_allclose(np.asarray(states)[token_batches.valid(batch)], expected_states, atol=1e-5)
  assert _relative_difference(gradient, expected_gradient) < 1e-6


@pytest.mark.slow  # golden_test.py has their places on a mesh
def test_experts_on_eight_devices_compute_what_they_do_on_one():
  changes = {'experts': 4, 'experts_per_token': 2, 'scan_layers': False, 'remat': 'none'}
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  batch, params = token_batches.batch(9, P, N, R), _params(**changes)
  shardings = rules.param_shardings(mesh, params)
  assert params['layers']['mlp']['gate'].shape == (CONFIG.layers, 4, CONFIG.width, CONFIG.mlp_width)
  assert shardings['layers']['mlp']['gate'].spec[:2] == (None, 'tensor')
  model = transformer.build(dataclasses.replace(CONFIG, **changes), rules.constraint(mesh))
  sharded = jax.device_put(params, shardings), jax.device_put(batch, rules.batch_sharding(mesh))
  states = np.asarray(jax.jit(model.hidden)(sharded[0], *_fields(sharded[1])))
  expected = np.asarray(jax.jit(_model(**changes).hidden)(params, *_fields(batch)))
  np.testing.assert_allclose(states[token_batches.valid(batch)], expected[token_batches.valid(batch)], atol=1e-5)


def test_constrain_sees_the_embedding_table_the_embeddings_and_every_block():
  calls = []

  def constrain(x, axes):
    calls.append((type(x), axes) if axes is None else (x.shape, axes))
    return x

  batch = token_batches.batch(0, P, N, R)
  model = transformer.build(dataclasses.replace(CONFIG, scan_layers=False, remat='none'), constrain)
  jax.eval_shape(model.hidden, _params(), *_fields(batch))
  rows, axes = len(batch.prompt), ('batch', None, None)
  joint = ((rows, P + N * R, CONFIG.width), axes)
  tokens = (rows, P + N * R)
  embedding = [
    ((CONFIG.vocab_size, CONFIG.width), ('vocab', 'width')),
    (tokens, ('replica', None)),
    ((*tokens, CONFIG.width), ('replica', None, 'width')),
    joint,
  ]
  layer, last = (block.Block, None), ((rows, N * R, CONFIG.width), axes)
  assert calls == [*embedding, *[layer, joint] * (CONFIG.layers - 1), layer, last]


def test_the_trunk_computes_each_prompt_once_and_no_prompt_in_the_last_layer():
  prompt, samples, response, rows = 64, 4, 8, 2
  batch = token_batches.batch(0, prompt, samples, response, prompts=rows)
  cost = jax.jit(_model(scan_layers=False).hidden).lower(_params(), *_fields(batch)).cost_analysis()
  c, own = CONFIG, samples * response
  query = c.heads * c.head_width
  to_keys = 2 * c.width * c.kv_heads * c.head_width
  other = 2 * c.width * query + 3 * c.width * c.mlp_width
  of_weights = c.layers * (prompt + own) * to_keys + ((c.layers - 1) * prompt + c.layers * own) * other
  of_attention = 2 * query * ((c.layers - 1) * prompt**2 + c.layers * own * (prompt + response))
  expected = 2 * rows * (of_weights + of_attention)
  assert 1 < cost['flops'] / expected < 1.25  # the rest: norms, softmax, rotary positions


def test_sequences_beyond_the_positions_are_refused():
  batch = token_batches.batch(0, P, N, R)
  jax.eval_shape(_model(max_positions=P + R - 1).hidden, _params(), *_fields(batch))
  model = _model(max_positions=P + R - 2)
  with pytest.raises(ValueError, match='prompts of 6 tokens and responses of 5 tokens exceed max_positions=9'):
    model.hidden(_params(), *_fields(batch))
  with pytest.raises(ValueError, match='max_positions=9'):
    model.prefill(_params(), batch.prompt, batch.prompt_length, samples=N, max_new_tokens=R)
