"""Preference objectives as distribution learning: what they find, in the limit and from finitely many pairs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives, stats
from alignjax.types import PreferenceBatch
from tests import fixtures, quick
from tests.oracles.data import log_softmax, sigmoid

ACTIONS = 4
ORDERED = np.stack(np.where(~np.eye(ACTIONS, dtype=bool)), axis=1)  # every pair of actions, preferred one first


def mean_loss(objective, logits, reference, weight, score, label=1.0, pairs=ORDERED):
  """The weighted loss over pairs of one-token responses, `label` saying which of the two is preferred."""
  rows = len(pairs)
  batch = PreferenceBatch(
    prompt=jnp.zeros((rows, 1), jnp.int32),
    prompt_length=jnp.ones(rows, jnp.int32),
    response=jnp.asarray(pairs)[:, :, None],
    response_length=jnp.ones((rows, 2), jnp.int32),
    label=jnp.broadcast_to(jnp.asarray(label, jnp.float32), (rows,)),
    weight=weight,
    score=score[pairs],
  )

  def tokens(x):
    return jnp.broadcast_to(x, (rows, 2, 1, ACTIONS))

  table = fixtures.from_logits(objective.needs, tokens(logits), tokens(reference), batch)
  return jnp.sum(batch.weight * objective.apply(table, batch).loss)


def fit(objective, reference, weight, score=None):
  """[..., ACTIONS] log-probabilities where the weighted loss is least, by Newton's method from a uniform policy."""
  score = np.zeros_like(reference) if score is None else score

  def solve(reference, weight, score):
    def loss(logits):
      return mean_loss(objective, logits, reference, weight, score)

    def step(_, logits):
      # No margin says where the logits lie together: the ones fix that direction.
      return logits - jnp.linalg.solve(jax.hessian(loss)(logits) + jnp.ones((ACTIONS, ACTIONS)), jax.grad(loss)(logits))

    return jax.lax.fori_loop(0, 12, step, jnp.zeros(ACTIONS))

  leading = reference.shape[:-1]
  flat = [jnp.asarray(x, jnp.float32).reshape(-1, x.shape[-1]) for x in (reference, weight, score)]
  return log_softmax(np.asarray(jax.jit(jax.vmap(solve))(*flat))).reshape(*leading, ACTIONS)


def win_probability(target, gamma):
  """[..., pairs]: that the first action of an ordered pair is preferred."""
  return sigmoid(gamma * (target[..., ORDERED[:, 0]] - target[..., ORDERED[:, 1]]))


def pair_probability(target, gamma, mu):
  """[..., pairs]: that a labelled pair of two draws from mu is this one."""
  drawn = mu[..., ORDERED[:, 0]] * mu[..., ORDERED[:, 1]]
  weight = drawn * win_probability(target, gamma)
  return weight / weight.sum(axis=-1, keepdims=True)


def forward_kl(target, found):
  return np.sum(np.exp(target) * (target - found), axis=-1)


@pytest.fixture(name='world')
def make_world():
  """Log-probabilities of target and reference, and two distributions of the actions that are compared."""
  rng = np.random.default_rng(0)
  target, reference = (log_softmax(rng.normal(size=ACTIONS)) for _ in range(2))
  return target, reference, (np.full(ACTIONS, 1 / ACTIONS), np.asarray([0.7, 0.1, 0.15, 0.05]))


@pytest.mark.parametrize('gamma', quick.first(1, [0.5, 2.0]))
@pytest.mark.parametrize('compared', quick.first(1, [1, 0]))
def test_pmle_finds_the_target_whatever_distribution_is_compared(world, gamma, compared):
  target, reference, mus = world
  found = fit(objectives.pmle(gamma), reference, pair_probability(target, gamma, mus[compared]))
  np.testing.assert_allclose(found, target, atol=1e-4)


@pytest.mark.slow  # the test above finds the target
@pytest.mark.parametrize('wrong', [0.25, 1.0])
def test_pmle_with_a_wrong_gamma_finds_a_power_of_the_target(world, wrong):
  target, reference, mus = world
  found = fit(objectives.pmle(wrong), reference, pair_probability(target, 0.5, mus[1]))
  np.testing.assert_allclose(found, log_softmax(0.5 / wrong * target), atol=1e-4)
  assert np.abs(found - target).max() > 0.1


