"""The properties of token-level and risk-aware DPO: limits, gradients, invariances, stop-gradients and precision."""

import dataclasses
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives, risk, stats
from alignjax.objectives import token_level
from alignjax.types import Term
from tests import fixtures, quick
from tests.oracles import risk as oracles

BATCH = fixtures.preference_batch(seed=1)
POLICY, REFERENCE = fixtures.logits(1, BATCH), fixtures.logits(2, BATCH)


def losses(objective, policy=POLICY, reference=REFERENCE, batch=BATCH):
  return objective.apply(stats.from_logits(objective.needs, policy, reference, batch), batch).loss


def losses_and_gradient(objective, policy=POLICY, reference=REFERENCE, batch=BATCH):
  def total(x):
    found = losses(objective, x, reference, batch)
    return jnp.sum(found), found

  (_, found), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(policy)
  return found, gradient


def gradient(*inputs, **named):
  return losses_and_gradient(*inputs, **named)[1]


def statistic(stat, policy, reference, batch=BATCH):
  return stats.from_logits([stat], policy, reference, batch)[stat]


def assert_same(one, two, rtol=1e-5, atol=1e-6):
  (found, slope), (expected, expected_slope) = losses_and_gradient(one), losses_and_gradient(two)
  np.testing.assert_allclose(found, expected, rtol=rtol)
  np.testing.assert_allclose(slope, expected_slope, rtol=rtol, atol=atol)


@pytest.mark.parametrize('variant', quick.first(1, [2, 1]))
@pytest.mark.parametrize('measure', quick.first(1, [risk.cvar(1.0), risk.expectation(), risk.entropic(0.0)]))
def test_a_neutral_measure_is_tdpo_in_loss_and_gradient(measure, variant):
  assert_same(objectives.ra_dpo(measure, 0.3, 0.7, variant), objectives.tdpo(0.3, 0.7, variant))


@pytest.mark.slow  # at the limit itself it is compared above
def test_small_aversion_tends_to_tdpo():
  exact = losses(objectives.tdpo(0.3))
  errors = [
    np.abs(losses(objectives.ra_dpo(measure, 0.3)) - exact).max()
    for measure in (risk.entropic(1e-1), risk.entropic(1e-3), risk.cvar(0.9), risk.cvar(0.999))
  ]
  assert errors[1] < 0.02 * errors[0]
  assert errors[3] < 0.02 * errors[2]


@pytest.mark.parametrize(
  'objective',
  quick.first(
    1,  # golden_test.py has the released form
    [
      objectives.ra_dpo(risk.cvar(0.5), 0.2, alpha=0.0),
      objectives.ra_dpo_released(confidence=0.0, beta=0.2, variant=1),
      objectives.ra_dpo_released(confidence=0.0, beta=0.2, variant=2, split_vocabulary=False),
      objectives.tdpo(0.2, alpha=0.0),
    ],
  ),
)
def test_without_correction_it_is_dpo(objective):
  assert_same(objective, objectives.dpo(0.2))


