"""What the algorithms promise, each promise a test; refusals."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax import optim
from tests.optim import runs
from tests.oracles import online_merging as oracle

RATE, ALPHA = 1e-2, 0.25
ADAM = optax.adam(RATE)
# In the stacked leaf, each layer is a tensor: the oracle sees tensors.
TENSORS = [
  ('layers', 'up', 'kernel', 0),
  ('layers', 'up', 'kernel', 1),
  ('final_norm', 'scale', ...),
]
# The stack alone, where a property of each tensor is costly to compile: the merge of a tensor ignores the others.
STACK = {
  'gradients': runs.only('layers', runs.STREAM),
  'params': runs.only('layers', runs.PARAMS),
  'tau': runs.only('layers', runs.TAU),
}


def tensor(tree, path):
  *keys, index = path
  for key in keys:
    tree = tree[key]
  return np.asarray(tree, np.float64)[index]


def against_oracle(tx, *, reserve=None, merge=oracle.sum_, every=1, rtol=1e-5):
  # With the usual epsilon all entries of the first update are of one magnitude, and which are largest is chance.
  path, _ = runs.run(optax.chain(optax.adam(RATE, eps=0.1), tx), **STACK)
  for place in TENSORS[:2]:
    gradients = [tensor(gradient, place) for gradient in runs.STREAM]
    theta, tau = tensor(runs.PARAMS, place), tensor(runs.TAU, place)
    settings = {'rate': RATE, 'epsilon': 0.1, 'reserve': reserve, 'merge': merge, 'every': every}
    expected = oracle.trajectory(theta, gradients, tau, ALPHA, **settings)
    for params, values in zip(path, expected, strict=True):
      np.testing.assert_allclose(tensor(params, place), values, rtol=rtol, atol=3e-7)


QUICK = {('weighted', 0.3, 3)}


@pytest.mark.parametrize(
  ('elect', 'reserve', 'every'),
  [
    pytest.param(*choice, marks=() if choice in QUICK else pytest.mark.slow)
    for choice in itertools.product(('weighted', 'raw'), (1.0, 0.3), (1, 3))
  ],
)
def test_ties_follows_the_algorithms(elect, reserve, every):
  against_oracle(
    optim.online_ties(reserve, ALPHA, elect=elect, every=every),
    reserve=lambda x: oracle.top(x, reserve),
    merge=oracle.CONSENSUS[elect],
    every=every,
  )


@pytest.mark.parametrize('every', [pytest.param(1, marks=pytest.mark.slow), 3])
def test_dare_without_masks_follows_the_algorithms(every):
  against_oracle(optim.online_dare(1.0, ALPHA, every=every), every=every)


def test_01_dare_of_everything_without_tau_is_adamw_bit_for_bit():
  plain, _ = runs.run(optax.adamw(RATE))
  merged, state = runs.run(
    optax.chain(
      optax.scale_by_adam(),
      optim.online_dare(1.0, 0.0),
      optax.add_decayed_weights(1e-4),
      optax.scale_by_learning_rate(RATE),
    )
  )
  runs.assert_equal(merged, plain)
  assert not any(x.any() for x in runs.leaves(state[1].residual))
  after_rate, _ = runs.run(optax.chain(ADAM, optim.online_dare(1.0, 0.0)))
  runs.assert_equal(after_rate, runs.run(ADAM)[0])


@pytest.mark.slow  # the test above has dare, and the oracle ties
def test_02_weighted_ties_of_everything_without_tau_is_adam_and_raw_is_not():
  plain, _ = runs.run(ADAM, **STACK)
  runs.assert_equal(runs.run(optax.chain(ADAM, optim.online_ties(1.0, 0.0)), **STACK)[0], plain)
  raw = optax.chain(ADAM, optim.online_ties(1.0, 0.0, elect='raw'))
  assert runs.differs(runs.run(raw, **STACK)[0], plain)
  nothing = jax.tree.map(jnp.zeros_like, STACK['tau'])
  runs.assert_equal(runs.run(raw, **{**STACK, 'tau': nothing})[0], plain)


def test_03_dare_of_everything_adds_up():
  """theta_N - theta_0 = (1 - alpha) sum D + N alpha tau, on a fixed stream of gradients."""
  plain, _ = runs.run(ADAM)
  merged, _ = runs.run(optax.chain(ADAM, optim.online_dare(1.0, ALPHA)))
  expected = jax.tree.map(
    lambda start, end, tau: start + (1 - ALPHA) * (end - start) + len(runs.STREAM) * ALPHA * tau,
    *(jax.tree.map(lambda x: np.asarray(x, np.float64), tree) for tree in (runs.PARAMS, plain[-1], runs.TAU)),
  )
  runs.assert_close(merged[-1], expected, rtol=0, atol=4e-7)


def test_04_without_tau_alpha_shrinks_the_learning_rate():
  nothing = jax.tree.map(jnp.zeros_like, runs.TAU)
  merged, _ = runs.run(optax.chain(ADAM, optim.online_dare(1.0, ALPHA)), tau=nothing)
  runs.assert_close(merged, runs.run(optax.adam(RATE * (1 - ALPHA)))[0], rtol=0, atol=3e-7)


@pytest.mark.slow  # test_03 has alpha between 0 and 1
@pytest.mark.parametrize(
  'merge',
  [pytest.param(optim.online_dare(1.0, 1.0), marks=pytest.mark.slow), optim.online_dare(0.5, 1.0, mask='fixed')],
)
def test_05_alpha_of_one_does_not_see_gradients(merge):
  tx = optax.chain(ADAM, merge)
  path, _ = runs.run(tx)
  runs.assert_equal(runs.run(tx, runs.STREAM[::-1])[0], path)
  first = jax.tree.map(lambda x, y: (x - y).astype(jnp.float32), path[0], runs.PARAMS)
  assert runs.differs(first, jax.tree.map(jnp.zeros_like, first))
  steps = len(runs.STREAM)
  expected = jax.tree.map(
    lambda x, d: np.asarray(x, np.float64) + steps * np.asarray(d, np.float64), runs.PARAMS, first
  )
  runs.assert_close(path[-1], expected, rtol=0, atol=1e-6)


@pytest.mark.slow  # the trajectories of the oracle have both terms
def test_06_a_learning_rate_of_zero_still_moves_by_tau():
  dare, _ = runs.moved(optax.chain(optax.adam(0.0), optim.online_dare(1.0, ALPHA)), runs.STREAM[0])
  runs.assert_close(dare[0], jax.tree.map(lambda t: ALPHA * t, runs.TAU))
  ties, _ = runs.moved(optax.chain(optax.adam(0.0), optim.online_ties(0.3, ALPHA)), runs.STREAM[0])
  for place in TENSORS:
    np.testing.assert_allclose(tensor(ties[0], place), ALPHA * oracle.top(tensor(runs.TAU, place), 0.3), rtol=1e-6)


@pytest.mark.parametrize(
  ('rescale', 'mean', 'variance'), [pytest.param('none', 0.25, 0.1875, marks=pytest.mark.slow), ('inverse', 1.0, 3.0)]
)
def test_07_mean_and_variance_of_dare(rescale, mean, variance):
  """Of B x: p x and p (1 - p) x^2; of B x / p: x and (1 / p - 1) x^2. The values are all 1, so entries are samples."""
  ones = {'w': jnp.ones((400, 500))}
  for alpha in (0.0, 1.0):
    (out,), _ = runs.moved(optim.online_dare(0.25, alpha, rescale=rescale), ones, ones)
    values = np.asarray(out['w'])
    assert set(np.unique(values)) == {0.0, 4.0 if rescale == 'inverse' else 1.0}
    assert abs(values.mean() - mean) < 5 * (variance / values.size) ** 0.5
    assert abs(values.var() - variance) < 0.01 * variance + 5e-3 * variance


@pytest.mark.slow  # top_fraction_test.py compares with sorting
@pytest.mark.parametrize(
  'reserve',
  [1e-9, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.02, 0.29, 0.999))],  # 0.3 is above
)
def test_08_ties_keeps_the_largest_exactly(reserve):
  tx, update = optim.online_ties(reserve, 0.0), runs.only('layers', runs.tree(11, 1e-6))
  zero, merge = jax.tree.map(jnp.zeros_like, update), runs.jitted(tx)
  tau = STACK['tau']
  out, state = merge(update, tx.init(update), zero, tau)
  for place in TENSORS[:2]:
    kept, values = tensor(out, place), tensor(update, place)
    assert np.count_nonzero(kept) == max(1, int(reserve * values.size))
    np.testing.assert_array_equal(kept, oracle.top(values, reserve))
  larger, state = merge(jax.tree.map(lambda x: 4 * x, update), state, zero, tau)
  runs.assert_equal(larger, jax.tree.map(lambda x: 4 * x, out))
  runs.assert_equal(merge(out, state, zero, tau)[0], out)


@pytest.mark.slow  # top_fraction_test.py breaks ties by rank
@pytest.mark.parametrize('dtype', [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.bfloat16])
def test_08_ties_keeps_the_share_where_all_magnitudes_are_equal(dtype):
  """As in Lion's updates: the entries kept differ from merge to merge; those of a constant tau stay."""
  ones = {'layers': {'up': jnp.ones((2, 30, 40), dtype)}}
  tau = jax.tree.map(lambda x: 4 * jnp.sign(jnp.cos(jnp.arange(x.size))).reshape(x.shape).astype(dtype), ones)
  tx = optim.online_merge(0.05, 0.5, keep='largest')
  state, zero, merge, masks = tx.init(ones), jax.tree.map(jnp.zeros_like, ones), runs.jitted(tx), []
  for start in (state, None, None, optim.online_merge(0.05, 0.5, keep='largest', seed=1).init(ones)):
    out, state = merge(ones, start or state, zero, tau)
    values = np.asarray(out['layers']['up'])
    masks.append((np.isin(values, [0.5, 2.5, -1.5]), np.abs(values) >= 1.5))  # 0.5 is D's part, 2 or -2 that of tau
    assert float(optim.merge_metrics(state)['kept']) == pytest.approx(0.05, rel=1e-6)
  assert [mask.sum((1, 2)).tolist() for both in masks for mask in both] == [[60, 60]] * 8
  (first, first_tau), (second, second_tau), _, (other, other_tau) = masks
  assert (second_tau == first_tau).all()
  for differs in (second, first_tau, other, first[::-1]):
    assert (differs != first).any()
  assert (other_tau != first_tau).any()