@pytest.mark.slow  # the test of PMLE fits the same pairs
def test_dpo_on_the_same_pairs_finds_the_product_of_reference_and_target(world):
  target, reference, mus = world
  weight = pair_probability(target, 0.5, mus[1])
  found = fit(objectives.dpo(0.5), reference, weight)
  np.testing.assert_allclose(found, log_softmax(reference + target), atol=1e-4)
  assert np.abs(found - target).max() > 0.1
  uniform = np.full(ACTIONS, -math.log(ACTIONS))
  np.testing.assert_allclose(fit(objectives.dpo(0.5), uniform, weight), target, atol=1e-4)


def test_pmle_and_distillation_do_not_read_the_reference():
  assert objectives.pmle().needs == {stats.logp}
  assert objectives.preference_distillation().needs == {stats.logp}


@pytest.mark.slow  # contract_test.py has the value at the reference
def test_pmle_of_a_uniform_policy_is_log_two():
  logits, score = jnp.zeros(ACTIONS), jnp.zeros(ACTIONS)
  for row in np.eye(len(ORDERED), dtype=np.float32):
    assert mean_loss(objectives.pmle(0.3), logits, logits, row, score) == pytest.approx(math.log(2), rel=1e-6)


def test_pmle_says_nothing_of_groups_that_are_never_compared(world):
  target, reference, _ = world
  within = np.asarray((ORDERED < 2).all(axis=1) | (ORDERED >= 2).all(axis=1), np.float32)
  shifted = target + np.where(np.arange(ACTIONS) < 2, 1.5, 0.0)
  losses = [float(mean_loss(objectives.pmle(0.5), x, reference, within, jnp.zeros(ACTIONS))) for x in (target, shifted)]
  assert losses[0] == pytest.approx(losses[1], rel=1e-6)
  everything = np.ones_like(within)
  losses = [
    float(mean_loss(objectives.pmle(0.5), x, reference, everything, jnp.zeros(ACTIONS))) for x in (target, shifted)
  ]
  assert abs(losses[0] - losses[1]) > 0.01


def test_distillation_is_zero_at_the_policy_that_the_reward_stands_for_and_positive_elsewhere(world):
  target, reference, _ = world
  score = jnp.asarray(0.5 * target + 3.0, jnp.float32)

  @jax.jit
  def slopes(logits, row):
    objective = objectives.preference_distillation(0.5)
    return jax.value_and_grad(lambda x: mean_loss(objective, x, reference, row, score))(logits)

  for row in np.eye(len(ORDERED), dtype=np.float32):
    loss, gradient = slopes(target.astype(np.float32), row)
    assert loss == pytest.approx(0.0, abs=1e-7)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-7)
    assert slopes(reference.astype(np.float32), row)[0] > 1e-4


@pytest.mark.slow  # its loss and gradient are 0 there, above
def test_distillation_finds_the_policy_that_the_reward_stands_for(world):
  target, reference, mus = world
  score = 0.5 * target - 7.0
  found = fit(objectives.preference_distillation(0.5), reference, np.outer(mus[1], mus[1])[tuple(ORDERED.T)], score)
  np.testing.assert_allclose(found, target, atol=1e-4)


def test_distillation_gradient_is_that_of_pmle_over_a_drawn_label(world):
  target, reference, _ = world
  score = jnp.asarray([0.3, -1.0, 2.0, 0.4])
  weight = np.linspace(0.5, 2.0, len(ORDERED), dtype=np.float32)
  q = sigmoid(np.asarray(score)[ORDERED[:, 0]] - np.asarray(score)[ORDERED[:, 1]])

  def of(objective, weight, label):
    return jax.value_and_grad(lambda x: mean_loss(objective, x, reference, weight, score, label))(
      jnp.asarray(target, jnp.float32)
    )

  loss, gradient = of(objectives.preference_distillation(0.5), weight, 1.0)
  won_loss, won = of(objectives.pmle(0.5), weight * q, 1.0)
  lost_loss, lost = of(objectives.pmle(0.5), weight * (1 - q), 0.0)
  np.testing.assert_allclose(gradient, won + lost, rtol=1e-5, atol=1e-7)
  entropy = -np.sum(weight * (q * np.log(q) + (1 - q) * np.log(1 - q)))
  assert loss == pytest.approx(float(won_loss + lost_loss - entropy), rel=1e-5)


