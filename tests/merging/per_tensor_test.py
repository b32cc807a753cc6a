"""Weights and densities: what is read, what holds for a tensor, and what is refused."""

import numpy as np
import pytest

from alignjax import merging
from alignjax.merging import per_tensor


@pytest.mark.parametrize(
  ('given', 'text', 'attention', 'norm'),
  [
    (0.5, '0.5', (0.5, 0.5), (0.5, 0.5)),
    (1, '1.0', (1.0, 1.0), (1.0, 1.0)),
    (np.float32(0.25), '0.25', (0.25, 0.25), (0.25, 0.25)),
    ([0.3, 0.7], '0.3,0.7', (0.3, 0.7), (0.3, 0.7)),
    ('0.3, 0.7', '0.3,0.7', (0.3, 0.7), (0.3, 0.7)),
    ({'*attn*': [0.3, 0.7], '*': 0.5}, '*attn*=0.3,0.7; *=0.5', (0.3, 0.7), (0.5, 0.5)),
    ('*attn*=0.3,0.7;*=0.5', '*attn*=0.3,0.7; *=0.5', (0.3, 0.7), (0.5, 0.5)),
    ({'layers.[0-3].attn.*': 1.0, '*.nor?': 2.0}, 'layers.[0-3].attn.*=1.0; *.nor?=2.0', (1.0, 1.0), (2.0, 2.0)),
    ({'layers.*': 1.0, '*': 2.0}, 'layers.*=1.0; *=2.0', (1.0, 1.0), (2.0, 2.0)),  # the first match holds
  ],
)
def test_forms_of_a_setting(given, text, attention, norm):
  setting = per_tensor.setting('density', given)
  assert str(setting) == text
  assert per_tensor.setting('density', text) == setting
  assert setting.resolve('layers.2.attn.q', 2) == attention
  assert setting.resolve('final.norm', 2) == norm


@pytest.mark.parametrize(
  ('given', 'says'),
  [
    ('', "density: cannot parse '': write 0.5"),
    ('a', "density: cannot parse 'a'"),
    ('*=0.5; *mlp*', r"density: cannot parse '\*=0.5; \*mlp\*'"),
    ([], 'density: no value for the pattern'),
    ({}, 'density: no value is given'),
    (True, 'density: True is not a finite number'),
    (float('nan'), 'density: nan is not a finite number'),
    ('inf', 'density: inf is not a finite number'),
    (None, 'density: None is not a finite number'),
    ([0.5, 'x'], "density: 'x' is not a finite number"),
    (0.0, r'density: must be in \(0, 1\], got 0.0'),
    ({'*': [0.5, 1.1]}, r'density: must be in \(0, 1\], got 1.1'),
    ({'': 0.5}, "density: '' is not a pattern"),
    ({'a=b': 0.5}, "density: 'a=b' is not a pattern"),
    ('*=0.5; *=0.7', r"density: the pattern '\*' is given twice"),
  ],
)
def test_what_is_no_setting_is_refused(given, says):
  with pytest.raises(ValueError, match=says):
    per_tensor.setting('density', given, '(0, 1]')


def test_ends_of_intervals():
  assert per_tensor.setting('t', 1.0, '(0, 1]').resolve('w', 1) == (1.0,)
  assert per_tensor.setting('t', 0.0, '[0, 1)').resolve('w', 1) == (0.0,)
  with pytest.raises(ValueError, match=r'\[0, 1\)'):
    per_tensor.setting('t', 1.0, '[0, 1)')


MODELS = [{'attn': np.ones(2), 'mlp': np.ones(2)}] * 2


@pytest.mark.parametrize(
  ('weights', 'says'),
  [
    ([1.0, 2.0, 3.0], r'weights: 3 values for 2 models \(1.0,2.0,3.0\): give one, or one for each'),
    ({'attn': 1.0}, r'weights: no pattern matches the tensor mlp \(attn=1.0\): add one, such as \*=...'),
    ({'atn': 1.0, '*': 2.0}, r"weights: no tensor is left for the pattern 'atn' \(atn=1.0; \*=2.0\)"),
    ({'*': 1.0, 'attn': 2.0}, r"weights: no tensor is left for the pattern 'attn'"),
  ],
)
def test_patterns_and_counts_are_compared_with_the_models(weights, says):
  with pytest.raises(ValueError, match=says):
    merging.merge(merging.linear(), MODELS, weights=weights)


def test_values_by_pattern_reach_their_tensors():
  models = [{'attn': np.zeros(2), 'mlp': np.zeros(2)}, {'attn': np.ones(2), 'mlp': np.ones(2)}]
  merged = merging.merge(merging.linear(), models, weights={'attn': [1.0, 3.0], '*': 1.0})
  np.testing.assert_allclose(merged['attn'], 0.75)
  np.testing.assert_allclose(merged['mlp'], 0.5)
