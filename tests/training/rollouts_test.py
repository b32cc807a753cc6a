"""On-policy training in a world of seven sentences, whose optima are known."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives, rewards, stats
from alignjax.data.batches import batching
from alignjax.parallel import mesh
from alignjax.training import (
  rollout_datasets,
  rollout_drawing,
  rollout_files,
  rollout_metrics,
  rollout_rows,
  source,
  state,
  step,
)
from alignjax.types import PreferenceBatch
from tests.training import rollout_world as world

REFERENCE = np.asarray(world.log_probabilities(world.INITIAL), np.float64)
PAIRS = {'pairing': 'two', 'samples': 2}
METHODS = {
  'reverse_kl': (
    world.Setting('reverse_kl(gamma=0.3, beta=0.4)', samples=4),
    100,
    world.normalised((0.4 * REFERENCE + world.SCORE) / 0.7),
  ),
  'rlhf': (world.Setting('rlhf(beta=0.8)', samples=4), 100, world.normalised(REFERENCE + world.SCORE / 0.8)),
  'preference_distillation': (
    world.Setting('preference_distillation(gamma=0.8)', **PAIRS),
    120,
    world.normalised(world.SCORE / 0.8),
  ),
  # The penalty in the score changes the fixed point: O3.
  'preference_distillation with a penalty': (
    world.Setting('preference_distillation(gamma=0.5)', **PAIRS, kl_in_score=0.4),
    120,
    world.normalised((0.4 * REFERENCE + world.SCORE) / 0.9),
  ),
  # Three rounds, each solved exactly.
  'rebel': (
    world.Setting(
      'rebel(eta=0.4)',
      **PAIRS,
      ratio_reference='round',
      rounds=rollout_drawing.Rounds(64, 64, 60, 64),
      learning_rate=0.05,
    ),
    180,
    world.normalised(REFERENCE + 3 * 0.4 * world.SCORE),
  ),
}


# Quick: the one with rounds. With all responses, value and gradient of a round are exact below.
SLOW = {name: pytest.mark.slow for name in METHODS if name != 'rebel'}


@pytest.mark.parametrize('name', [pytest.param(name, marks=SLOW.get(name, ())) for name in METHODS])
def test_a_method_reaches_its_closed_form_optimum(name, tmp_path):
  setting, updates, target = METHODS[name]
  assert world.distance(world.INITIAL, target) > 0.2
  params, _ = world.train(setting, tmp_path, updates)
  assert world.distance(params, target) < 0.02


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
  """A round of 32 prompts with 3 responses each, and what drew it."""
  setting = world.Setting('dpo(beta=0.1)', samples=3, pairing='best_worst')
  made = world.drawer(setting, tmp_path_factory.mktemp('round'))
  return made.draw(world.start(setting), world.FROZEN, 0), made


@pytest.mark.slow  # a method finds its optimum above, and on_policy_test.py is exact in expectation
@pytest.mark.parametrize(
  ('samples', 'beta', 'gamma'),
  [
    pytest.param(1, 0.5, 0.0, marks=pytest.mark.slow),
    (2, 0.3, 0.2),
    pytest.param(3, 0.3, 0.2, marks=pytest.mark.slow),
  ],
)
def test_value_and_gradient_of_a_round_are_unbiased(samples, beta, gamma, tmp_path, drawn):
  """All tuples of responses are enumerated, and weighted with the sampler's own probabilities."""
  objective = objectives.parse(f'reverse_kl(gamma={gamma}, beta={beta})')
  tuples = np.array(list(itertools.product(range(7), repeat=samples)))
  rows = [np.arange(2).repeat(len(tuples)), np.tile(tuples, (2, 1))]
  made = drawn[1]
  lengths = np.array([len(sentence) for sentence in world.SENTENCES])
  tokens = np.array([[*sentence, 0][:2] for sentence in world.SENTENCES])
  size = len(rows[0])
  params, ones = world.params_of(3), np.ones(size, np.float32)
  prompt = np.array(world.PROMPTS)[rows[0]]
  batch = PreferenceBatch(prompt, np.ones(size, np.int32), tokens[rows[1]], lengths[rows[1]], ones, ones)
  values = jax.device_get(made.measure(params, world.FROZEN, jax.tree.map(jnp.asarray, batch)))
  score = world.SCORE[rows[0][:, None], rows[1]]
  logp = values['logp']
  drawn_round = world.round_of(
    ids=rows[0],
    prompt=prompt,
    response=batch.response,
    response_length=batch.response_length,
    logp=logp,
    score=score,
    reference_logp=values['reference_logp'],
  )
  fields = objective.reads | {stat.name for stat in objective.needs}
  data = rollout_rows.Shaping(fields=fields).rows(drawn_round)
  weight = np.exp(logp.sum(axis=(1, 2), dtype=np.float64))
  np.testing.assert_allclose(weight.sum(), 2.0, rtol=1e-5)

  def estimate(params):
    hidden = states_of(params, data)
    table = stats.statistics(objective.needs, hidden, None, data, chunk=10**6)
    return jnp.sum(objective.apply(table, data).loss * weight.astype(np.float32))

  def exact(params):
    logp = world.log_probabilities(params)
    value = world.SCORE.astype(np.float32) - gamma * logp - beta * (logp - REFERENCE.astype(np.float32))
    return -jnp.sum(jnp.exp(logp) * value)

  found, expected = (jax.jit(jax.value_and_grad(function))(params) for function in (estimate, exact))
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
  np.testing.assert_allclose(found[1]['logits'], expected[1]['logits'], atol=2e-6)


