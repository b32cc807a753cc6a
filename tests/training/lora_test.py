"""Training adapters: the gradient by the chain rule, the base as reference, and what the state does not hold."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax import objectives
from alignjax.models import lora, quantization, transformer
from alignjax.parallel import mesh as mesh_lib
from alignjax.training import placement, references
from alignjax.training import state as state_lib
from alignjax.training import step as step_lib
from alignjax.training.policy import Policy
from tests import fixtures
from tests.models import token_batches

MODEL = transformer.build(dataclasses.replace(token_batches.CONFIG, remat='none', layers=1, scan_layers=False))
LORA = lora.LoRA(rank=3, alpha=5.0, targets='query+output+mlp')
POLICY = Policy(MODEL, LORA)
BATCH = fixtures.preference_batch(seed=1, prompts=8, vocab=token_batches.CONFIG.vocab_size)
OBJECTIVE = objectives.dpo(beta=0.3) + objectives.tdpo()
TX = optax.sgd(1.0)
# Compiling takes the time of these tests, so they share their programs.
ROWWISE = jax.jit(step_lib.build_train_step(POLICY, OBJECTIVE, TX, chunk=28))
WHOLE = jax.jit(step_lib.build_train_step(Policy(MODEL), OBJECTIVE, TX))


@pytest.fixture(scope='module')
def base():
  return quantization.quantize(jax.tree.map(jnp.asarray, token_batches.params(MODEL)), 'nf4')


@pytest.fixture(scope='module')
def adapters(base):
  """With neither factor 0."""
  rng = np.random.default_rng(3)
  like = jax.eval_shape(lambda key: lora.init(key, base, LORA), jax.random.key(0))
  return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32), like)


def _start(params, tx=TX):
  return state_lib.TrainState.create(params, tx, jax.random.key(0))


def _gradient(step, params, frozen):
  """Loss and gradient as the step sees them: with learning rate 1 the update is the gradient."""
  after, metrics = step(_start(params), frozen, BATCH)
  return metrics['loss'], jax.tree.map(lambda before, now: np.asarray(before) - np.asarray(now), params, after.params)


@pytest.mark.slow  # models/lora_test.py compares the merged model
def test_the_gradient_is_that_of_the_merged_model_by_the_chain_rule(base, adapters):
  """W' = W + s A B: dA = s dW' B^T and dB = s A^T dW'."""
  reference = lora.merge(base, {}, LORA)
  expected, dense = _gradient(WHOLE, lora.merge(base, adapters, LORA), state_lib.Frozen(references.Live(reference)))
  loss, found = _gradient(ROWWISE, adapters, state_lib.Frozen(references.Base(), base=base))
  np.testing.assert_allclose(loss, expected, rtol=2e-6)
  for part, block in found['layers'].items():
    for name, factors in block.items():
      d_kernel = dense['layers'][part][name]['kernel']
      a, b = (np.asarray(adapters['layers'][part][name][factor]) for factor in lora.FACTORS)
      by_hand = {'lora_a': d_kernel @ b.transpose(0, 2, 1), 'lora_b': a.transpose(0, 2, 1) @ d_kernel}
      for factor, value in by_hand.items():
        value = 5 / 3 * value
        assert np.linalg.norm(factors[factor] - value) < 2e-5 * np.linalg.norm(value), (part, name, factor)


@pytest.mark.slow  # tests/run/preparation_test.py compares them, too
def test_the_base_as_reference_equals_a_copy_of_it(base):
  frozen = state_lib.Frozen(references.Base(), base=base)
  copy = dataclasses.replace(frozen, reference=references.Live(lora.merge(base, {}, LORA)))
  losses = []
  for reference in (frozen, copy):
    state = _start(lora.init(jax.random.key(0), base, LORA))
    for number in range(3):
      state, metrics = ROWWISE(state, reference, BATCH)
      losses.append(metrics['loss'])
      assert (metrics['reward_margin'] == 0) == (number == 0)
  np.testing.assert_allclose(losses[:3], losses[3:], rtol=1e-5)
  assert losses[0] == pytest.approx(2 * np.log(2), rel=1e-6)
  assert len({float(loss) for loss in losses[:3]}) == 3


@pytest.mark.slow  # preparation_test.py loads another reference, and step_test.py counts one in the step
def test_another_reference_counts_where_it_is_given(base, adapters):
  other = jax.tree.map(lambda leaf: leaf * 1.3, lora.merge(base, {}, LORA))

  def loss(step, params, frozen):
    return jax.jit(lambda *inputs: step(*inputs)[1]['loss'])(_start(params), frozen, BATCH)  # compiles no gradient

  found = loss(ROWWISE, adapters, state_lib.Frozen(references.Live(other), base=base))
  expected = loss(WHOLE, lora.merge(base, adapters, LORA), state_lib.Frozen(references.Live(other)))
  unlike, _ = _gradient(ROWWISE, adapters, state_lib.Frozen(references.Base(), base=base))
  np.testing.assert_allclose(found, expected, rtol=2e-6)
  assert abs(found - unlike) > 1e-2


def test_the_state_holds_nothing_of_the_base(adapters):
  state = _start(adapters, optax.adam(1e-3))
  sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (state.params, state.opt_state)]
  assert sizes == [3 * 200, 2 * sizes[0] + 1]  # rank x (inputs + outputs) of 5 kernels; two moments


def test_adapters_without_a_base_are_refused_and_so_is_a_base_without_adapters(base):
  adapters = state_lib.Frozen(references.Live(base)), POLICY, 'Frozen.base is None: pass the parameters'
  alone = state_lib.Frozen(references.Base(), base=base), Policy(MODEL), 'the policy has no adapters'
  nothing = state_lib.Frozen(references.Base()), Policy(MODEL), 'the reference is the base of the adapters'
  for frozen, policy, message in (adapters, alone, nothing):
    with pytest.raises(ValueError, match=message):
      step_lib.build_eval_step(policy, objectives.dpo())({}, frozen, BATCH)


def test_adapters_are_split_as_their_products_ask_for_it(base):
  mesh = mesh_lib.make_mesh(1, 2, 4)
  like = jax.eval_shape(lambda key: lora.init(key, base, LORA), jax.random.key(0))
  state = placement.abstract_state(mesh, like, optax.adam(1e-3), jax.random.key(0))
  for tree in (state.params, state.opt_state[0].mu):
    specs = {
      f'{name}.{factor}': tuple(leaf.sharding.spec)
      for block in tree['layers'].values()
      for name, factors in block.items()
      for factor, leaf in factors.items()
    }
    assert specs['query.lora_a'] == specs['output.lora_b'] == specs['down.lora_b'] == (None, None, None)
    assert specs['query.lora_b'] == specs['up.lora_b'] == specs['gate.lora_b'] == (None, None, 'tensor')
    assert specs['output.lora_a'] == specs['down.lora_a'] == (None, 'tensor', None)
