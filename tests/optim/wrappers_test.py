"""Online merging inside the wrappers of optax, in the training step's state, and resumed from it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax import optim
from alignjax.parallel import mesh as mesh_lib
from alignjax.parallel import rules
from alignjax.training import state as state_lib
from tests.optim import runs

ALPHA = 0.25
ADAM = optax.adam(1e-2)
MERGES = {
  'dare': optim.online_dare(0.5, ALPHA),
  'fixed': optim.online_dare(0.5, ALPHA, mask='fixed', rescale='inverse', clip=1.0),
  'ties': optim.online_ties(0.1, ALPHA),
  'every': optim.online_ties(0.1, ALPHA, every=4),
}
SLOW = dict.fromkeys(('dare', 'fixed', 'every'), pytest.mark.slow)


@pytest.mark.parametrize('name', [pytest.param(name, marks=SLOW.get(name, ())) for name in MERGES])
def test_resume_is_bit_exact(name):
  tx = optax.chain(ADAM, MERGES[name])
  gradients, params, tau = (runs.only('layers', x) for x in (runs.STREAM, runs.PARAMS, runs.TAU))
  whole, end = runs.run(tx, gradients, params, tau)
  half, state = runs.run(tx, gradients[:3], params, tau)
  saved = jax.tree.map(lambda x: jnp.asarray(np.array(x)), state)  # by value, as a checkpoint would
  rest, resumed = runs.run(tx, gradients[3:], half[-1], tau, saved)
  runs.assert_equal(rest[-1], whole[-1])
  runs.assert_equal(resumed, end)


@pytest.mark.slow  # test_any_base_optimizer_will_do composes in the same way
@pytest.mark.parametrize(
  'merge', [pytest.param(optim.online_dare(1.0, ALPHA), marks=pytest.mark.slow), MERGES['ties']], ids=['dare', 'ties']
)
def test_masked_leaves_the_rest_to_the_base_optimizer(merge):
  mask = {'layers': {'up': {'kernel': True}}, 'final_norm': {'scale': False}}
  # Random choices depend on a tensor's number among those that are not masked: all is kept, or no magnitudes are equal.
  adam = optax.adam(1e-2, eps=0.1)
  inside = optax.masked(merge, mask, mask_compatible_extra_args=True)
  masked, _ = runs.run(optax.chain(adam, inside))
  full, _ = runs.run(optax.chain(adam, merge))
  plain, _ = runs.run(adam)
  runs.assert_equal(masked[-1]['final_norm'], plain[-1]['final_norm'])
  runs.assert_equal(masked[-1]['layers'], full[-1]['layers'])
  assert runs.differs(full[-1]['final_norm'], plain[-1]['final_norm'])
  with pytest.raises(ValueError, match='mask_compatible_extra_args=True'):
    runs.run(optax.masked(merge, mask))


@pytest.mark.slow
def test_apply_if_finite_skips_the_merge_of_a_step_it_rejects():
  for merge in (optim.online_dare(0.5, ALPHA), optim.online_ties(0.1, ALPHA, every=2)):
    tx = optax.chain(ADAM, merge)
    bad = jax.tree.map(lambda x: x * jnp.nan, runs.STREAM[0])
    path, state = runs.run(optax.apply_if_finite(tx, 3), [*runs.STREAM[:2], bad, *runs.STREAM[2:]])
    expected, plain = runs.run(tx)
    runs.assert_equal(path[2], path[1])
    runs.assert_equal(path[-1], expected[-1])
    runs.assert_equal(state.inner_state, plain)


@pytest.mark.slow  # online_merging_test.py counts the merges of multi steps
def test_multi_steps_counts_merges_of_ties():
  tx = optax.MultiSteps(optax.chain(ADAM, optim.online_ties(0.5, ALPHA, every=2)), 3).gradient_transformation()
  gradients, params, tau = (runs.only('final_norm', x) for x in (runs.STREAM, runs.PARAMS, runs.TAU))
  _, state = runs.run(tx, gradients, params, tau)
  merge = state.inner_opt_state[1]
  assert (int(state.gradient_step), int(merge.count), int(merge.step)) == (2, 1, 0)


@pytest.mark.slow
@pytest.mark.parametrize('build', [optim.online_dare, optim.online_ties])
def test_inject_hyperparams_traces_alpha_and_reserve(build):
  """A schedule of alpha, and a reserve that is a number of the state, do what constants do."""
  injected = optax.inject_hyperparams(build, static_args=('every',))
  path, _ = runs.run(optax.chain(ADAM, injected(0.5, ALPHA)))
  expected, _ = runs.run(optax.chain(ADAM, build(0.5, ALPHA)))
  for params, values in zip(path, expected, strict=True):
    runs.assert_close(params, values, rtol=0, atol=1e-7)
  scheduled, _ = runs.run(optax.chain(ADAM, injected(0.5, lambda count: jnp.where(count < 2, 0.0, ALPHA))))
  runs.assert_close(scheduled[1], runs.run(optax.chain(ADAM, build(0.5, 0.0)))[0][1], rtol=0, atol=1e-7)
  assert runs.differs(scheduled[2], runs.run(optax.chain(ADAM, build(0.5, 0.0)))[0][2])
  with pytest.raises(ValueError, match=r"static_args=\('every',\)"):
    optax.inject_hyperparams(build)(0.5, ALPHA).init(runs.PARAMS)


@pytest.mark.slow  # top_fraction_test.py changes the share
def test_a_traced_reserve_that_changes_finds_the_threshold_of_tau_anew():
  build = optax.inject_hyperparams(optim.online_ties, static_args=('every',))
  update, tau = (runs.only('layers', x) for x in (runs.STREAM[0], runs.TAU))
  out, _ = runs.moved(build(lambda count: jnp.where(count < 1, 0.1, 0.5), 1.0), update, tau, steps=2)
  shares = [np.count_nonzero(x['layers']['up']['kernel']) / 384 for x in out]
  assert shares == [38 / 384, 192 / 384]


@pytest.mark.parametrize('name', [pytest.param(name, marks=SLOW.get(name, ())) for name in MERGES])
def test_a_state_can_be_donated_and_has_a_place_on_a_mesh(name):
  tx = optax.chain(ADAM, MERGES[name])
  gradient, tau, params = (runs.only('layers', x) for x in (runs.STREAM[0], runs.TAU, runs.PARAMS))
  params = jax.tree.map(jnp.copy, params)
  state = state_lib.TrainState.create(params, tx, jax.random.key(0))
  mesh = mesh_lib.make_mesh(2, 2, 2)
  places = state_lib.shardings(mesh, state)
  of_params = rules.param_shardings(mesh, params)
  merge = places.opt_state[1]
  assert merge.residual == of_params
  assert merge.count == rules.replicated(mesh)
  placed = jax.device_put(state.opt_state, places.opt_state)
  assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(placed[1].cuts))
  donated = jax.jit(lambda s: tx.update(gradient, s.opt_state, s.params, reference_delta=tau), donate_argnums=0)
  updates, _ = donated(state)
  assert all(np.isfinite(x).all() for x in runs.leaves(updates))


@pytest.mark.parametrize(
  'base',
  [
    pytest.param(optax.adafactor(1e-2), id='adafactor'),
    pytest.param(optax.lion(1e-2), id='lion', marks=pytest.mark.slow),
    pytest.param(optax.contrib.muon(1e-2), id='muon', marks=pytest.mark.slow),
    pytest.param(optax.sgd(optax.linear_schedule(1e-2, 0.0, 3)), id='schedule'),
  ],
)
def test_any_base_optimizer_will_do(base):
  path, _ = runs.run(optax.chain(base, optim.online_dare(1.0, ALPHA)), runs.STREAM[:1])
  updates, _ = jax.jit(base.update)(runs.STREAM[0], base.init(runs.PARAMS), runs.PARAMS)
  expected = jax.tree.map(lambda p, u, t: p + (1 - ALPHA) * u + ALPHA * t, runs.PARAMS, updates, runs.TAU)
  runs.assert_close(path[0], expected, rtol=0, atol=3e-7)


@pytest.mark.slow
def test_bfloat16_parameters_updates_and_tau():
  params, tau = (jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree) for tree in (runs.PARAMS, runs.TAU))
  gradients = [jax.tree.map(lambda x: x.astype(jnp.bfloat16), gradient) for gradient in runs.STREAM]
  for merge in MERGES.values():
    path, state = runs.run(optax.chain(ADAM, merge), gradients, params, tau)
    assert {x.dtype.name for x in jax.tree.leaves(path[-1])} == {'bfloat16'}
    assert {x.dtype.name for x in jax.tree.leaves(state[1].residual)} == {'float32'}
  plain, _ = runs.run(ADAM, gradients, params, tau)
  runs.assert_equal(runs.run(optax.chain(ADAM, optim.online_dare(1.0, 0.0)), gradients, params, tau)[0], plain)