def states_of(params, batch):
  states = world.MODEL.hidden(params, batch.prompt, batch.prompt_length, batch.response, batch.response_length)
  return stats.HiddenStates(states, world.MODEL.head(params))


def test_a_round_holds_the_probabilities_of_its_responses(drawn):
  round_ = drawn[0]
  logp = np.asarray(world.log_probabilities(world.INITIAL))
  place = [
    [world.PLACE[world.text_of('', t[:n])] for t, n in zip(*row, strict=True)]
    for row in zip(round_.response, round_.response_length, strict=True)
  ]
  expected = logp[round_.ids[:, None], place]
  for values in (round_.policy_logp, round_.sampler_logp, round_.strategy_logp, round_.reference_logp):
    np.testing.assert_allclose(values.sum(axis=2), expected, atol=1e-5)
  np.testing.assert_allclose(round_.score, world.SCORE[round_.ids[:, None], place])
  np.testing.assert_array_equal(round_.parts['table()'], round_.score)
  np.testing.assert_array_equal(round_.finished, [[world.SENTENCES[i][-1] == 0 for i in row] for row in place])
  assert np.bincount(round_.ids).tolist() == [16, 16]


def test_behaviour_is_that_of_the_strategy(tmp_path):
  setting = world.Setting('dpo()', temperature=0.7, samples=2)
  cold = world.drawer(setting, tmp_path).draw(world.start(setting), world.FROZEN, 0)
  again = world.drawer(setting._replace(temperature=1.0), tmp_path).measure(
    {'logits': world.INITIAL['logits'] / 0.7}, world.FROZEN, batch_of(cold)
  )
  np.testing.assert_allclose(cold.strategy_logp, again['logp'], atol=1e-5)
  assert np.abs(cold.strategy_logp - cold.sampler_logp).max() > 0.05
  rows = rollout_rows.Shaping(fields=('behaviour_logp', 'behaviour_token_logp')).rows(cold)
  np.testing.assert_array_equal(rows.cached['behaviour_token_logp'], cold.strategy_logp)
  np.testing.assert_allclose(rows.behaviour_logp, cold.strategy_logp.sum(axis=2), atol=1e-6)


def batch_of(drawn):
  ones = np.ones(len(drawn.ids), np.float32)
  return PreferenceBatch(drawn.prompt, drawn.prompt_length, drawn.response, drawn.response_length, ones, ones)


def test_weights_of_prompts_are_those_of_their_rows(drawn):
  weight = np.linspace(0.5, 2.0, 32, dtype=np.float32)
  rows = rollout_rows.Shaping('all_pairs', ties='keep').rows(dataclasses.replace(drawn[0], weight=weight))
  np.testing.assert_array_equal(rows.weight, weight.repeat(3))


def test_duplicates_among_the_samples_stay(drawn):
  round_ = drawn[0]
  same = (round_.response[:, 0] == round_.response[:, 1]).all(axis=1)
  assert same.any()
  np.testing.assert_array_equal(rollout_rows.Shaping().rows(round_).response, round_.response)


def test_metrics_of_a_round(drawn):
  values = rollout_metrics.of_round(drawn[0], rollout_rows.Shaping('best_worst'), {'table()': 'table'})
  assert values['rollout/reward'] == pytest.approx(drawn[0].score.mean())
  assert values['rollout/reward/table'] == pytest.approx(values['rollout/reward'])
  assert values['rollout/reward_error'] == pytest.approx(drawn[0].score.mean(axis=1).std(ddof=1) / np.sqrt(32))
  assert values['rollout/sampler_gap_max'] < 1e-5
  assert values['rollout/kl'] == pytest.approx(0.0, abs=1e-6)
  assert values['rollout/kl_exact'] == pytest.approx(0.0, abs=1e-6)
  assert values['rollout/no_signal'] == (np.ptp(drawn[0].score, axis=1) == 0).mean()
  assert values['rollout/ties'] == values['rollout/no_signal']