def test_09_raw_election_goes_with_tau_where_tau_is_larger():
  update, tau = runs.tree(12, 1e-3), runs.tree(13, 1e-2)
  (out,), _ = runs.moved(optim.online_ties(1.0, ALPHA, elect='raw'), update, tau)
  for x, d, t in zip(*map(runs.leaves, (out, update, tau)), strict=True):
    larger, agree = np.abs(t) > np.abs(d), np.sign(t) == np.sign(d)
    assert larger.any()
    assert (np.sign(x) == np.sign(t))[larger].all()
    np.testing.assert_allclose(x[larger], (ALPHA * t + (1 - ALPHA) * d * agree)[larger], rtol=1e-6)


def test_10_election_of_the_weighted_is_never_smaller_than_either_and_ties_are_ruled():
  update, tau = (runs.only('layers', runs.tree(seed, 1e-2)) for seed in (14, 15))
  (out,), _ = runs.moved(optim.online_ties(1.0, ALPHA), update, tau)
  (swapped,), _ = runs.moved(optim.online_ties(1.0, 1 - ALPHA), tau, update)
  runs.assert_close(out, swapped)
  for x, d, t in zip(*map(runs.leaves, (out, update, tau)), strict=True):
    assert (np.abs(x) >= np.maximum((1 - ALPHA) * np.abs(d), ALPHA * np.abs(t)) * (1 - 1e-6)).all()
  half = {'w': jnp.asarray([1.0, -1.0, 1.0, 0.0])}, {'w': jnp.asarray([-1.0, 1.0, 1.0, -1.0])}
  for elect, expected in (('weighted', [0.0, 0.0, 1.0, -0.5]), ('raw', [0.5, 0.5, 1.0, -0.5])):
    (out,), _ = runs.moved(optim.online_ties(1.0, 0.5, elect=elect), *half)
    np.testing.assert_array_equal(out['w'], expected)


