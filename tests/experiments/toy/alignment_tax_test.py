"""The study of the alignment tax, at a size at which it takes seconds, and the rules by which it decides."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.models import base
from alignjax.types import Head
from experiments.toy import alignment_tax as study
from experiments.toy import alignment_tax_report as report
from experiments.toy import alignment_tax_world as world
from experiments.toy import descent

SETTING = dataclasses.replace(
  study.TINY,
  seeds=2,
  pretraining=60,
  tuning=80,
  updates=24,
  pairs=16,
  rates=(3e-2,),
  penalties=(),
  reserves=(1.0,),
  drifts=(0.0, 0.2),
  densities=(),
  weights=(1.0,),
  rise=0.03,
)


@pytest.fixture(name='folder', scope='module')
def run_study(tmp_path_factory):
  folder = tmp_path_factory.mktemp('alignment_tax')
  study.run(SETTING, folder)
  return folder


@pytest.fixture(name='summary', scope='module')
def read_summary(folder):
  return json.loads((folder / 'summary.json').read_text())


def means(summary, contender, name, setting=''):
  points = [point for point in summary['points'] if point['contender'] == contender]
  return [np.mean(point['measures'][name]) for point in points if point['setting'].endswith(setting)]


CONTENDERS = set(report.STYLES) - {'KL penalty', 'TIES', 'DARE'}  # these take longest to compile, or add nothing


@pytest.mark.slow
def test_every_contender_is_measured_for_every_seed(summary):
  counts = {name: len(means(summary, name, 'reward')) for name in CONTENDERS}
  settings = {'linear': 1} | dict.fromkeys(report.ONLINE, 2 * study.EVALUATIONS)
  assert counts == {name: settings.get(name, study.EVALUATIONS) for name in CONTENDERS}
  assert {len(values) for point in summary['points'] for values in point['measures'].values()} == {2}
  assert {point['contender'] for point in summary['chosen']} == CONTENDERS


@pytest.mark.slow
def test_tuning_teaches_the_skill_and_alignment_the_reward(summary):
  pretrained, before = (stage['measures'] for stage in summary['stages'])
  assert np.mean(before['skill_loss']) < np.mean(pretrained['skill_loss']) - 0.2
  assert means(summary, 'Adam', 'reward')[-1] > np.mean(before['reward']) + 0.03
  assert means(summary, 'Adam', 'skill_loss')[-1] > np.mean(before['skill_loss'])


@pytest.mark.slow
@pytest.mark.parametrize('contender', ['OnTIES', 'OnDARE'])
def test_online_merging_of_everything_without_drift_is_plain_adam(summary, contender):
  for name in ('reward', 'skill_loss', 'base_loss'):
    np.testing.assert_allclose(means(summary, contender, name, 'drift=0'), means(summary, 'Adam', name), rtol=1e-3)
  drifted = means(summary, contender, 'skill_loss', 'drift=0.2')
  assert np.abs(np.subtract(drifted, means(summary, 'Adam', 'skill_loss'))).min() > 1e-3


@pytest.mark.slow
def test_offline_merging_with_the_whole_weight_is_the_aligned_model(summary):
  (merged,) = means(summary, 'linear', 'skill_loss')
  assert merged == pytest.approx(means(summary, 'Adam', 'skill_loss')[-1], rel=1e-4)


@pytest.mark.slow
def test_a_run_leaves_a_figure_and_a_table(folder, summary):
  assert (folder / 'figure.png').stat().st_size > 20_000
  table = (folder / 'table.md').read_text()
  assert all(f'| {name} |' in table for name in CONTENDERS)
  assert table.rstrip().endswith(summary['conclusion'])


def test_skill_items_answer_the_questions_and_avoid_others():
  items = world.skill_items(30, np.random.default_rng(0))
  for question, answer in items.items():
    task, word = question[:-1].split(':')
    shifted = ''.join('bcdefghijklmnopqrstuvwxyza'[ord(letter) - ord('a')] for letter in word)
    assert answer == {'rev': ''.join(reversed(word)), 'up': word.upper(), 'next': shifted}[task] + '\n'
  assert not items.keys() & world.skill_items(30, np.random.default_rng(0), items).keys()


def test_labels_of_best_and_worst_follow_the_reward_as_bradley_and_terry_say():
  response = np.full((20_000, 3, 10), ord('x'))
  response[:, 1, :2] = response[:, 2, :1] = ord('e')
  prompts = descent.batch_of(response[:, 0], np.full(20_000, 10), response, np.full((20_000, 3), 10))
  pairs = world.labelled_pairs(prompts, response, 5.0, np.random.default_rng(0))
  reward = world.vowel_share(pairs.response)
  assert set(np.sort(reward).flat) == {0.0, 0.2}
  assert np.mean(reward[:, 0] > reward[:, 1]) == pytest.approx(1 / (1 + np.exp(-1.0)), abs=0.01)


def test_answers_are_judged_by_all_of_their_bytes_and_by_no_padding():
  batch = world.encoded({'up:abc=': 'ABC\n', 'rev:ab=': 'ba', 'next:z=': 'a'}, longest=4)
  guess = np.array(batch.response)
  guess[1, 0, 3] = ord('x')  # padding
  guess[2, 0, 0] = ord('x')
  model = base.LanguageModel(
    config=None,
    init=None,
    hidden=lambda params, *batch: 10.0 * jax.nn.one_hot(guess, world.VOCABULARY),
    head=lambda params: Head(jnp.eye(world.VOCABULARY)),
    prefill=None,
    decode=None,
  )
  loss, right = jax.jit(lambda: world.answered(model, None, batch))()
  assert right.tolist() == [True, True, False]
  least = np.log1p((world.VOCABULARY - 1) * np.exp(-10.0))
  np.testing.assert_allclose(loss, [least, least, 10.0 + least], rtol=1e-3)


def point(contender, strength, reward, loss, setting=''):
  measures = {'reward': reward, 'validation/reward': reward, 'skill_loss': loss, 'validation/skill_loss': loss}
  measures |= {'base_loss': loss, 'exact_match': reward}
  return report.Point(contender, setting, strength, {name: np.array(values) for name, values in measures.items()})


def test_contenders_are_chosen_by_the_rule_and_compared_at_the_same_reward():
  before = point('fine-tuned', 0, [0.0, 0.1], [1.0, 1.0])
  points = [
    point('Adam', 1, [0.4, 0.5], [1.4, 1.2]),
    point('Adam', 2, [0.8, 0.9], [3.0, 4.0]),
    point('OnTIES', 1, [0.6, 0.5], [2.0, 1.0]),
    point('OnTIES', 1, [0.6, 0.7], [2.5, 1.5], 'worse'),
    point('OnDARE', 1, [0.2, 0.2], [0.5, 0.5]),
    point('Adam + tau', 1, [0.8, 0.9], [3.5, 4.5]),
  ]
  found = report.compare(points, before, 0.5)
  assert found['Adam'].point is points[1]
  assert found['OnTIES'].point is points[2]
  assert found['OnTIES'].reached
  # Plain Adam has 1.8 and 1.2 where its reward is 0.5, OnTIES 11 / 6 and 1.0.
  np.testing.assert_allclose(found['OnTIES'].excess['skill_loss'], [11 / 6 - 1.8, 1.0 - 1.2])
  np.testing.assert_array_equal(found['Adam'].excess['base_loss'], 0.0)
  assert found['OnDARE'].point is points[4]
  assert not found['OnDARE'].reached
  text = report.conclusion(found)
  assert 'OnTIES compared with plain Adam at the target reward: its skill loss is lower by 0.083' in text
  assert 'OnDARE or plain Adam did not reach' in text
  assert 'OnTIES has the lowest skill loss' in text


def test_each_is_compared_on_the_best_of_its_curves_that_reach_the_reward():
  before = point('fine-tuned', 0, [0.0], [1.0])
  points = [
    point('Adam', 1, [0.4], [1.1], 'slow'),
    point('Adam', 1, [0.5], [2.0], 'fast'),
    point('Adam', 2, [0.9], [3.0], 'fast'),
    point('OnTIES', 1, [0.4], [1.0]),
    point('OnDARE', 1, [0.7], [1.0]),
  ]
  early, late = (report.compare(points, before, target) for target in (0.3, 0.6))
  assert early['OnTIES'].excess['skill_loss'] == pytest.approx(1.0 - 1.075)
  assert late['OnDARE'].excess['skill_loss'] == pytest.approx(1.0 - 2.25)
  assert np.isnan(late['OnTIES'].excess['skill_loss'])


def test_a_curve_is_no_better_for_stopping_short_of_the_reward():
  """Two contenders on one line of reward and loss, of which one ends a hair below what a seed would need."""
  before = point('fine-tuned', 0, [0.0, 0.0], [1.0, 1.0])
  points = [
    point('Adam', 1, [0.49, 0.6], [1.98, 2.2]),
    point('OnTIES', 1, [0.51, 0.6], [2.02, 2.2]),
    point('OnDARE', 1, [0.8, 0.8], [2.6, 2.6]),
  ]
  found = report.compare(points, before, 0.5)
  for contender in ('OnTIES', 'OnDARE'):
    np.testing.assert_allclose(found[contender].excess['skill_loss'], 0.0, atol=1e-12)


def test_seeds_in_different_orders_are_refused():
  one, other = (report.Outcome(name, '', 1, {'reward': 0.0}) for name in ('Adam', 'EMA'))
  with pytest.raises(ValueError, match='not in the same order'):
    report.across_seeds([[one, other], [other, one]])


def test_too_few_texts_are_refused():
  with pytest.raises(ValueError, match='too few held-out texts'):
    world.Judge(None, world.Texts(['x' * 99], ['y' * 99]), count=2, window=24, samples=1)
