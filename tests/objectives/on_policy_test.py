"""Score-function surrogates against objectives that are enumerated over all responses."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives, stats
from alignjax.types import PreferenceBatch
from tests import fixtures, quick

# A language of seven sentences over three tokens: token 0 ends one, and no sentence has more than two tokens.
SENTENCES = ((0, 0), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2))
LENGTHS = np.asarray([1, 2, 2, 2, 2, 2, 2])
SCORE = jnp.asarray([0.5, -1.0, 2.0, 0.3, 1.5, -0.4, 0.9])


def draw_policy(seed):
  rng = np.random.default_rng(seed)
  return {
    'first': jnp.asarray(rng.normal(size=3), jnp.float32),
    'second': jnp.asarray(rng.normal(size=(3, 3)), jnp.float32),
  }


def log_probabilities(policy):
  """[7]: of the sentences."""
  first, second = jax.nn.log_softmax(policy['first']), jax.nn.log_softmax(policy['second'])
  return jnp.stack([first[a] + (second[a, b] if a else 0.0) for a, b in SENTENCES])


def policy_of(probability):
  """The policy that says each sentence with this probability, [7]."""
  probability = np.asarray(probability, np.float64) / np.sum(probability)
  second = np.zeros((3, 3))
  for (a, b), p in zip(SENTENCES[1:], probability[1:], strict=True):
    second[a, b] = np.log(p)
  first = np.log([probability[0], probability[1:4].sum(), probability[4:].sum()])
  return {'first': jnp.asarray(first, jnp.float32), 'second': jnp.asarray(second, jnp.float32)}


def losses(objective, policy, reference, rows, score=SCORE):
  """The term of a batch in which row i has the sentences rows[i], [B, N]."""
  tokens = np.asarray(SENTENCES)[rows]
  batch = PreferenceBatch(
    prompt=jnp.zeros((len(rows), 1), jnp.int32),
    prompt_length=jnp.ones(len(rows), jnp.int32),
    response=jnp.asarray(tokens, jnp.int32),
    response_length=jnp.asarray(LENGTHS[rows]),
    label=jnp.ones(len(rows)),
    weight=jnp.ones(len(rows)),
    score=None if score is None else score[rows],
  )

  def logits(policy):
    first = jnp.broadcast_to(policy['first'], (*rows.shape, 3))
    return jnp.stack([first, policy['second'][tokens[:, :, 0]]], axis=2)

  return objective.apply(fixtures.from_logits(objective.needs, logits(policy), logits(reference), batch), batch)


def tuples(samples):
  """[7^N, N]: everything that N samples can be."""
  return np.asarray(list(itertools.product(range(len(SENTENCES)), repeat=samples)))


def expected_loss(objective, policy, reference, samples, score=SCORE):
  """Over N independent samples of the policy, whose probabilities are data and carry no gradient."""
  rows = tuples(samples)
  probability = jnp.exp(jnp.sum(jax.lax.stop_gradient(log_probabilities(policy))[rows], axis=1))
  return jnp.sum(probability * losses(objective, policy, reference, rows, score).loss)


def exact(policy, reference, score, gamma, beta):
  """-E[score] - gamma H(pi) + beta KL(pi || pi_ref)."""
  log_probability = log_probabilities(policy)
  log_ratio = log_probability - log_probabilities(reference)
  return jnp.sum(jnp.exp(log_probability) * (-score + gamma * log_probability + beta * log_ratio))


EXACT = [
  (objectives.reverse_kl(0.3, 0.2), 1.0, 0.3, 0.2),
  (objectives.reverse_kl(0.3, 0.0), 1.0, 0.3, 0.0),
  (objectives.rlhf(0.4), 1.0, 0.0, 0.4),
  (objectives.rlhf(0.0), 1.0, 0.0, 0.0),
  (objectives.kl_penalty(0.7), 0.0, 0.0, 0.7),
]
NAMES = [entry[0].name for entry in EXACT]
QUICK = {(1, 0), (2, 0), (2, 2), (2, 4)}  # without a baseline once, and with one for each objective


def assert_same(found, expected, tolerance=2e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance, rtol=1e-5), found, expected)


def largest(tree):
  return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  ('samples', 'objective', 'scored', 'gamma', 'beta'),
  [
    pytest.param(samples, *entry, id=f'{samples}-{name}', marks=() if (samples, i) in QUICK else pytest.mark.slow)
    for (i, (entry, name)), samples in itertools.product(enumerate(zip(EXACT, NAMES, strict=True)), (1, 2, 3))
  ],
)
def test_value_and_gradient_are_exact_in_expectation(samples, objective, scored, gamma, beta):
  policy, reference = draw_policy(0), draw_policy(1)

  @jax.jit
  def compute(policy):
    found = jax.value_and_grad(lambda x: expected_loss(objective, x, reference, samples))(policy)
    return found, jax.value_and_grad(lambda x: exact(x, reference, scored * SCORE, gamma, beta))(policy)

  found, expected = compute(policy)
  assert_same(found, expected)
  assert largest(expected[1]) > 0.1


def test_gradient_of_the_kl_vanishes_at_the_reference_for_any_samples():
  policy = draw_policy(0)
  rows = tuples(2)  # every pair of samples, so each of the 7 as a first and as a second one
  gradients = jax.jit(jax.jacrev(lambda x: losses(objectives.kl_penalty(2.0), x, policy, rows).loss))(policy)
  assert largest(gradients) == 0.0


@pytest.mark.slow  # the gradient is that of the variance of the returns, below
def test_a_constant_added_to_the_scores_shifts_the_value_and_leaves_the_gradient():
  policy, reference, rows = draw_policy(0), draw_policy(1), tuples(2)
  for objective in (objectives.reverse_kl(0.3, 0.2), objectives.rlhf(0.2)):

    @jax.jit
    def rowwise(score, objective=objective):
      loss = losses(objective, policy, reference, rows, score).loss
      return loss, jax.jacrev(lambda x: losses(objective, x, reference, rows, score).loss)(policy)

    @jax.jit
    def of_one(constant, objective=objective):
      return jax.grad(lambda x: expected_loss(objective, x, reference, 1, SCORE + constant))(policy)

    (loss, gradient), (shifted, same) = rowwise(SCORE), rowwise(SCORE + 5.0)
    np.testing.assert_allclose(shifted, loss - 5.0, rtol=1e-5)
    assert_same(same, gradient, tolerance=1e-5)
    # A single sample has no baseline, so that the constant vanishes only in expectation.
    assert_same(of_one(0.0), of_one(5.0), tolerance=1e-5)


@pytest.mark.parametrize(('gamma', 'beta'), quick.first(1, [(0.5, 0.3), (0.5, 0.0), (0.0, 0.6)]))
def test_gradient_vanishes_for_any_samples_at_the_optimum_in_closed_form(gamma, beta):
  reference, total = draw_policy(1), gamma + beta
  tilted = beta / total * np.asarray(log_probabilities(reference), np.float64) + np.asarray(SCORE) / total
  optimum = policy_of(np.exp(tilted))
  objective = objectives.reverse_kl(gamma, beta)
  rows = tuples(2)

  @jax.jit
  def gradients(policy):
    term = losses(objective, policy, reference, rows)
    return jax.jacrev(lambda x: losses(objective, x, reference, rows).loss)(policy), term.metrics['return_spread']

  gradient, spread = gradients(optimum)
  assert largest(gradient) < 3e-6
  assert largest(gradients(reference)[0]) > 0.1
  np.testing.assert_allclose(spread, 0.0, atol=2e-6)


@pytest.mark.slow  # the optimum is in closed form above
def test_the_reward_of_a_target_gives_a_geometric_mean_of_reference_and_target():
  reference, target, gamma, beta = draw_policy(1), draw_policy(2), 0.6, 0.2
  mean = policy_of(np.exp(0.25 * log_probabilities(reference) + 0.75 * log_probabilities(target)))
  score = gamma * log_probabilities(target)
  gradient = jax.jit(jax.grad(lambda x: expected_loss(objectives.reverse_kl(gamma, beta), x, reference, 2, score)))
  assert largest(gradient(mean)) < 1e-6
  assert largest(gradient(target)) > 1e-2


@pytest.mark.slow  # both are exact in expectation, above
def test_reverse_kl_without_entropy_is_rlhf():
  policy, reference, rows = draw_policy(0), draw_policy(1), tuples(3)
  one, other = (losses(x, policy, reference, rows) for x in (objectives.reverse_kl(0.0, 0.3), objectives.rlhf(0.3)))
  np.testing.assert_array_equal(one.loss, other.loss)


@pytest.mark.slow  # the optimum is in closed form above
def test_rlhf_with_little_kl_collapses_on_the_best_response_and_the_entropy_prevents_it():
  reference = draw_policy(1)

  def descend(objective):
    gradient = jax.jit(jax.grad(lambda x: expected_loss(objective, x, reference, 1)))
    policy = reference
    for _ in range(400):
      policy = jax.tree.map(lambda x, g: x - 1.0 * g, policy, gradient(policy))
    return np.exp(np.asarray(log_probabilities(policy), np.float64))

  collapsed = descend(objectives.rlhf(1e-3))
  assert collapsed.argmax() == int(SCORE.argmax())
  assert collapsed.max() > 0.99
  spread = np.exp(np.asarray(SCORE, np.float64) / 0.8)
  np.testing.assert_allclose(descend(objectives.reverse_kl(0.8, 0.0)), spread / spread.sum(), atol=1e-3)


def test_expected_metrics_are_those_of_the_policy():
  policy, reference, rows = draw_policy(0), draw_policy(1), tuples(2)
  log_probability = log_probabilities(policy)
  metrics = losses(objectives.reverse_kl(0.3, 0.2), policy, reference, rows).metrics
  weight = jnp.exp(jnp.sum(log_probability[rows], axis=1))
  expected = {
    'score': jnp.sum(jnp.exp(log_probability) * SCORE),
    'entropy': -jnp.sum(jnp.exp(log_probability) * log_probability),
    'kl': jnp.sum(jnp.exp(log_probability) * (log_probability - log_probabilities(reference))),
  }
  for name, value in expected.items():
    assert jnp.sum(weight * metrics[name]) == pytest.approx(float(value), rel=1e-5)
  same = rows[:, 0] == rows[:, 1]
  np.testing.assert_allclose(metrics['return_spread'][same], 0.0, atol=1e-6)
  assert np.all(metrics['return_spread'][~same] > 1e-3)


def rowwise_gradients(loss, batch, logits):
  return jax.grad(lambda x: jnp.sum(loss(x, batch)))(logits)


@pytest.mark.parametrize('responses', quick.first(1, [3, 2]))
def test_off_policy_the_gradient_is_that_of_the_sample_variance_of_the_returns(responses):
  batch = fixtures.preference_batch(responses=responses)
  logits, reference = fixtures.logits(1, batch), fixtures.logits(2, batch)
  objective, gamma, beta = objectives.reverse_kl(0.3, 0.2), 0.3, 0.2

  def variance(logits, batch):
    table = fixtures.from_logits(objective.needs, logits, reference, batch)
    returns = batch.score - gamma * table.sum(stats.logp) - beta * table.log_ratio()
    return jnp.var(returns, axis=1, ddof=1) / (2 * (beta + gamma))

  def surrogate(logits, batch):
    return objective.apply(fixtures.from_logits(objective.needs, logits, reference, batch), batch).loss

  found, expected = (rowwise_gradients(loss, batch, logits) for loss in (surrogate, variance))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  assert np.abs(expected).max() > 0.1


def test_with_two_samples_rlhf_has_the_gradient_of_rebel_and_the_penalty_that_of_the_squared_margin():
  batch = fixtures.preference_batch()
  logits, reference, beta = fixtures.logits(1, batch), fixtures.logits(2, batch), 0.4

  def of(objective):
    def loss(logits, batch):
      return objective.apply(fixtures.from_logits(objective.needs, logits, reference, batch), batch).loss

    return rowwise_gradients(loss, batch, logits)

  np.testing.assert_allclose(
    of(objectives.rlhf(beta)), of(objectives.rebel(1 / beta)) / (4 * beta), rtol=1e-4, atol=1e-5
  )
  no_score = dataclasses.replace(batch, score=jnp.zeros_like(batch.score))

  def squared(logits, batch):
    table = fixtures.from_logits(objectives.rlhf().needs, logits, reference, batch)
    ratio = table.log_ratio()
    return beta * jnp.square(ratio[:, 0] - ratio[:, 1]) / 4

  np.testing.assert_allclose(
    of(objectives.kl_penalty(beta)), rowwise_gradients(squared, no_score, logits), rtol=1e-4, atol=1e-5
  )


def test_without_a_kl_penalty_no_reference_is_asked_for():
  for objective in (objectives.reverse_kl(0.3, 0.0), objectives.rlhf(0.0)):
    assert objective.needs == {stats.logp}
    assert 'kl' not in losses(objective, draw_policy(0), draw_policy(1), tuples(2)).metrics


def test_the_penalty_reads_no_score_and_the_others_name_its_absence():
  policy, reference, rows = draw_policy(0), draw_policy(1), tuples(2)
  composed = objectives.pmle(0.2) + objectives.kl_penalty(0.1)
  loss = losses(composed, policy, reference, rows, score=None).loss
  parts = [
    losses(x, policy, reference, rows, score=None).loss for x in (objectives.pmle(0.2), objectives.kl_penalty(0.1))
  ]
  np.testing.assert_allclose(loss, parts[0] + parts[1], rtol=1e-6)
  for objective in (objectives.reverse_kl(), objectives.rlhf()):
    with pytest.raises(ValueError, match=rf'{objective.label} reads batch.score'):
      losses(objective, policy, reference, rows, score=None)


@pytest.mark.parametrize(
  ('build', 'arguments', 'message'),
  [
    (objectives.reverse_kl, {'gamma': -0.1}, 'reverse_kl: gamma must not be negative, got -0.1'),
    (objectives.reverse_kl, {'beta': float('nan')}, 'reverse_kl: beta must not be negative'),
    (objectives.rlhf, {'beta': -1.0}, 'rlhf: beta must not be negative'),
    (objectives.kl_penalty, {'beta': 0.0}, 'kl_penalty: beta must be positive'),
    (objectives.kl_penalty, {'beta': float('nan')}, 'kl_penalty: beta must be positive'),
  ],
)
def test_impossible_hyper_parameters_are_named(build, arguments, message):
  with pytest.raises(ValueError, match=message):
    build(**arguments)