@pytest.mark.slow  # the tests against the oracle merge at every third step
def test_11_step_k():
  """K = 1 is online; between merges it is Adam; back exactly; K = N is offline linear merging plus alpha tau."""
  online, _ = runs.run(optax.chain(ADAM, optim.online_dare(0.5, ALPHA)))
  runs.assert_equal(runs.run(optax.chain(ADAM, optim.online_dare(0.5, ALPHA, every=1)))[0], online)
  plain, _ = runs.run(ADAM)
  merged, state = runs.run(optax.chain(ADAM, optim.online_dare(1.0, ALPHA, every=3)))
  runs.assert_equal(merged[:2], plain[:2])
  assert (int(state[1].count), int(state[1].step)) == (2, 0)
  # A merge that keeps nothing of D and tau (alpha = 1, tau = 0) shows where it starts from.
  nothing = jax.tree.map(jnp.zeros_like, runs.TAU)
  back, _ = runs.run(optax.chain(ADAM, optim.online_dare(1.0, 1.0, every=3)), tau=nothing)
  for start, away, *returned in zip(*map(runs.leaves, (runs.PARAMS, back[1], back[2], back[5])), strict=True):
    exact = np.abs(start) > 0.1  # several times what it moves by
    assert exact.any()
    assert (away != start).all()
    for end in returned:
      np.testing.assert_array_equal(end[exact], start[exact])
      np.testing.assert_allclose(end, start, rtol=0, atol=1e-8)
  whole, _ = runs.run(optax.chain(ADAM, optim.online_dare(1.0, ALPHA, every=len(runs.STREAM))))
  for start, tau, aligned, end in zip(*map(runs.leaves, (runs.PARAMS, runs.TAU, plain[-1], whole[-1])), strict=True):
    offline = (start - tau) + (1 - ALPHA) * (aligned - (start - tau)) + ALPHA * tau
    np.testing.assert_allclose(end - offline, ALPHA * tau, rtol=0, atol=2e-7)


