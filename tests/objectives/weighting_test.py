"""The properties of importance-sampled alignment and of on-policy weighting."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives, stats
from tests import fixtures

BATCH = dataclasses.replace(fixtures.preference_batch(seed=1), behaviour_logp=None)
POLICY, REFERENCE = fixtures.logits(1, BATCH), fixtures.logits(2, BATCH)
PLAIN = (objectives.dpo(0.3), objectives.ipo(0.3), objectives.hinge(0.3))


def named(objective):
  return objective.label


def term(objective, policy=POLICY, reference=REFERENCE, batch=BATCH):
  return objective.apply(stats.from_logits(objective.needs, policy, reference, batch), batch)


def gradient(objective, policy=POLICY, reference=REFERENCE, batch=BATCH):
  return jax.grad(lambda x: jnp.sum(term(objective, x, reference, batch).loss))(policy)


def of_ratios(objective, chosen, rejected=0.0, **fields):
  return of_ratios_of(objective, **fields)(chosen, rejected)


def of_ratios_of(objective, **fields):
  """A function of both log-ratios: loss, weight and gradients of one pair of one-token responses."""
  batch = fixtures.preference_batch(prompts=1, response_size=1)
  batch = dataclasses.replace(
    batch,
    **{'behaviour_logp': None, 'label': jnp.ones(1), 'response_length': jnp.ones((1, 2), jnp.int32), **fields},
  )

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def apply(logp):
    table = stats.StatTable.create({'logp': logp, 'reference_logp': jnp.zeros((1, 2, 1))}, batch.response_length)
    result = objective.apply(table, batch)
    return result.loss[0], result.metrics

  def compute(chosen, rejected):
    (loss, metrics), slope = apply(jnp.asarray([[[chosen], [rejected]]], jnp.float32))
    return float(loss), float(metrics['importance/weight'][0]), np.asarray(slope)[0, :, 0]

  return compute


@pytest.mark.slow  # the gradient is the weighted plain one, below
@pytest.mark.parametrize('plain', PLAIN, ids=lambda objective: objective.label)
@pytest.mark.parametrize('clip', [0.01, 0.25, None])
def test_at_the_reference_loss_and_gradient_are_the_plain_ones(plain, clip):
  weighted = objectives.importance_weighted(plain, clip=clip)
  np.testing.assert_array_equal(term(weighted, REFERENCE).loss, term(plain, REFERENCE).loss)
  np.testing.assert_array_equal(gradient(weighted, REFERENCE), gradient(plain, REFERENCE))


@pytest.mark.parametrize(('clip', 'largest'), [(0.25, 1.64872), pytest.param(1.0, 7.38906, marks=pytest.mark.slow)])
def test_weights_are_positive_and_capped_on_the_sum_of_both_log_ratios_and_not_below(clip, largest):
  evaluate = of_ratios_of(objectives.importance_weighted(objectives.dpo(), clip=clip))
  for chosen, rejected in itertools.product((-1000.0, -3.0, -0.1, 0.3, 2.0, 1000.0), repeat=2):
    _, weight, slope = evaluate(chosen, rejected)
    assert 0 <= weight <= largest + 1e-5
    total = chosen + rejected
    np.testing.assert_allclose(weight, np.exp(min(total, 2 * clip)), rtol=1e-5)
    assert (weight >= largest - 1e-5) == (total >= 2 * clip)
    assert np.all(np.isfinite(slope))


def test_one_response_may_exceed_its_share_if_the_other_compensates():
  _, weight, _ = of_ratios(objectives.importance_weighted(objectives.dpo(), clip=0.25), 5.0, -4.8)
  assert weight == pytest.approx(math.exp(0.2), rel=1e-5)


@pytest.mark.parametrize('plain', PLAIN, ids=lambda objective: objective.label)
def test_the_gradient_is_the_plain_one_times_a_constant_weight(plain):
  weighted = objectives.importance_weighted(plain, clip=2.0)
  weight = term(weighted).metrics['importance/weight']
  np.testing.assert_allclose(gradient(weighted), weight[:, None, None, None] * gradient(plain), rtol=1e-5, atol=1e-7)
  live = jax.grad(lambda x: jnp.sum(_live_weight(x) * term(plain, x).loss))(POLICY)
  assert np.abs(live - gradient(weighted)).max() > 1e-3  # what a weight with gradient would add


def _live_weight(policy):
  table = stats.from_logits({stats.logp, stats.reference_logp}, policy, REFERENCE, BATCH)
  return jnp.exp(jnp.minimum(table.log_ratio().sum(-1), 4.0))


def test_weights_depend_on_the_sum_of_log_ratios_and_margins_on_their_difference():
  objective = objectives.importance_weighted(objectives.dpo(0.3), clip=10.0)
  loss, weight, _ = of_ratios(objective, 0.7, -0.4)
  assert of_ratios(objective, -0.4, 0.7)[1] == pytest.approx(weight, rel=1e-6)
  shifted, heavier, _ = of_ratios(objective, 0.7 + 1.5, -0.4 + 1.5)
  assert heavier == pytest.approx(weight * math.exp(3.0), rel=1e-5)
  assert shifted / heavier == pytest.approx(loss / weight, rel=1e-5)


class Bandit:
  """K responses to one prompt, each of one token: every expectation is a finite sum."""

  def __init__(self, responses=5, seed=0):
    rng = np.random.default_rng(seed)
    self.size = responses
    self.reference = jax.nn.log_softmax(jnp.asarray(rng.standard_normal(responses), jnp.float32))
    self.policy = jnp.asarray(rng.standard_normal(responses), jnp.float32)  # logits
    self.gold = rng.standard_normal(responses)
    self.pairs = np.array(list(itertools.product(range(responses), repeat=2)))

  def total(self, objective, logits, weight):
    """Sum over all ordered pairs of weight times loss."""
    count = len(self.pairs)
    batch = fixtures.preference_batch(prompts=count, response_size=1)
    batch = dataclasses.replace(
      batch,
      response=jnp.asarray(self.pairs)[..., None],
      response_length=jnp.ones((count, 2), jnp.int32),
      label=jax.nn.sigmoid(jnp.asarray(self.gold[self.pairs[:, 0]] - self.gold[self.pairs[:, 1]], jnp.float32)),
      weight=weight,
      behaviour_logp=None,
    )
    policy, reference = (jnp.broadcast_to(x, (count, 2, 1, self.size)) for x in (logits, self.reference))
    return jnp.sum(weight * term(objective, policy, reference, batch).loss)

  def probability(self, log_probs):
    return jnp.exp(log_probs[self.pairs]).prod(-1)


@pytest.mark.parametrize(
  'plain', [PLAIN[1], *(pytest.param(plain, marks=pytest.mark.slow) for plain in PLAIN[::2])], ids=named
)
def test_unclipped_weights_turn_the_expectation_over_the_reference_into_one_over_the_policy(plain):
  bandit = Bandit()
  offline, online = bandit.probability(bandit.reference), bandit.probability(jax.nn.log_softmax(bandit.policy))
  weighted = objectives.importance_weighted(plain, clip=None)
  found = jax.jit(jax.grad(lambda x: bandit.total(weighted, x, offline)))(bandit.policy)
  plainly = jax.jit(jax.grad(lambda x, weight: bandit.total(plain, x, weight)))
  expected = plainly(bandit.policy, online)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
  assert np.abs(expected - plainly(bandit.policy, offline)).max() > 1e-2


def test_moments_of_the_weights_under_the_reference():
  bandit = Bandit()
  offline, logq = bandit.probability(bandit.reference), jax.nn.log_softmax(bandit.policy)
  weight = jnp.exp((logq - bandit.reference)[bandit.pairs].sum(-1))
  chi_squared = jnp.sum(jnp.exp(2 * logq - bandit.reference)) - 1
  np.testing.assert_allclose(jnp.sum(offline * weight), 1.0, rtol=1e-5)
  np.testing.assert_allclose(jnp.sum(offline * weight**2), (1 + chi_squared) ** 2, rtol=1e-5)
  one = objectives.importance_weighted(_unit(), clip=None)
  np.testing.assert_allclose(bandit.total(one, bandit.policy, offline), 1.0, rtol=1e-5)
  for clip in (0.05, 0.5):
    clipped = bandit.total(objectives.importance_weighted(_unit(), clip=clip), bandit.policy, offline)
    assert clipped < 1.0  # clipping only takes away


def _unit():
  """An objective whose loss is 1: its weighted mean is the mean weight."""
  return objectives.Objective(
    frozenset({stats.logp}),
    lambda table, batch: type(term(PLAIN[0]))(jnp.ones(len(table.length)) + 0.0 * table.sum(stats.logp)[:, 0], {}),
  )


def test_only_on_policy_pairs_make_the_squared_margin_a_kl_penalty():
  bandit = Bandit()

  def squared(logits, log_probs):
    ratio = jax.nn.log_softmax(logits) - bandit.reference
    margin = ratio[bandit.pairs[:, 0]] - ratio[bandit.pairs[:, 1]]
    return jnp.sum(jax.lax.stop_gradient(bandit.probability(log_probs)) * margin**2 / 2)

  def kl(logits):
    logq = jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(logq) * (logq - bandit.reference))

  logq = jax.nn.log_softmax(bandit.policy)
  expected = 2 * jax.grad(kl)(bandit.policy)
  np.testing.assert_allclose(jax.grad(squared)(bandit.policy, logq), expected, rtol=1e-4, atol=1e-5)
  assert np.abs(jax.grad(squared)(bandit.policy, bandit.reference) - expected).max() > 1e-2


def test_where_a_policy_fits_every_pair_all_clips_share_its_stationary_point():
  bandit = Bandit()
  optimum = bandit.reference + bandit.gold / 0.3  # whose margin is that of the labels, for every pair
  for clip in (0.05, 0.25, None):
    batch_gradient = jax.grad(
      lambda x, clip=clip: bandit.total(
        objectives.importance_weighted(objectives.dpo(0.3), clip=clip), x, bandit.probability(bandit.reference)
      )
    )
    np.testing.assert_allclose(batch_gradient(optimum), 0.0, atol=1e-6)
    assert np.abs(batch_gradient(bandit.policy)).max() > 1e-3


def test_weights_do_not_fall_when_the_clip_rises():
  weights = np.stack(
    [
      term(objectives.importance_weighted(objectives.dpo(), clip=clip)).metrics['importance/weight']
      for clip in (1e-6, 0.1, 1.0, 10.0, None)
    ]
  )
  assert np.all(np.diff(weights, axis=0) >= 0)
  ratio = np.exp(np.asarray(term(objectives.importance_weighted(objectives.dpo())).metrics['importance/log_weight']))
  np.testing.assert_allclose(weights[0], np.minimum(ratio, 1.0), rtol=1e-4)
  np.testing.assert_allclose(weights[-1], ratio, rtol=1e-4)


@pytest.mark.parametrize('mass', [0.05, 5e-5])
def test_pairs_that_the_policy_has_left_are_muted_not_pulled_back(mass):
  ratio = math.log(mass / 0.5)
  loss, weight, slope = of_ratios(objectives.importance_weighted(objectives.dpo(0.1)), ratio, ratio)
  plain = of_ratios(objectives.importance_weighted(objectives.dpo(0.1), clip=None), 0.0, 0.0)[0]
  assert plain == pytest.approx(math.log(2))
  assert weight == pytest.approx((mass / 0.5) ** 2, rel=1e-4)
  assert loss == pytest.approx(weight * math.log(2), rel=1e-4)
  np.testing.assert_allclose(slope, [-0.05 * weight, 0.05 * weight], rtol=1e-4)


def test_stored_behaviour_log_probabilities_enter_the_weight_and_not_the_margin():
  objective = objectives.importance_weighted(objectives.dpo(0.3), clip=10.0)
  stored = jnp.asarray([[0.2, -0.5]])
  loss, weight, _ = of_ratios(objective, 0.7, -0.4, behaviour_logp=stored)
  assert weight == pytest.approx(math.exp(0.7 - 0.4 - 0.2 + 0.5), rel=1e-5)
  plain = -math.log(1 / (1 + math.exp(-0.3 * 1.1)))
  assert loss / weight == pytest.approx(plain, rel=1e-5)


def test_per_length_weights_lie_between_one_and_the_raw_ones():
  ais = objectives.importance_weighted(objectives.dpo(), clip=None, per_length=True)
  equal = dataclasses.replace(BATCH, response_length=jnp.full((6, 2), 4, jnp.int32))
  metrics = term(ais, batch=equal).metrics
  raw = term(objectives.importance_weighted(objectives.dpo(), clip=None), batch=equal).metrics
  np.testing.assert_allclose(metrics['importance/log_weight'], raw['importance/log_weight'] / 4, rtol=1e-5)
  one, two = np.asarray(metrics['importance/weight']), np.asarray(raw['importance/weight'])
  assert np.all((one - 1) * (two - one) >= 0)


def test_behaviour_log_probabilities_per_token_count_where_there_are_none_per_response():
  objective = objectives.importance_weighted(objectives.dpo(), clip=None)
  rng = np.random.default_rng(7)
  tokens = jnp.asarray(-rng.exponential(size=BATCH.response.shape), jnp.float32)
  mask = np.arange(tokens.shape[-1]) < np.asarray(BATCH.response_length)[..., None]
  sums = np.where(mask, np.asarray(tokens, np.float64), 0.0).sum(-1)
  neither = dataclasses.replace(BATCH, behaviour_logp=None)
  per_token = dataclasses.replace(neither, cached={stats.BEHAVIOUR_TOKEN_LOGP: tokens})
  per_response = dataclasses.replace(neither, behaviour_logp=jnp.asarray(sums, jnp.float32))
  other = dataclasses.replace(BATCH, behaviour_logp=jnp.asarray(sums - 0.5, jnp.float32))
  both = dataclasses.replace(other, cached=per_token.cached)

  def loss(batch):
    table = stats.from_logits(objective.needs, POLICY, REFERENCE, batch)
    return np.asarray(objective.apply(table, batch).loss)

  np.testing.assert_allclose(loss(per_token), loss(per_response), rtol=1e-5)
  assert np.abs(loss(per_token) / loss(neither) - 1).max() > 0.1
  np.testing.assert_array_equal(loss(both), loss(other))
  np.testing.assert_allclose(stats.behaviour_logp(per_token), sums, rtol=1e-6)
  assert not np.any(np.asarray(stats.behaviour_token_logp(per_token))[~mask])
  assert stats.behaviour_logp(neither) is None


def test_self_normalised_weights_average_to_one_over_the_batch():
  objective = objectives.importance_weighted(objectives.dpo(), self_normalised=True)
  weight = np.asarray(term(objective).metrics['importance/weight'])
  assert objective.couples_rows
  np.testing.assert_allclose(np.average(weight, weights=BATCH.weight), 1.0, rtol=1e-5)


def test_the_summary_gives_effective_sample_share_and_spread():
  objective = 2.0 * objectives.importance_weighted(objectives.dpo(), clip=1.0) + objectives.sft()
  metrics = term(objective).metrics
  means = {name: jnp.average(value, weights=BATCH.weight) for name, value in metrics.items()}
  summary = objective.summary(means)
  w, s = (np.asarray(metrics[f'importance/{name}'], np.float64) for name in ('weight', 'log_weight'))
  expected = np.average(w, weights=BATCH.weight) ** 2 / np.average(w**2, weights=BATCH.weight)
  np.testing.assert_allclose(summary['importance/effective_sample_share'], expected, rtol=1e-5)
  spread = np.sqrt(np.average((s - np.average(s, weights=BATCH.weight)) ** 2, weights=BATCH.weight))
  np.testing.assert_allclose(summary['importance/log_weight_deviation'], spread, rtol=1e-4)


def train_gaussian(objective, seed, steps=600, count=1500, rate=0.1, beta=0.01):
  """Full-batch gradient descent of N(theta, I) on pairs from N(0, I) that a concave gold reward has labelled."""
  rng = np.random.default_rng(seed)
  gold = lambda x: 1.5 * x[..., 0] - 0.35 * np.sum(x**2, -1)  # noqa: E731
  x = rng.standard_normal((count, 2, 2))
  wins = rng.uniform(size=count) < 1 / (1 + np.exp(gold(x[:, 1]) - gold(x[:, 0])))
  x = jnp.asarray(np.where(wins[:, None, None], x, x[:, ::-1]), jnp.float32)
  ones = jnp.ones((count, 2), jnp.int32)
  batch = fixtures.preference_batch(prompts=count, response_size=1)
  batch = dataclasses.replace(
    batch, response_length=ones, label=jnp.ones(count), weight=jnp.ones(count), behaviour_logp=None
  )

  def loss(theta):
    ratio = x @ theta - 0.5 * theta @ theta
    values = {'logp': ratio[..., None], 'reference_logp': jnp.zeros((count, 2, 1))}
    return jnp.mean(objective.apply(stats.StatTable.create(values, ones), batch).loss) / beta

  def step(theta, _):
    return theta - rate * jax.grad(loss)(theta), None

  theta, _ = jax.jit(lambda theta: jax.lax.scan(step, theta, length=steps))(jnp.zeros(2))
  theta = np.asarray(theta, np.float64)
  return 1.5 * theta[0] - 0.35 * theta @ theta, theta @ theta / 2


@pytest.mark.slow
def test_on_a_gaussian_bandit_dpo_over_optimises_and_importance_weights_bound_it():
  plain = objectives.dpo(0.01)
  runs = {
    name: np.array([train_gaussian(objective, seed) for seed in range(3)])
    for name, objective in (
      ('dpo', plain),
      ('clipped', objectives.importance_weighted(plain, clip=0.25)),
      ('unclipped', objectives.importance_weighted(plain, clip=None)),
    )
  }
  gold = {name: values[:, 0] for name, values in runs.items()}
  assert np.all(gold['dpo'] < -10)  # far beyond the peak of 1.607
  assert np.all(gold['clipped'] > 0.8)
  assert np.all(runs['clipped'][:, 1] < 8)  # nats of KL, where DPO's grows without bound
  assert np.all(runs['dpo'][:, 1] > 40)
  assert gold['clipped'].std() < gold['unclipped'].std()


def test_wpo_weights_a_response_that_the_policy_would_draw_by_one():
  uniform = jnp.zeros_like(POLICY)
  metrics = term(objectives.wpo_weighted(objectives.dpo(), cap=None), uniform).metrics
  np.testing.assert_allclose(metrics['wpo/weight'], 1.0, rtol=1e-5)
  likely = POLICY + 4.0 * jax.nn.one_hot(BATCH.response, 11)
  capped = term(objectives.wpo_weighted(objectives.dpo()), likely).metrics['wpo/weight']
  free = term(objectives.wpo_weighted(objectives.dpo(), cap=None), likely).metrics['wpo/weight']
  np.testing.assert_allclose(capped, np.minimum(free, 1.0), rtol=1e-6)
  assert np.any(free > 1)
  assert np.any(free < 1)


@pytest.mark.parametrize(
  ('build', 'message'),
  [
    (lambda: objectives.importance_weighted(0.1), 'importance_weighted: the first argument must be an objective'),
    (lambda: objectives.importance_weighted(objectives.dpo(), clip=0), 'clip must be positive'),
    (lambda: objectives.wpo_weighted(objectives.dpo(), cap=-1.0), 'cap must be positive'),
    (lambda: objectives.wpo_weighted('dpo()'), 'wpo_weighted: the first argument must be an objective'),
  ],
)
def test_what_cannot_be_is_named(build, message):
  with pytest.raises(ValueError, match=message):
    build()


def token_weighted(cap=2.0):
  """`tis(sft())` on the batch, and the log-probabilities of its tokens."""
  logp = stats.from_logits({stats.logp}, POLICY, None, BATCH)[stats.logp]
  return objectives.tis(objectives.sft(), cap=cap), np.asarray(logp)


@pytest.mark.parametrize('drift', [-1.0, 0.0, 0.5, 3.0])
def test_the_gradient_through_each_token_is_weighted_by_its_own_ratio(drift):
  """One token is `drift` nats likelier than when it was drawn, and all others as likely."""
  objective, logp = token_weighted()
  moved = np.zeros_like(logp)
  moved[0, 0, 0] = drift
  batch = dataclasses.replace(BATCH, cached={stats.BEHAVIOUR_TOKEN_LOGP: jnp.asarray(logp - moved)})
  found = gradient(objective, batch=batch)
  plain = gradient(objectives.sft())
  expected = np.array(plain)
  expected[0, 0, 0] *= min(math.exp(drift), 2.0)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)
  np.testing.assert_array_equal(term(objective, batch=batch).loss, term(objectives.sft()).loss)
  metrics = term(objective, batch=batch).metrics
  lengths = np.asarray(BATCH.response_length, np.float64)
  assert metrics['token_weight_capped'][0] == pytest.approx((drift == 3.0) / lengths[0, 0] / 2)
  assert metrics['token_weight'][0] == pytest.approx(1 + (min(math.exp(drift), 2.0) - 1) / lengths[0, 0] / 2, rel=1e-5)


def test_a_batch_without_the_sampler_is_refused():
  objective, _ = token_weighted()
  with pytest.raises(ValueError, match='behaviour_token_logp'):
    term(objective, batch=dataclasses.replace(BATCH, cached={}))
  with pytest.raises(ValueError, match=r'tis: cap must be at least 1, got 0.5'):
    objectives.tis(objectives.sft(), cap=0.5)
