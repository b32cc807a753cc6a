"""Risk over responses: `rlhf(risk=...)` and `reverse_kl(risk=...)` against enumerations in float64.

A response is one token, so that a policy is a vector of logits and the responses are the tokens.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives, risk, stats
from alignjax.types import PreferenceBatch
from tests import fixtures, quick
from tests.oracles import risk as oracles

SCORE = np.array([0.5, -1.0, 2.0, 0.25, 1.5])
POLICY = np.array([0.3, -0.6, 0.8, 0.1, -0.2])
REFERENCE = np.array([-0.4, 0.5, 0.2, -0.1, 0.6])
HALF = risk.cvar(0.5, tail='lower')


def named(value):
  """The id of an objective or a measure; None for the rest."""
  return getattr(value, 'name', None)


def cvar(level):
  return lambda score, p: oracles.cvar(score, p, level, 'lower')


def entropic(kappa):
  return lambda score, p: oracles.entropic(score, p, kappa)


def softmax(logits):
  p = np.exp(logits - logits.max())
  return p / p.sum()


def of_samples(measure, score):
  """A measure in which each of the values counts equally."""
  return measure(score, np.full(len(score), 1 / len(score)))


def derivative(function, at, step=1e-5):
  return np.array([(function(at + e) - function(at - e)) / (2 * step) for e in step * np.eye(len(at))])


def batch_of(rows, score):
  """Prompts [B] whose N responses are the tokens rows[i]; score: [B, N]."""
  prompts = len(rows)
  return PreferenceBatch(
    prompt=jnp.zeros((prompts, 1), jnp.int32),
    prompt_length=jnp.ones(prompts, jnp.int32),
    response=jnp.asarray(rows[..., None], jnp.int32),
    response_length=jnp.ones(rows.shape, jnp.int32),
    label=jnp.ones(prompts),
    weight=jnp.ones(prompts),
    score=jnp.asarray(score, jnp.float32),
  )


def losses(objective, policy, rows, score=None):
  batch = batch_of(rows, SCORE[rows] if score is None else score)
  logits = [jnp.broadcast_to(jnp.asarray(x, jnp.float32), (*rows.shape, 1, 5)) for x in (policy, REFERENCE)]

  @jax.jit
  def evaluate(*inputs):
    return objective.apply(fixtures.from_logits(objective.needs, *inputs), inputs[-1])

  return evaluate(*logits, batch)


def tuples(samples):
  """All that N samples can be, [5^N, N], with their probabilities under POLICY."""
  rows = np.array(list(itertools.product(range(5), repeat=samples)))
  return rows, softmax(POLICY)[rows].prod(axis=1)


def expected_gradient(objective, samples, score=None):
  rows, probability = tuples(samples)
  total = jax.value_and_grad(lambda x: jnp.sum(probability * losses(objective, x, rows, score).loss))
  return jax.jit(total)(jnp.asarray(POLICY, jnp.float32))


def weights(objective, score):
  """[N]: minus the derivative of the loss in the log-probabilities of the responses, without entropy and KL."""
  score = np.asarray(score)[None]
  batch = batch_of(np.zeros(score.shape, int), score)

  def loss(logp):
    return objective.apply(stats.StatTable.create({'logp': logp}, batch.response_length), batch).loss[0]

  return -np.asarray(jax.jit(jax.grad(loss))(jnp.full((*score.shape, 1), -1.0)), np.float64)[0, :, 0]


@pytest.mark.parametrize(
  ('objective', 'samples', 'measure', 'gamma', 'beta'),
  [
    (objectives.reverse_kl(0.3, 0.2, risk.cvar(0.6, tail='lower')), 4, cvar(0.6), 0.3, 0.2),
    (objectives.rlhf(0.2, risk.entropic(-0.5)), 4, entropic(-0.5), 0.0, 0.2),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (
        (objectives.rlhf(0.4, HALF), 4, cvar(0.5), 0.0, 0.4),
        (objectives.rlhf(0.0, risk.cvar(0.7, tail='lower')), 3, cvar(0.7), 0.0, 0.0),
        (objectives.reverse_kl(0.3, 0.0, risk.entropic(-1.5)), 2, entropic(-1.5), 0.3, 0.0),
      )
    ),
  ],
  ids=named,
)
def test_value_and_gradient_are_exact_for_the_measure_of_n_samples(objective, samples, measure, gamma, beta):
  rows, _ = tuples(samples)
  phi = np.array([of_samples(measure, row) for row in SCORE[rows]])
  log_reference = np.log(softmax(REFERENCE))

  def exact(policy):
    p = softmax(policy)
    penalty = p @ (gamma * np.log(p) + beta * (np.log(p) - log_reference))
    return penalty - p[rows].prod(axis=1) @ phi

  value, gradient = expected_gradient(objective, samples)
  np.testing.assert_allclose(value, exact(POLICY), atol=2e-6)
  np.testing.assert_allclose(gradient, derivative(exact, POLICY), atol=2e-6)


@pytest.mark.slow  # the gradient for few samples is exact above
@pytest.mark.parametrize(
  ('measure', 'oracle'),
  [
    (risk.cvar(0.3, tail='lower'), cvar(0.3)),
    pytest.param(HALF, cvar(0.5), marks=pytest.mark.slow),
    (risk.entropic(-1.0), entropic(-1.0)),
  ],
  ids=named,
)
def test_many_samples_give_the_gradient_of_the_measure_over_the_policy(measure, oracle):
  """Each response occurs in proportion to its probability; what is left of the bias falls with 1/N."""
  counts = np.array([3, 4, 2, 5, 2])
  policy = np.log(counts / 16)
  expected = derivative(lambda x: -oracle(SCORE, softmax(x)), policy)
  objective, errors = objectives.rlhf(0.0, measure), []
  for copies in (4, 16):
    rows = np.repeat(np.arange(5), copies * counts)[None]
    loss = jax.jit(jax.value_and_grad(lambda x, rows=rows: losses(objective, x, rows).loss[0]))
    value, gradient = loss(jnp.asarray(policy, jnp.float32))
    np.testing.assert_allclose(value, -oracle(SCORE, softmax(policy)), atol=2e-6)
    errors.append(np.abs(gradient - expected).max())
  assert errors[1] < 0.27 * errors[0] < 0.27 * 0.03
  assert np.abs(expected).max() > 0.2


def test_weights_under_cvar_have_their_closed_form_and_sum_to_minus_the_gap_at_the_quantile():
  """u_n = (1{s_n <= s_(k)} (s_n - q) / mu + s_(k) - Phi) / (N - 1), k = N mu, q = mu s_(k) + (1 - mu) s_(k+1)."""
  rng = np.random.default_rng(0)
  for count, kept in ((6, 3), (12, 3)):  # float32 rounds 1/6 and 1/12: k must not depend on it
    score, mu = rng.normal(size=count), kept / count
    ordered = np.sort(score)
    last, following = ordered[kept - 1], ordered[kept]
    quantile = mu * last + (1 - mu) * following
    tail = (score <= last) * (score - quantile) / mu
    expected = (tail + last - ordered[:kept].mean()) / (count - 1)
    found = weights(objectives.rlhf(0.0, risk.cvar(mu, tail='lower')), score)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(), -count * (1 - mu) * (following - last) / (count - 1), atol=2e-6)


@pytest.mark.parametrize('kappa', quick.first(1, [1.0, 0.01, 4.0]))
def test_weights_under_the_entropic_measure_have_their_closed_form(kappa):
  """u_n = (1 / kappa) log(1 + (1 - exp(-kappa (s_n - c))) / (N - 1)), which has at most the sum 0."""
  score = np.random.default_rng(1).normal(size=6)
  certain = of_samples(entropic(-kappa), score)
  expected = np.log1p((1 - np.exp(-kappa * (score - certain))) / 5) / kappa
  found = weights(objectives.rlhf(0.0, risk.entropic(-kappa)), score)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  assert found.sum() < 1e-6


def test_the_mean_in_the_general_form_is_the_leave_one_out_baseline():
  mean = dataclasses.replace(risk.expectation(), name='mean()', tail='lower')
  rows, _ = tuples(3)
  found, expected = (
    losses(objectives.reverse_kl(0.3, 0.2, measure), POLICY, rows) for measure in (mean, risk.expectation())
  )
  np.testing.assert_allclose(found.loss, expected.loss, atol=1e-6)
  score = np.array([0.5, -1.0, 2.0, 0.3])
  plain = [weights(objectives.rlhf(0.0, measure), score) for measure in (mean, risk.expectation())]
  np.testing.assert_allclose(*plain, atol=1e-6)
  np.testing.assert_allclose(plain[1], (score - score.mean()) / 3, atol=1e-6)


@pytest.mark.parametrize('neutral', [risk.cvar(1.0), risk.cvar(1, tail='lower'), risk.entropic(0.0)], ids=named)
def test_a_neutral_measure_is_the_objective_without_one_bit_for_bit(neutral):
  rows, _ = tuples(2)
  for with_measure, without in (
    (objectives.rlhf(0.4, neutral), objectives.rlhf(0.4)),
    (objectives.reverse_kl(0.3, 0.2, neutral), objectives.reverse_kl(0.3, 0.2)),
  ):
    found, expected = (losses(x, POLICY, rows) for x in (with_measure, without))
    np.testing.assert_array_equal(found.loss, expected.loss)
    assert found.metrics.keys() == expected.metrics.keys()
    assert with_measure.responses is None


@pytest.mark.slow  # it shows why the KL is outside; the gradient is exact above
@pytest.mark.parametrize(
  ('measure', 'dual'),
  [
    pytest.param(
      HALF, lambda s: oracles.upper_cvar_weights(-s, np.full(len(s), 1 / len(s)), 0.5), marks=pytest.mark.slow
    ),
    (risk.entropic(-2.0), lambda s: softmax(-2.0 * s)),
  ],
  ids=named,
)
def test_a_return_inside_the_measure_has_the_wrong_gradient(measure, dual):
  """It misses the derivative of the return itself: beta times the mean of grad log pi under the dual weights."""
  beta, samples = 0.6, 4
  rows, probability = tuples(samples)
  log_reference = np.log(softmax(REFERENCE))
  oracle = cvar(0.5) if measure == HALF else entropic(-2.0)

  def returns(policy):
    return SCORE[rows] - beta * (np.log(softmax(policy)) - log_reference)[rows]

  def exact(policy):
    phi = [of_samples(oracle, row) for row in returns(policy)]
    return -softmax(policy)[rows].prod(axis=1) @ np.array(phi)

  def inside(measure):
    return np.asarray(expected_gradient(objectives.rlhf(0.0, measure), samples, returns(POLICY))[1])

  expected = derivative(exact, POLICY)
  assert np.abs(inside(measure) - expected).max() > 0.02
  slopes = np.eye(5)[rows] - softmax(POLICY)  # [T, N, 5], grad log pi
  missing = beta * np.einsum('t,tn,tnv->v', probability, np.array([dual(row) for row in returns(POLICY)]), slopes)
  np.testing.assert_allclose(inside(measure) + missing, expected, atol=5e-6)
  # For the mean nothing is missing, which is why `rlhf` may put the KL into the return.
  _, whole = expected_gradient(objectives.rlhf(beta), samples)
  np.testing.assert_allclose(inside(risk.expectation()), whole, atol=2e-6)


@pytest.mark.slow  # on_policy_test.py adds one without a measure
@pytest.mark.parametrize('measure', [HALF, pytest.param(risk.entropic(-1.0), marks=pytest.mark.slow)], ids=named)
def test_a_constant_added_to_the_scores_shifts_the_value_and_leaves_the_gradient(measure):
  rows, _ = tuples(4)
  objective, score = objectives.rlhf(0.2, measure), SCORE[rows[7:8]]
  (loss, gradient), (shifted, same) = (
    jax.value_and_grad(lambda x, c=c: losses(objective, x, rows[7:8], score + c).loss[0])(
      jnp.asarray(POLICY, jnp.float32)
    )
    for c in (0.0, 512.0)
  )
  np.testing.assert_allclose(shifted, loss - 512.0, rtol=1e-6)
  np.testing.assert_allclose(same, gradient, atol=1e-6)
  assert np.abs(gradient).max() > 0.02


def test_metrics_report_the_measure_of_the_scores():
  rows, _ = tuples(2)
  term = losses(objectives.reverse_kl(0.3, 0.2, risk.entropic(-1.5)), POLICY, rows)
  assert set(term.metrics) == {'score', 'score_risk', 'entropy', 'kl'}
  expected = [of_samples(entropic(-1.5), row) for row in SCORE[rows]]
  np.testing.assert_allclose(term.metrics['score_risk'], expected, atol=1e-6)
  np.testing.assert_allclose(term.metrics['score'], SCORE[rows].mean(axis=1), atol=1e-6)


@pytest.mark.parametrize(
  'measure',
  [
    HALF.name.replace('lower', 'upper'),
    'cvar(0.5)',
    'entropic(1.0)',
    'worst_case()',
    "worst_case(tail='lower')",
    'mean_semideviation(0.5)',
    '0.5',
  ],
)
def test_another_measure_is_refused_with_those_that_fit(measure):
  message = r"rlhf: risk must be expectation\(\), cvar\(level, tail='lower'\) or entropic\(-kappa\) .*, got "
  with pytest.raises(ValueError, match=message):
    objectives.parse(f'rlhf(risk={measure})')


@pytest.mark.parametrize(
  ('expression', 'samples', 'message'),
  [
    (
      "rlhf(risk=cvar(0.25, tail='lower'))",
      6,
      r"rlhf: cvar\(level=0.25, tail='lower'\) depends on a share 0.25 of the N = 6 responses to a prompt, which is "
      r'1.5 of them, and needs at least 2: sample N >= 8 responses or raise the level to 0.334',
    ),
    ("reverse_kl(risk=cvar(0.5, tail='lower'))", 1, r'(?m)reverse_kl: .* N = 1 .* 2: sample N >= 4 responses$'),
    ('reverse_kl(risk=entropic(-1.0))', 1, r'(?m)reverse_kl: entropic\(kappa=-1.0\) .*: sample N >= 2 responses$'),
  ],
)
def test_too_few_responses_are_refused_when_traced_and_from_the_declaration(expression, samples, message):
  objective = objectives.parse(expression)
  fewest = min(objective.responses)
  for count in (samples, fewest - 1):
    with pytest.raises(ValueError, match=message if count == samples else 'needs at least 2'):
      jax.eval_shape(lambda count=count: losses(objective, POLICY, np.zeros((1, count), int)).loss)
  jax.eval_shape(lambda: losses(objective, POLICY, np.zeros((1, fewest), int)).loss)
  objectives.check_batch(objective, ('score',), fewest)
  with pytest.raises(
    ValueError, match=f'{objective.label} needs N >= {fewest} responses to a prompt, but the data has'
  ):
    objectives.check_batch(objective, ('score',), fewest - 1)


def test_a_third_of_six_responses_are_two():
  for level in (1 / 3, 2 / 6, 0.2, 0.1, 0.05, 0.7):
    assert min(objectives.rlhf(risk=risk.cvar(level, tail='lower')).responses) == int(np.ceil(round(2 / level, 6)))


def test_a_sum_with_an_objective_of_pairs_names_both():
  with pytest.raises(ValueError, match='rlhf is defined for N >= 4 responses to a prompt, dpo for N = 2'):
    objectives.rlhf(risk=HALF) + objectives.dpo()
  assert (objectives.rlhf(risk=risk.entropic(-1.0)) + objectives.ra_dpo()).responses == 2