@pytest.mark.slow
def test_11_the_merge_of_a_cache_is_that_of_the_displacement():
  three = {**STACK, 'gradients': STACK['gradients'][:3]}
  merged, _ = runs.run(optax.chain(ADAM, optim.online_ties(0.3, ALPHA, every=3)), **three)
  plain, _ = runs.run(ADAM, **three)
  displacement = jax.tree.map(lambda end, start: end - start, plain[-1], STACK['params'])
  (expected,), _ = runs.moved(optim.online_ties(0.3, ALPHA), displacement, STACK['tau'])
  runs.assert_close(merged[-1], optax.apply_updates(STACK['params'], expected), rtol=0, atol=2e-7)


def test_12_decay_falls_on_the_weights_before_the_merge():
  """theta' = theta + u - eta decay theta, as in `optax.adamw`."""
  merge, decay = optim.online_dare(1.0, ALPHA), 0.1
  plain, _ = runs.run(optax.chain(ADAM, merge), runs.STREAM[:1])
  decayed, _ = runs.run(optax.chain(ADAM, merge, optax.add_decayed_weights(-RATE * decay)), runs.STREAM[:1])
  expected = jax.tree.map(lambda end, start: end - RATE * decay * start, plain[0], runs.PARAMS)
  runs.assert_close(decayed[0], expected, rtol=0, atol=2e-7)


@pytest.mark.slow  # random_bits_test.py compares the bits, wrappers_test.py repeats them
def test_13_masks_are_fresh_or_fixed_and_seeds_reproduce():
  ones = {'w': jnp.ones((40, 50)), 'v': jnp.ones((40, 50))}
  for mask in ('fresh', 'fixed'):
    of_tau, _ = runs.moved(optim.online_dare(0.5, 1.0, mask=mask), ones, ones, steps=3)
    assert runs.differs(of_tau[0], of_tau[1]) is (mask == 'fresh')
    assert runs.differs(of_tau[0]['w'], of_tau[0]['v'])
    of_update, _ = runs.moved(optim.online_dare(0.5, 0.0, mask=mask), ones, ones, steps=3)
    assert runs.differs(of_update[0], of_update[1])
    assert abs(np.corrcoef(np.ravel(of_tau[0]['w']), np.ravel(of_update[0]['w']))[0, 1]) < 0.1
    runs.assert_equal(runs.moved(optim.online_dare(0.5, 1.0, mask=mask), ones, ones, steps=3)[0], of_tau)
    assert runs.differs(runs.moved(optim.online_dare(0.5, 1.0, mask=mask, seed=1), ones, ones)[0][0], of_tau[0])


def test_14_multi_steps_adds_tau_once_for_each_accumulated_step():
  tx = optax.MultiSteps(optax.chain(ADAM, optim.online_dare(1.0, ALPHA)), 3).gradient_transformation()
  path, state = runs.run(tx)
  runs.assert_equal(path[1], runs.PARAMS)
  means = [jax.tree.map(lambda *x: sum(x) / 3, *runs.STREAM[i : i + 3]) for i in (0, 3)]
  expected, _ = runs.run(optax.chain(ADAM, optim.online_dare(1.0, ALPHA)), means)
  runs.assert_close(path[5], expected[1], rtol=0, atol=1e-5)
  assert int(state.inner_opt_state[1].count) == 2


@pytest.mark.parametrize(
  'merge',
  [
    pytest.param(optim.online_dare(0.3, ALPHA), marks=pytest.mark.slow),
    pytest.param(optim.online_ties(0.1, 0.9, elect='raw'), marks=pytest.mark.slow),
    optim.online_dare(1.0, ALPHA, every=4),
  ],
)
def test_15_moments_do_not_see_the_merge(merge):
  _, plain = runs.run(ADAM, **STACK)
  _, state = runs.run(optax.chain(ADAM, merge), **STACK)
  runs.assert_equal(state[0], plain)


