"""What the compiler makes of the step on a mesh: which collectives there are, and none inside the head's scan."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import optax
import pytest

from alignjax import objectives
from alignjax.models import transformer
from alignjax.parallel import mesh as mesh_lib
from alignjax.parallel import rules
from alignjax.training import references
from alignjax.training import state as state_lib
from alignjax.training import step as step_lib
from alignjax.training.policy import Policy
from tests import fixtures
from tests.training import step_test

COLLECTIVE = re.compile(r'= .*? (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(')
# Unrolled layers, so that the only loop left is the one over prompts in the head.
CONFIG = dataclasses.replace(step_test.CONFIG, scan_layers=False)
DPO = objectives.dpo()
PROMPTS = 32  # 4 on each of 8 shards; a chunk of 14 tokens takes one at a time


def lowered(shape, objective=DPO, chunk=14):
  mesh = mesh_lib.make_mesh(*shape)
  model, tx = transformer.build(CONFIG, rules.constraint(mesh)), optax.adamw(1e-3)
  params = jax.eval_shape(model.init, jax.random.key(0))
  state = jax.eval_shape(lambda p: state_lib.TrainState.create(p, tx, jax.random.key(0)), params)
  shardings = state_lib.shardings(mesh, state)

  def place(tree, places):
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, places)

  batch = jax.eval_shape(lambda: fixtures.preference_batch(prompts=PROMPTS))
  batch = place(batch, jax.tree.map(lambda _: rules.batch_sharding(mesh), batch))
  frozen = state_lib.Frozen(references.Live(place(params, shardings.params)))
  step = step_lib.build_train_step(Policy(model), objective, tx, chunk=chunk, mesh=mesh)
  out = (shardings, rules.replicated(mesh))
  return jax.jit(step, out_shardings=out, donate_argnums=0).lower(place(state, shardings), frozen, batch)


def computations(text):
  """The lines of each computation of an HLO module, by name."""
  found, name = {}, None
  for line in text.splitlines():
    if line and not line[0].isspace() and line.endswith('{'):
      name = line.split()[1 if line.startswith('ENTRY') else 0].lstrip('%')
      found[name] = []
    elif name is not None:
      found[name].append(line)
  return found


def collectives_in_loops(text):
  bodies = set(re.findall(r' while\(.*?body=%?([\w.\-]+)', text))
  assert bodies, 'the head has no loop: the test sees nothing'
  return [line.strip()[:120] for name in bodies for line in computations(text)[name] if COLLECTIVE.search(line)]


@pytest.fixture(
  scope='module', params=[pytest.param((8, 1, 1), marks=pytest.mark.slow), (1, 8, 1)], ids=['data', 'fsdp']
)
def compiled(request):
  return request.param, lowered(request.param).compile().as_text()


def test_no_collective_inside_the_scan_over_prompts(compiled):
  _, text = compiled
  assert collectives_in_loops(text) == []


def test_data_parallelism_needs_all_reduce_alone(compiled):
  shape, text = compiled
  kinds = {match.group(1) for match in map(COLLECTIVE.search, text.splitlines()) if match}
  assert kinds == {'all-reduce'} if shape == (8, 1, 1) else 'all-gather' in kinds


def test_a_collective_inside_a_loop_would_be_seen():
  mesh = mesh_lib.make_mesh(8, 1, 1)
  rows = jax.ShapeDtypeStruct((4, 32), jnp.float32, sharding=jax.sharding.NamedSharding(mesh, jax.P(None, 'data')))

  def sums(rows):
    return jax.lax.scan(lambda total, row: (jnp.sin(total) + jnp.sum(row), None), 0.0, rows)[0]

  assert collectives_in_loops(jax.jit(sums).lower(rows).compile().as_text())