def test_kl_metrics_agree_with_the_enumerated_kl(tmp_path):
  setting = world.Setting('rlhf()', samples=4, rounds=rollout_drawing.Rounds(512, 512, 1, 512))
  made = world.drawer(setting, tmp_path)
  params = {'logits': world.INITIAL['logits'] + 0.3 * world.params_of(5)['logits']}
  now = world.start(setting)
  drawn = made.draw(state.TrainState(now.step, params, now.opt_state, now.key), world.FROZEN, 0)
  logp = np.asarray(world.log_probabilities(params), np.float64)
  expected = (np.exp(logp) * (logp - REFERENCE)).sum(axis=1).mean()
  values = rollout_metrics.of_round(drawn, rollout_rows.Shaping(), {})
  assert values['rollout/kl_exact'] == pytest.approx(expected, rel=0.05)
  assert values['rollout/kl'] == pytest.approx(expected, rel=0.5)
  assert values['rollout/kl_k3'] == pytest.approx(expected, rel=0.5)


def test_a_gap_between_sampling_and_training_stops_the_run(tmp_path):
  setting = world.Setting('rlhf()', largest_gap=0.02)
  made = world.drawer(setting, tmp_path)
  measure = made.measure

  def other(params, frozen, batch):  # other weights in training
    return measure({'logits': 1.5 * params['logits']}, frozen, batch)

  made.measure = other
  with pytest.raises(rollout_files.RolloutError, match=r'differs by .* template, weights or types differ'):
    made.draw(world.start(setting), world.FROZEN, 0)
  assert not list(tmp_path.iterdir())


def test_a_reward_that_fails_is_named_with_the_round(tmp_path):
  setting = world.Setting('rlhf()', reward=rewards.Reward((rewards.Part(1.0, 'own', lambda samples: [0.0]),)))
  made = world.drawer(setting, tmp_path)
  with pytest.raises(source.SourceError, match=r'round 0 of rollouts: reward own must return one number per sample'):
    made.draw(world.start(setting), world.FROZEN, 0)


def test_minibatches_take_each_prompt_once_per_epoch():
  size = rollout_drawing.Rounds(12, 4, 3, 12)
  assert size.updates == 9
  epochs = [np.concatenate([size.minibatch_of(5, 3 * epoch + i) for i in range(3)]) for epoch in range(3)]
  for places in epochs:
    np.testing.assert_array_equal(np.sort(places), np.arange(12))
  assert not np.array_equal(epochs[1], epochs[2])
  seen = np.concatenate([size.questions(number, 5) for number in range(5)])
  assert np.bincount(seen).tolist() == [12] * 5
  with pytest.raises(ValueError, match='minibatch=5: must divide the 12 prompts'):
    rollout_drawing.Rounds(12, 5, 1, 12)


def test_rollouts_as_a_dataset_give_the_losses_of_the_run(drawn, tmp_path):
  """O10: what is trained on online is what a dataset of the same rounds holds."""
  round_, made = drawn
  shaping = rollout_rows.Shaping('best_worst', fields=('score', 'reference_logp'))
  data = rollout_datasets.pack([round_], shaping, made.folder)
  rows = shaping.rows(round_)
  kept = np.flatnonzero(rows.weight)
  assert len(data) == len(kept) < len(rows.weight)
  assert data.report.dropped['tied_scores'].count == len(rows.weight) - len(kept)
  for i, row in enumerate(kept):
    example = data[i]
    np.testing.assert_array_equal(example.prompt, rows.prompt[row, : rows.prompt_length[row]])
    np.testing.assert_array_equal(example.score, rows.score[row])
    for tokens, padded in zip(example.responses, rows.response[row], strict=True):
      np.testing.assert_array_equal(tokens, padded[: len(tokens)])
  assert data.origin(0).endswith(f'round_000000.npz:{kept[0] + 1}')
  spec = batching.BatchSpec(len(kept), buckets=[rows.response.shape[2:] * 2], shuffle=False)
  again = batching.make_batches(data, spec).source[0].data
  evaluate = jax.jit(step.build_eval_step(world.POLICY, objectives.dpo(beta=0.1)))
  online, offline = (evaluate(world.params_of(4), world.FROZEN, batch)['loss'] for batch in (rows, again))
  assert float(online.mean()) == pytest.approx(float(offline.mean()), rel=1e-6)
  assert abs(float(online.mean()) - np.log(2)) > 1e-3


@pytest.mark.slow  # layouts_test.py draws on eight devices
def test_eight_devices_draw_the_same_responses(tmp_path, drawn):
  setting = world.Setting('dpo(beta=0.1)', samples=3, pairing='best_worst')
  wide = mesh.make_mesh(2, 4, 1)
  found = world.drawer(setting, tmp_path, wide).draw(world.start(setting), world.FROZEN, 0)
  expected = drawn[0]
  for name in ('response', 'response_length', 'finished', 'score'):
    np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
  for name in ('policy_logp', 'strategy_logp', 'reference_logp'):
    np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-6)