@pytest.mark.parametrize('build', [optim.online_dare, pytest.param(optim.online_ties, marks=pytest.mark.slow)])
def test_l1_keeps_the_sum_of_magnitudes_of_each_tensor(build):
  for alpha in (0.0, 1.0):
    (out,), _ = runs.moved(build(0.3, alpha, rescale='l1'), STACK['gradients'][0], STACK['tau'])
    for place in TENSORS[:2]:
      values = tensor(runs.TAU if alpha else runs.STREAM[0], place)
      assert np.count_nonzero(tensor(out, place)) < values.size
      np.testing.assert_allclose(np.abs(tensor(out, place)).sum(), np.abs(values).sum(), rtol=1e-5)


def test_released_form_of_dare():
  """Both terms are divided by p, tau's mask is drawn once, and its entries are bounded by 1."""
  ones, tau = {'w': jnp.ones((40, 50))}, {'w': jnp.full((40, 50), -0.4)}
  tx = optim.online_dare(0.25, 0.5, mask='fixed', rescale='inverse', clip=1.0)
  out, _ = runs.moved(tx, ones, tau, steps=2)
  assert set(np.unique(out[0]['w'])) == {-0.5, 0.0, 1.5, 2.0}
  np.testing.assert_array_equal(np.isin(out[0]['w'], [-0.5, 1.5]), np.isin(out[1]['w'], [-0.5, 1.5]))


def test_metrics():
  update, tau = runs.tree(14, 1e-2), runs.tree(15, 1e-2)
  tx = optax.chain(optax.identity(), optim.online_ties(0.5, ALPHA, elect='raw'))
  assert set(map(float, optim.merge_metrics(tx.init(update)).values())) == {0.0}
  (out,), state = runs.moved(tx, update, tau)
  metrics = {name: float(value) for name, value in optim.merge_metrics(state).items()}
  d, x, t = (np.concatenate([leaf.ravel() for leaf in runs.leaves(tree)]) for tree in (update, out, tau))
  reserved, rival = (
    np.concatenate([oracle.top(tensor(tree, place), 0.5).ravel() for place in TENSORS]) for tree in (update, tau)
  )
  vetoed = (reserved != 0) & (np.sign(reserved) != np.where(reserved + rival >= 0, 1, -1))
  expected = {
    'update_norm': np.linalg.norm(d),
    'merged_norm': np.linalg.norm(x),
    'kept': np.count_nonzero(reserved) / d.size,
    'vetoed': vetoed.sum() / np.count_nonzero(reserved),
    'cosine_with_update': np.vdot(x, d) / np.linalg.norm(x) / np.linalg.norm(d),
    'cosine_with_delta': np.vdot(x, t) / np.linalg.norm(x) / np.linalg.norm(t),
  }
  assert metrics == pytest.approx(expected, rel=1e-5)
  assert 0.1 < metrics['vetoed'] < 0.5
  assert optim.merge_metrics(ADAM.init(update)) == {}


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'reserve': 0.0}, r'reserve=0\.0 must be in \(0, 1\]'),
    ({'reserve': 1.5}, r'reserve=1\.5 must be'),
    ({'alpha': -0.1}, r'alpha=-0\.1 must be in \[0, 1\]'),
    ({'every': 0}, 'every=0 must be an int of at least 1'),
    ({'every': 1.5}, 'every=1.5 must be an int'),
    ({'clip': 0.0}, 'clip=0.0 must be positive'),
    ({'keep': 'some'}, "keep='some' is not one of 'random', 'largest'"),
    ({'elect': 'mean'}, "elect='mean' is not one of"),
    ({'keep': 'largest', 'mask': 'fixed'}, "mask='fixed' requires keep='random'"),
    ({'keep': 'largest', 'rescale': 'inverse'}, "rescale='inverse' requires keep='random'"),
  ],
)
def test_bad_arguments_are_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    optim.online_merge(**{'reserve': 0.5, 'alpha': 0.1, **arguments})


def test_a_reference_delta_that_does_not_fit_is_refused_when_traced():
  tx = optim.online_dare(0.5, 0.1)
  state, update = tx.init(runs.PARAMS), runs.jitted(tx)
  wrong = {**runs.TAU, 'final_norm': {'scale': jnp.zeros(9)}}
  for tau, message in (
    (None, r'needs the reference delta: pass Frozen\(delta='),
    ({'layers': runs.TAU['layers']}, r'structure of the parameters: .*Frozen\(delta='),
    (wrong, r'final_norm/scale has shape \(9,\), the parameter \(8,\)'),
  ):
    with pytest.raises(ValueError, match=message):
      update(runs.STREAM[0], state, runs.PARAMS, tau)
  with pytest.raises(ValueError, match='needs the parameters'):
    tx.update(runs.STREAM[0], state)