@pytest.mark.parametrize('gap', [1e3, 1e6])
def test_distillation_of_a_certain_reward_is_pmle(world, gap):
  target, reference, _ = world
  rank = jnp.arange(ACTIONS, dtype=jnp.float32)
  label = (ORDERED[:, 0] > ORDERED[:, 1]).astype(np.float32)
  weight = np.ones(len(ORDERED), np.float32)

  def of(objective):
    return jax.value_and_grad(lambda x: mean_loss(objective, x, reference, weight, gap * rank, label))(
      jnp.asarray(target, jnp.float32)
    )

  loss, gradient = of(objectives.preference_distillation(0.5))
  expected, expected_gradient = of(objectives.pmle(0.5))
  assert loss == pytest.approx(float(expected), rel=1e-6)
  np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-6)


def test_distillation_of_small_margins_is_a_quarter_of_the_residual_as_is_rebel_over_eight():
  gamma, score, logits = 0.5, jnp.asarray([0.01, 0.0, 0.0, 0.0]), jnp.asarray([0.006, 0.0, 0.0, 0.0])
  row = np.zeros(len(ORDERED), np.float32)
  row[0] = 1.0  # of actions 0 and 1

  def slope(objective):
    return float(jax.grad(lambda x: mean_loss(objective, x, jnp.zeros(ACTIONS), row, score))(logits)[0])

  residual = 0.01 - gamma * 0.006
  assert slope(objectives.preference_distillation(gamma)) == pytest.approx(-gamma * residual / 4, rel=1e-3)
  assert slope(objectives.rebel(1 / gamma)) / 8 == pytest.approx(-gamma * residual / 4, rel=1e-3)


def test_rebel_has_loss_zero_where_the_reference_is_tilted_by_the_score(world):
  _, reference, _ = world
  score = jnp.asarray([0.3, -1.0, 2.0, 0.4])
  weight = np.ones(len(ORDERED), np.float32)
  optimum = jnp.asarray(reference + 0.7 * np.asarray(score), jnp.float32)
  assert mean_loss(objectives.rebel(0.7), optimum, reference, weight, score) == pytest.approx(0.0, abs=1e-9)
  at_reference = mean_loss(objectives.rebel(0.7), reference, reference, weight, score)
  differences = np.asarray(score)[ORDERED[:, 0]] - np.asarray(score)[ORDERED[:, 1]]
  assert at_reference == pytest.approx(float(np.sum(differences**2)), rel=1e-6)
  found = fit(objectives.rebel(0.7), reference, weight, np.asarray(score))
  np.testing.assert_allclose(found, log_softmax(np.asarray(optimum)), atol=1e-4)


@pytest.mark.parametrize('objective', [objectives.preference_distillation(0.5), objectives.rebel(0.7)])
def test_objectives_of_a_score_know_neither_order_nor_label_nor_a_constant_of_the_prompt(world, objective):
  target, reference, _ = world
  score = jnp.asarray([0.3, -1.0, 2.0, 0.4])
  weight = np.linspace(0.5, 2.0, len(ORDERED), dtype=np.float32)
  expected = mean_loss(objective, target, reference, weight, score)
  swapped = mean_loss(objective, target, reference, weight, score, pairs=ORDERED[:, ::-1])
  assert swapped == pytest.approx(float(expected), rel=1e-6)
  assert mean_loss(objective, target, reference, weight, score, label=0.2) == expected
  assert mean_loss(objective, target, reference, weight, score + 8.0) == pytest.approx(float(expected), rel=1e-5)


def test_score_agreement_asks_whether_the_policy_orders_a_pair_as_the_score_does():
  batch = fixtures.preference_batch()
  logits = fixtures.logits(1, batch)
  objective = objectives.preference_distillation()
  table = fixtures.from_logits(objective.needs, logits, None, batch)
  margin, wanted = (np.asarray(x[:, 0] - x[:, 1]) for x in (table.sum(stats.logp), batch.score))
  metrics = objective.apply(table, batch).metrics
  assert 0 < np.mean(margin * wanted > 0) < 1
  np.testing.assert_array_equal(metrics['score_agreement'], margin * wanted > 0)
  np.testing.assert_allclose(metrics['score_margin'], (2.0 * np.asarray(batch.label) - 1.0) * wanted, rtol=1e-6)


