"""Charts: where points and labels are, which ticks there are, and what long lines keep."""

import re

import numpy as np
import pytest

from alignjax.evaluation import evaluator
from alignjax.report import naming, svg


def chart(*series, **options):
  return svg.Chart('Title', 'updates', 'nats', series, **options)


def path(text, kind='line'):
  """The points of the first path of a class, [n, 2]."""
  found = re.search(rf'class="{kind} [^"]*" d="M([^"Z]*)', text)[1]
  return np.array([each.split() for each in found.split('L')], float)


def ticks(text, anchor):
  found = re.findall(rf'<text class="tick" x="([^"]*)" y="([^"]*)" text-anchor="{anchor}">([^<]*)<', text)
  return [(float(x), float(y), label.replace('−', '-')) for x, y, label in found]


def test_points_lie_where_the_ticks_of_both_axes_put_them():
  x, y = np.arange(0, 101.0), np.linspace(-3.0, 7.0, 101)
  text = str(svg.draw(chart(svg.Series(x, y)), 'c'))
  points = path(text)
  horizontal = [(float(label), place) for place, _, label in ticks(text, 'middle')]
  vertical = [(float(label), place - 4) for _, place, label in ticks(text, 'end')]
  assert len(horizontal) >= 3
  assert len(vertical) >= 3
  for values, places, axis in ((x, horizontal, 0), (y, vertical, 1)):
    slope, start = np.polyfit(*np.array(places).T, 1)
    np.testing.assert_allclose(points[:, axis], start + slope * values, atol=0.11)  # rounded to a tenth


def test_a_logarithmic_axis_has_powers_of_ten_at_equal_distances():
  text = str(svg.draw(chart(svg.Series(np.arange(3.0), np.array([0.02, 1.0, 500.0])), log=True), 'c'))
  vertical = ticks(text, 'end')
  assert [label for _, _, label in vertical] == ['0.01', '0.1', '1', '10', '100', '1000']
  assert np.ptp(np.diff([place for _, place, _ in vertical])) < 0.21


@pytest.mark.parametrize('values', [[0.5], [0.0, 0.0], [0.7, 0.7 + 1e-16], [1e-9, 2e-9], [-1e12, 3e12]])
def test_any_values_can_be_drawn(values):
  text = str(svg.draw(chart(svg.Series(np.arange(len(values)), np.array(values), 'name')), 'c'))
  assert 'nan' not in text
  assert 'inf' not in text
  assert ticks(text, 'end')


def test_long_lines_are_thinned_and_keep_their_extremes():
  y = np.sin(np.arange(20_000) / 50)
  y[[1234, 15_000]] = 9.0, -8.0
  kept = svg._thinned(np.arange(len(y)), y)
  assert len(kept) <= svg.MOST_POINTS + 2
  assert {(1234, 9.0), (15_000, -8.0)} <= set(kept)
  assert [x for x, _ in kept] == sorted(x for x, _ in kept)


@pytest.mark.parametrize('level', [0.0, 0.5, 0.995])
def test_labels_of_lines_that_end_together_do_not_overlap(level):
  series = [svg.Series(np.arange(5.0), np.full(5, level + 1e-3 * i), f'run {i}', i) for i in range(6)]
  drawn = chart(*series, svg.Series(np.arange(2.0), np.array([0.0, 1.0])))
  text = str(svg.draw(drawn, 'c'))
  places = sorted(float(y) for y in re.findall(r'<text class="label" x="[^"]*" y="([^"]*)"', text))
  assert len(places) == 6
  assert min(np.diff(places)) >= svg.GAP - 0.11
  assert places[0] > 0
  assert places[-1] < drawn.size[1]


def test_labels_beside_points_do_not_overlap():
  points = [svg.Series(np.array([x, 9.0]), np.array([y, 3.0]), '', 0, markers=True) for x, y in ((0, 0),)]
  points += [
    svg.Series(np.array([1.0 + i / 50]), np.array([1.0]), f'model {i}', i, markers=True, notes=('7',)) for i in range(3)
  ]
  text = str(svg.draw(chart(*points), 'c'))
  found = re.findall(r'<text class="(?:label|tick)" x="([^"]*)" y="([^"]*)" text-anchor="start">(model \d)<', text)
  assert len(found) == 3
  boxes = [(float(x), float(x) + svg.CHARACTER * len(words), float(y)) for x, y, words in found]
  for i, (left, right, base) in enumerate(boxes):
    for start, end, other in boxes[:i]:
      assert left > end or right < start or abs(base - other) >= svg.GAP - 0.11


def test_texts_are_escaped():
  text = str(svg.draw(chart(svg.Series(np.arange(2.0), np.arange(2.0), '<b>&', markers=True, notes=('<i>', ''))), 'c'))
  assert '<b>' not in text
  assert '<i>' not in text
  assert '&lt;b&gt;&amp;' in text


@pytest.mark.parametrize(
  ('mean', 'error', 'text'),
  [
    (0.5, 0.0176, '0.500 ± 0.018'),
    (-0.15966, 0.0044, '−0.1597 ± 0.0044'),
    (12.345, 3.21, '12.35 ± 3.21'),
    (1.0, float('nan'), '1'),
    (float('nan'), 0.1, '–'),
    (2.0, 0.0, '2.000 ± 0.000'),
  ],
)
def test_estimates_have_two_digits_of_their_error(mean, error, text):
  assert naming.estimate(evaluator.Estimate(mean, error)) == text


@pytest.mark.parametrize(
  ('names', 'short'),
  [
    (['runs/a'], ['a']),
    (['runs/a/', 'runs/b'], ['a', 'b']),
    (['x/a', 'y/a'], ['x/a', 'y/a']),
    (['sft', 'runs/a/model', 'runs/a/checkpoints/10'], ['sft', 'a', 'a at 10']),
    (['runs/a', 'runs/a/model'], ['runs/a', 'runs/a/model']),
    ([], []),
  ],
)
def test_names_are_as_short_as_they_can_be(names, short):
  assert naming.short(names) == short


def test_words_of_a_command_keep_their_quotes():
  line = """alignjax train --objective='dpo(beta=0.1) + sft()' --reward="matches('a b')" --seed=1"""
  parts = ['alignjax', 'train', "--objective='dpo(beta=0.1) + sft()'", '''--reward="matches('a b')"''', '--seed=1']
  assert naming.words(line) == parts


@pytest.mark.parametrize(('count', 'text'), [(9, '9 B'), (2048, '2.0 KiB'), (3 * 2**30, '3.0 GiB')])
def test_sizes(count, text):
  assert naming.size(count) == text


@pytest.mark.parametrize(('seconds', 'text'), [(5.0, '5.0 s'), (61.0, '1 min 1 s'), (7200.0, '2 h 0 min')])
def test_durations(seconds, text):
  assert naming.duration(seconds) == text