@pytest.mark.parametrize('split', [True, False])
def test_the_released_form_at_full_confidence_is_the_kl_without_the_smallest_atom_of_each_part(split):
  objective = objectives.ra_dpo_released(confidence=1.0, split_vocabulary=split)
  (stat,) = (stat for stat in objective.needs if stat.name.startswith('released'))
  logp, logq = (np.asarray(jax.nn.log_softmax(x), np.float64) for x in (REFERENCE, POLICY))
  drift = logp - logq
  expected = np.sum(np.exp(logp) * drift, -1)
  for part in np.split(np.arange(11), [5]) if split else (np.arange(11),):
    smallest = drift[..., part].argmin(-1)[..., None]
    p, d = (np.take_along_axis(x[..., part], smallest, -1)[..., 0] for x in (np.exp(logp), drift))
    expected -= p * d
  found = statistic(stat, POLICY, REFERENCE)
  mask = np.arange(7) < np.asarray(BATCH.response_length)[..., None]
  np.testing.assert_allclose(found, np.where(mask, expected, 0), rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_risk_ratio_in_the_logits_is_the_policy_minus_the_dual_weights():
  logits, reference = POLICY[0, 0, 0], REFERENCE[0, 0, 0]
  q, logp = jax.nn.softmax(logits), jax.nn.log_softmax(reference)
  drift = logp - jax.nn.log_softmax(logits)

  def ratio(measure, logits):
    return stats.risk_ratio(measure)(jax.nn.log_softmax(logits), logp, jnp.zeros((), jnp.int32))

  cases = (
    (risk.expectation(), jnp.exp(logp)),
    (risk.entropic(0.8), jax.nn.softmax(logp + 0.8 * drift)),
    (risk.cvar(0.6), oracles.upper_cvar_weights(*(np.asarray(x, np.float64) for x in (drift, jnp.exp(logp))), 0.6)),
  )
  for measure, weights in cases:
    found = jax.jit(jax.grad(lambda x, measure=measure: ratio(measure, x)))(logits)
    np.testing.assert_allclose(found, q - weights, atol=1e-6)
    np.testing.assert_allclose(found.sum(), 0.0, atol=1e-6)


def test_a_constant_added_to_the_logits_changes_nothing():
  shift = jnp.linspace(-3, 3, POLICY[..., 0].size).reshape(*POLICY.shape[:-1], 1)
  for objective in (objectives.tdpo(), objectives.ra_dpo(risk.entropic(2.0)), objectives.ra_dpo(risk.cvar(0.4))):
    np.testing.assert_allclose(losses(objective, POLICY + shift, REFERENCE - 2 * shift), losses(objective), rtol=1e-5)


def test_the_released_risk_is_neither_translation_equivariant_nor_independent_of_the_order_of_ids():
  drift, logp = jnp.linspace(-1, 1, 10), jnp.log(jnp.full(10, 0.1))
  risk_of = jax.jit(token_level._partial_expectation, static_argnums=(2, 3))
  plain = risk_of(drift, logp, 0.7, True)
  assert abs(risk_of(drift + 1.0, logp, 0.7, True) - plain - 1.0) > 0.1
  assert abs(risk_of(drift, logp, 0.7, False) - plain) > 1e-3
  order = np.random.default_rng(0).permutation(10)
  assert abs(risk_of(drift[order], logp[order], 0.7, True) - plain) > 1e-3


def test_risk_ratios_are_ordered_and_zero_only_at_the_reference():
  kl = statistic(stats.forward_kl, POLICY, REFERENCE)
  measures = [risk.expectation(), risk.cvar(0.9), risk.cvar(0.5), risk.cvar(0.05), risk.worst_case()]
  ratios = np.stack([statistic(stats.risk_ratio(measure), POLICY, REFERENCE) for measure in measures])
  assert np.all(np.diff(ratios, axis=0) >= -1e-5)
  np.testing.assert_allclose(ratios[0], kl, rtol=1e-5, atol=1e-6)
  mask = np.arange(7) < np.asarray(BATCH.response_length)[..., None]
  assert np.all(ratios[:, mask] > 0)
  for measure in measures:
    assert not np.any(statistic(stats.risk_ratio(measure), REFERENCE, REFERENCE))
  lower = statistic(stats.risk_ratio(risk.cvar(0.9, tail='lower')), POLICY, REFERENCE)
  assert np.all((lower <= kl)[mask])
  near = REFERENCE + 1e-2 * POLICY
  assert np.any(statistic(stats.risk_ratio(risk.cvar(0.9, tail='lower')), near, REFERENCE) < -1e-3)  # no divergence


@pytest.mark.parametrize('kappa', [0.5, 3.0])
def test_for_small_drift_the_entropic_ratio_is_one_plus_kappa_times_the_kl(kappa):
  near = REFERENCE + 1e-2 * POLICY
  kl = statistic(stats.forward_kl, near, REFERENCE).sum()
  ratio = statistic(stats.risk_ratio(risk.entropic(kappa)), near, REFERENCE).sum()
  assert float(ratio / kl) == pytest.approx(1 + kappa, rel=2e-2)


@pytest.mark.parametrize('measure', [risk.cvar(0.7), risk.entropic(1.5), risk.mean_semideviation(0.5)])
def test_a_risk_ratio_is_convex_in_the_logits_of_the_policy(measure):
  other = fixtures.logits(7, BATCH)
  stat = stats.risk_ratio(measure)
  middle = statistic(stat, 0.4 * POLICY + 0.6 * other, REFERENCE)
  chord = 0.4 * statistic(stat, POLICY, REFERENCE) + 0.6 * statistic(stat, other, REFERENCE)
  assert np.all(middle <= chord + 1e-5)


@pytest.mark.parametrize('measure', quick.first(1, [risk.cvar(0.7), risk.entropic(1.5), risk.expectation()]))
def test_an_id_that_the_reference_never_uses_is_only_pushed_down(measure):
  banned = REFERENCE.at[..., 4].set(-jnp.inf)
  stat = stats.risk_ratio(measure)

  def total(policy):
    return jnp.sum(statistic(stat, policy, banned))

  value, found = jax.value_and_grad(total)(POLICY)
  assert np.isfinite(value)
  mask = np.arange(7) < np.asarray(BATCH.response_length)[..., None]
  np.testing.assert_allclose(found[..., 4], np.where(mask, jax.nn.softmax(POLICY)[..., 4], 0.0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('measure', [risk.cvar(0.3), risk.entropic(4.0), risk.expectation(), risk.worst_case()])
def test_a_certain_reference_token_costs_its_negative_log_probability(measure):
  certain = jnp.full_like(REFERENCE, -jnp.inf).at[..., 2].set(0.0)
  found = statistic(stats.risk_ratio(measure), POLICY, certain)
  mask = np.arange(7) < np.asarray(BATCH.response_length)[..., None]
  np.testing.assert_allclose(found, np.where(mask, -jax.nn.log_softmax(POLICY)[..., 2], 0.0), rtol=1e-5)


CONSISTENT = (objectives.tdpo(0.3), objectives.ra_dpo(risk.cvar(0.6), 0.3), objectives.ra_dpo(risk.entropic(2.0), 0.3))


def test_permuting_the_vocabulary_changes_nothing_but_the_released_form_with_split():
  order = np.random.default_rng(3).permutation(11)
  moved = dataclasses.replace(BATCH, response=jnp.asarray(np.argsort(order))[BATCH.response])

  def permuted(objective):
    return losses(objective, POLICY[..., order], REFERENCE[..., order], moved)

  for objective in CONSISTENT:
    np.testing.assert_allclose(permuted(objective), losses(objective), rtol=1e-5)
  released = objectives.ra_dpo_released(confidence=0.6, beta=0.3)
  assert np.abs(permuted(released) - losses(released)).max() > 1e-3


@pytest.mark.slow  # a permutation of the vocabulary is tested above, probabilities of 0 in stats/head_test.py
def test_masked_vocabulary_rows_change_nothing():
  def padded(logits):
    return jnp.pad(logits, ((0, 0),) * 3 + ((0, 5),), constant_values=-jnp.inf)

  for objective in CONSISTENT[1:]:
    np.testing.assert_allclose(losses(objective, padded(POLICY), padded(REFERENCE)), losses(objective), rtol=1e-5)
    np.testing.assert_allclose(
      gradient(objective, padded(POLICY), padded(REFERENCE))[..., :11], gradient(objective), rtol=1e-4, atol=1e-6
    )


def swapped(tree):
  """Exchanges both responses of every prompt."""
  return jax.tree.map(lambda x: x[:, ::-1] if x.ndim > 1 and x.shape[1] == 2 else x, tree)


def test_exchanging_the_responses_flips_the_logit_of_variant_one():
  batch = dataclasses.replace(BATCH, label=jnp.ones(6))
  other = dataclasses.replace(swapped(batch), prompt=batch.prompt)
  for measure in (risk.cvar(0.6), risk.entropic(2.0)):
    objective = objectives.ra_dpo(measure, 0.3, variant=1)
    one, two = losses(objective, batch=batch), losses(objective, POLICY[:, ::-1], REFERENCE[:, ::-1], other)
    # -log sigmoid(x) and -log sigmoid(-x)
    np.testing.assert_allclose(jnp.exp(-one) + jnp.exp(-two), 1.0, rtol=1e-5)


def test_both_variants_have_one_value_and_different_gradients():
  one, two = (objectives.ra_dpo(risk.cvar(0.6), 0.3, alpha=1.0, variant=variant) for variant in (1, 2))
  np.testing.assert_allclose(losses(one), losses(two), rtol=1e-6)
  assert np.abs(gradient(one) - gradient(two)).max() > 1e-3


def test_variant_two_has_no_gradient_through_the_drift_of_the_preferred_response():
  batch = dataclasses.replace(BATCH, label=jnp.ones(6))
  objective = objectives.ra_dpo(risk.cvar(0.6), 0.3, alpha=0.8)
  found = gradient(objective, batch=batch)
  (drift,) = (stat for stat in objective.needs if stat.name.startswith('risk_ratio'))

  def parts(policy):
    table = stats.from_logits(objective.needs, policy, REFERENCE, batch)
    return table.log_ratio(), table.sum(drift)

  log_ratio, ratio = parts(POLICY)
  logit = log_ratio[:, 0] - log_ratio[:, 1] - 0.8 * (ratio[:, 1] - ratio[:, 0])
  slope = -0.3 * jax.nn.sigmoid(-0.3 * logit)

  def linear(policy):
    log_ratio, ratio = parts(policy)
    return jnp.sum(slope * (log_ratio[:, 0] - log_ratio[:, 1] - 0.8 * ratio[:, 1]))  # the preferred one's is left out

  np.testing.assert_allclose(found, jax.grad(linear)(POLICY), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('objective', quick.first(2, [*CONSISTENT, objectives.ra_dpo(risk.cvar(0.6), 0.3, variant=1)]))
def test_at_the_reference_loss_and_gradient_are_those_of_dpo(objective):
  np.testing.assert_allclose(losses(objective, REFERENCE), math.log(2), rtol=1e-6)
  expected = gradient(objectives.dpo(0.3), REFERENCE)
  np.testing.assert_allclose(gradient(objective, REFERENCE), expected, rtol=1e-5, atol=2e-6)


def test_rounding_noise_at_the_reference_gives_no_gradient_of_first_order():
  noise = 1e-7 * jnp.asarray(np.random.default_rng(0).standard_normal(POLICY.shape), jnp.float32)
  stat = stats.risk_ratio(risk.cvar(0.6))
  found = jax.grad(lambda x: jnp.sum(statistic(stat, x, REFERENCE)))(REFERENCE + noise)
  assert np.abs(found).max() < 2e-6
  far = jax.grad(lambda x: jnp.sum(statistic(stat, x, REFERENCE)))(REFERENCE + 1e5 * noise)
  assert np.abs(far).max() > 1e-3  # a true drift is not taken for noise


def test_bfloat16_logits_are_cast_up_before_anything_is_computed():
  policy, reference = POLICY.astype(jnp.bfloat16), REFERENCE.astype(jnp.bfloat16)
  for objective in CONSISTENT:
    exact = losses(objective, policy.astype(jnp.float32), reference.astype(jnp.float32))
    np.testing.assert_array_equal(losses(objective, policy, reference), exact)


def test_metrics_report_the_drift_of_both_responses_its_tail_and_a_common_accuracy():
  objective = objectives.ra_dpo(risk.cvar(0.6), beta=0.3)
  table = stats.from_logits(objective.needs, POLICY, REFERENCE, BATCH)
  metrics = objective.apply(table, BATCH).metrics
  kl = np.asarray(table[stats.forward_kl])
  for row in range(6):
    tokens = np.concatenate([kl[row, n, : BATCH.response_length[row, n]] for n in range(2)])
    np.testing.assert_allclose(metrics['token_kl_mean'][row], tokens.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics['token_kl_max'][row], tokens.max(), rtol=1e-6)
    np.testing.assert_allclose(
      metrics['token_kl_p95'][row], np.quantile(tokens, 0.95, method='inverted_cdf'), rtol=1e-6
    )
  hard = dataclasses.replace(BATCH, label=jnp.ones_like(BATCH.label))  # label_test has soft ones
  metrics = objective.apply(table, hard).metrics
  for side, column in (('chosen', 0), ('rejected', 1)):
    np.testing.assert_allclose(metrics[f'forward_kl_{side}'], table.sum(stats.forward_kl)[:, column])
    np.testing.assert_allclose(metrics[f'reverse_kl_{side}'], table.sum(stats.reverse_kl)[:, column])
  dpo = objectives.dpo().apply(table, hard).metrics
  np.testing.assert_array_equal(metrics['log_ratio_accuracy'], dpo['reward_accuracy'])
  own = 0.3 * (table.log_ratio() + table.sum(stats.risk_ratio(risk.cvar(0.6))))
  np.testing.assert_allclose(metrics['reward_chosen'], own[:, 0], rtol=1e-6)


SUMS = ((risk.cvar(0.97), 2), (risk.entropic(5.0), 1))  # one by a scan over the vocabulary, one from scalars


def summed(measure, variant):
  """Ra-DPO by its equation for K = sum_t risk_t, with beta = 0.1 and alpha = 0.5."""
  drift = stats.risk_ratio(measure)

  def apply(table, batch):
    log_ratio, k, label = table.log_ratio(), table.sum(drift), jnp.asarray(batch.label)

    def logit(chosen, rejected):
      margin = log_ratio[:, chosen] - log_ratio[:, rejected]
      if variant == 1:
        return margin - (k[:, rejected] - k[:, chosen])
      return margin - 0.5 * (k[:, rejected] - jax.lax.stop_gradient(k[:, chosen]))

    loss = -label * jax.nn.log_sigmoid(0.1 * logit(0, 1))
    return Term(loss - (1.0 - label) * jax.nn.log_sigmoid(0.1 * logit(1, 0)), {})

  return objectives.Objective(frozenset({stats.logp, stats.reference_logp, drift}), apply)


@pytest.mark.parametrize(
  ('measure', 'variant'),
  [
    pytest.param(*pair, id=f'{pair[0]!r}-{pair[1]}', marks=() if pair in SUMS else pytest.mark.slow)
    for pair in itertools.product(
      (risk.cvar(0.97), risk.entropic(5.0), risk.worst_case(), risk.mean_semideviation(0.5)), (1, 2)
    )
  ],
)
def test_with_both_shares_1_loss_and_gradient_are_bit_for_bit_those_of_the_sum(measure, variant):
  @jax.jit
  def of(policy, reference):
    pair = objectives.ra_dpo(measure, variant=variant, discount=1.0, off_path=1.0), summed(measure, variant)
    return [jax.value_and_grad(lambda x, o=o: jnp.sum(losses(o, x, reference)))(policy) for o in pair]

  chex.assert_trees_all_equal(*of(POLICY, REFERENCE))
  assert not any(isinstance(stat, stats.PathStat) for stat in objectives.ra_dpo(measure).needs)


@pytest.mark.parametrize(
  'measure', quick.first(1, [risk.entropic(2.0), risk.cvar(0.6)]), ids=lambda measure: measure.name
)
def test_metrics_report_the_nested_value_and_how_many_tokens_it_sees(measure):
  hard = dataclasses.replace(BATCH, label=jnp.ones_like(BATCH.label))
  plain, nested = objectives.ra_dpo(measure), objectives.ra_dpo(measure, discount=0.9, off_path=0.5)
  tables = [stats.from_logits(objective.needs, POLICY, REFERENCE, hard) for objective in (plain, nested)]
  known, found = (o.apply(table, hard).metrics for o, table in zip((plain, nested), tables, strict=True))
  np.testing.assert_array_equal(known['nested_value_chosen'], known['risk_ratio_chosen'])
  np.testing.assert_array_equal(known['nested_horizon_rejected'], BATCH.response_length[:, 1])
  value, horizon = (build(measure, 0.9, 0.5) for build in (stats.nested_risk, stats.nested_horizon))
  np.testing.assert_array_equal(found['nested_value_rejected'], tables[1].first(value)[:, 1])
  np.testing.assert_array_equal(found['nested_horizon_chosen'], tables[1].first(horizon)[:, 0])
  assert np.all(found['nested_horizon_chosen'] <= known['nested_horizon_chosen'])


@pytest.mark.parametrize(
  ('build', 'message'),
  [
    (lambda: objectives.tdpo(beta=0), 'tdpo: beta must be positive'),
    (lambda: objectives.tdpo(alpha=-1), 'tdpo: alpha must not be negative'),
    (lambda: objectives.tdpo(variant=3), 'tdpo: variant must be 1 or 2, got 3'),
    (lambda: objectives.ra_dpo(risk=0.97), 'ra_dpo: risk must be a risk measure'),
    (lambda: objectives.ra_dpo(aggregate='median'), 'aggregate must be one of sum, mean, max'),
    (lambda: objectives.tdpo(discount=-0.1), r'tdpo: discount must be in \[0, 1\], got -0.1'),
    (lambda: objectives.ra_dpo(off_path=1.5), r'ra_dpo: off_path must be in \[0, 1\], got 1.5'),
    (lambda: objectives.ra_dpo(off_path=math.nan), r'ra_dpo: off_path must be in \[0, 1\], got nan'),
    (lambda: objectives.ra_dpo(aggregate='max', off_path=0.9), "off_path below 1 requires aggregate='sum', got 'max'"),
    (lambda: objectives.ra_dpo_released(confidence=1.5), r'confidence must be in \[0, 1\]'),
  ],
)
def test_what_cannot_be_is_named(build, message):
  with pytest.raises(ValueError, match=message):
    build()