class Samples:
  """Targets and references of many contexts, and counts of labelled pairs between uniform actions."""

  def __init__(self, contexts, scale):
    self.rng = np.random.default_rng(1)
    self.target, self.reference = (log_softmax(scale * self.rng.normal(size=(contexts, ACTIONS))) for _ in range(2))

  def draw(self, gamma, count):
    """[contexts, ordered pairs]: how often the first was preferred to the second, as a share of `count`."""
    probability = pair_probability(self.target, gamma, np.full(ACTIONS, 1 / ACTIONS))
    return self.rng.multinomial(count, probability) / count

  def errors(self, objective, weight):
    """[K]: mean forward KL from the target, for weights [K, contexts, ordered pairs]."""
    reference = np.broadcast_to(self.reference, (*weight.shape[:-1], ACTIONS))
    return forward_kl(self.target, fit(objective, reference, weight)).mean(axis=-1)


def slope(x, y):
  return np.polyfit(np.log(x), np.log(y), 1)[0]


@pytest.mark.slow  # a law of statistics that follows from the loss, which oracle_test checks
def test_error_of_pmle_falls_as_one_over_n_and_that_of_dpo_stays():
  samples, counts = Samples(contexts=96, scale=0.3), [2**k for k in (7, 9, 11, 13)]
  weight = np.stack([samples.draw(1.0, count) for count in counts])
  pmle, dpo = (samples.errors(objective, weight) for objective in (objectives.pmle(1.0), objectives.dpo(1.0)))
  plateau = forward_kl(samples.target, log_softmax(samples.reference + samples.target)).mean()
  assert slope(counts, pmle) == pytest.approx(-1.0, abs=0.15)
  assert dpo[-1] == pytest.approx(plateau, rel=0.1)
  assert pmle[-1] < plateau / 20


@pytest.mark.slow  # a law of statistics that follows from the loss, which oracle_test checks
def test_error_of_pmle_is_inversely_proportional_to_gamma_squared():
  samples, gammas = Samples(contexts=96, scale=0.3), [0.25, 0.5, 1.0]
  errors = [samples.errors(objectives.pmle(gamma), samples.draw(gamma, 4096)[None])[0] for gamma in gammas]
  assert slope(gammas, errors) == pytest.approx(-2.0, abs=0.3)


@pytest.mark.slow  # each has its oracle
def test_with_a_tabular_reward_pmle_distillation_and_reverse_kl_are_one_estimator():
  gamma, samples = 0.5, Samples(contexts=8, scale=0.5)
  weight = samples.draw(gamma, 256)
  estimate = fit(objectives.pmle(gamma), samples.reference, weight)
  reward = fit(objectives.pmle(1.0), samples.reference, weight)  # the Bradley-Terry model of largest likelihood
  even = np.full_like(weight, 1 / len(ORDERED))
  distilled = fit(objectives.preference_distillation(gamma), samples.reference, even, reward)
  np.testing.assert_allclose(distilled, estimate, atol=1e-3)
  assert forward_kl(samples.target, estimate).min() > 1e-3  # it is the estimate that they share, not the target
  # At the optimum the returns of all responses are equal: no samples whatsoever would move the policy.
  for policy, score in zip(estimate, reward, strict=True):
    gradient = jax.grad(lambda x, score=score: mean_loss(objectives.reverse_kl(gamma, 0.0), x, x, even[0], score))
    np.testing.assert_allclose(gradient(jnp.asarray(policy, jnp.float32)), 0.0, atol=1e-4)
    assert np.abs(gradient(jnp.asarray(samples.target[0], jnp.float32))).max() > 1e-2


@pytest.mark.parametrize(
  ('build', 'arguments', 'message'),
  [
    (objectives.pmle, {'gamma': 0.0}, 'pmle: gamma must be positive, got 0.0'),
    (objectives.pmle, {'gamma': float('nan')}, 'pmle: gamma must be positive'),
    (objectives.preference_distillation, {'gamma': -1.0}, 'preference_distillation: gamma must be positive'),
    (objectives.rebel, {'eta': 0.0}, 'rebel: eta must be positive'),
    (objectives.rebel, {'eta': float('nan')}, 'rebel: eta must be positive'),
  ],
)
def test_impossible_hyper_parameters_are_named(build, arguments, message):
  with pytest.raises(ValueError, match=message):
    build(**arguments)


@pytest.mark.parametrize('build', [objectives.pmle, objectives.preference_distillation, objectives.rebel])
def test_a_pair_is_required(build):
  batch = fixtures.preference_batch(responses=3)
  logits = fixtures.logits(1, batch)
  with pytest.raises(ValueError, match=rf'{build.__name__} compares .* N = 3'):
    build().apply(fixtures.from_logits(build().needs, logits, logits, batch), batch)
