"""The nested value inside the training step: the plain gradient on any layout, and no whole logits or collectives."""

import dataclasses
import math
import re

import jax
import pytest

from alignjax import objectives
from alignjax.models import transformer
from alignjax.parallel import mesh as mesh_lib
from alignjax.parallel import rules
from tests import mesh_lowering_test as lowering
from tests.training import bigram, step_test

CONFIG = dataclasses.replace(step_test.CONFIG, layers=1)
NESTED = objectives.parse('ra_dpo(risk=cvar(0.6), beta=0.3, off_path=0.9)')


OBJECTIVES = {'rowwise': NESTED, 'coupled': NESTED + step_test.coupled()}


@pytest.mark.parametrize(
  ('kind', 'shape', 'microbatches', 'chunk'),
  [
    pytest.param('rowwise', (4, 2, 1), 2, 7, marks=pytest.mark.slow),
    pytest.param('rowwise', None, 4, 4, marks=pytest.mark.slow),
    pytest.param('coupled', None, 4, 4, marks=pytest.mark.slow),
    pytest.param('rowwise', (2, 2, 2), 1, 28, marks=pytest.mark.slow),
    pytest.param('coupled', (4, 2, 1), 2, 7, marks=pytest.mark.slow),
  ],
)
def test_any_layout_gives_the_plain_gradient(kind, shape, microbatches, chunk):
  plain, params = bigram.MODEL, (bigram.params(0), bigram.params(1))
  if shape is not None:
    plain = transformer.build(CONFIG)
    params = plain.init(jax.random.key(0)), plain.init(jax.random.key(1))
  batch = step_test.batch_of(16)
  loss, gradient = step_test.plain_gradient(plain, OBJECTIVES[kind], *params, batch)
  mesh = None if shape is None else mesh_lib.make_mesh(*shape)
  model = plain if mesh is None else transformer.build(CONFIG, rules.constraint(mesh))
  options = {'mesh': mesh, 'microbatches': microbatches, 'chunk': chunk}
  metrics, found = step_test.step_gradient(model, OBJECTIVES[kind], *params, batch, **options)
  assert float(metrics['loss']) == pytest.approx(float(loss), rel=1e-6)
  assert step_test.relative_error(found, gradient) < 1e-6


@pytest.fixture(scope='module')
def compiled():
  """The step on 8 devices, with a chunk of 4 tokens where a prompt has 14."""
  return lowering.lowered((8, 1, 1), NESTED, chunk=4).compile().as_text()


@pytest.mark.slow
def test_no_collective_inside_the_scan_over_positions(compiled):
  assert lowering.collectives_in_loops(compiled) == []
  assert re.findall(r' while\(', compiled)


@pytest.mark.slow
def test_no_array_is_as_large_as_the_logits_of_a_device(compiled):
  shapes = [tuple(map(int, shape.split(','))) for shape in re.findall(r'f32\[([\d,]+)\]', compiled)]
  sizes = [math.prod(shape) for shape in shapes if CONFIG.vocab_size in shape]
  assert 0 < max(sizes) < lowering.PROMPTS // 8 * 2 * 7 * CONFIG.vocab_size
