"""The fused head under a user's own `jax.grad`: full logits' value and gradient, and no needless products."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from alignjax import objectives, risk, stats
from alignjax.models import lora, transformer
from alignjax.parallel import mesh as mesh_lib
from alignjax.parallel import rules
from alignjax.training import forward, fused_head, rows
from alignjax.training.policy import Policy
from alignjax.types import Head
from tests import fixtures
from tests.models import token_batches
from tests.training import step_test

WIDTH, VOCAB = 8, 19
OBJECTIVES = {
  'dpo': objectives.dpo(beta=0.3) + 0.1 * objectives.sft(),
  'ra_dpo': objectives.ra_dpo(risk=risk.cvar(0.9), beta=0.3),
  'simpo': objectives.simpo(beta=2.0, gamma=0.5),
}


def hidden_of(seed, batch):
  rng = np.random.default_rng(seed)
  states, kernel, bias = (
    jnp.asarray(rng.standard_normal(shape).astype(np.float32))
    for shape in ((*batch.response.shape, WIDTH), (WIDTH, VOCAB), VOCAB)
  )
  return stats.HiddenStates(states, Head(kernel, bias, soft_cap=4.0))


BATCH = fixtures.preference_batch(seed=3, prompts=8, vocab=VOCAB)
POLICY, REFERENCE = hidden_of(0, BATCH), hidden_of(1, BATCH)
ROWS = step_test.batch_of(16)


def unfused(objective, policy, reference, batch):
  """The loss from full logits, sum_b weight_b loss_b."""
  sides = [None if side is None else stats.logits(side) for side in (policy, reference)]
  return jnp.sum(batch.weight * objective.apply(stats.from_logits(objective.needs, *sides, batch), batch).loss)


@pytest.mark.parametrize(
  ('name', 'chunk'),
  [
    ('dpo', 4),  # two positions
    pytest.param('dpo', 28, marks=pytest.mark.slow),
    pytest.param('dpo', 10_000, marks=pytest.mark.slow),
    pytest.param('ra_dpo', 28, marks=pytest.mark.slow),  # two prompts; nested_value_test.py has a measure in the step
    pytest.param('simpo', 10_000, marks=pytest.mark.slow),  # all
  ],
)
def test_value_and_gradient_are_those_of_full_logits(name, chunk):
  objective = OBJECTIVES[name]
  reference = REFERENCE if stats.missing_reference(objective.needs, ()) else None

  def loss(policy):
    return fused_head.fused_loss(objective, policy, reference, BATCH, chunk=chunk)

  expected, wanted = jax.jit(jax.value_and_grad(functools.partial(unfused, objective)))(POLICY, reference, BATCH)
  (total, sums), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(POLICY)
  np.testing.assert_allclose(total, expected, rtol=2e-6)
  assert step_test.relative_error(gradient, wanted) < 1e-5
  alone, same_sums = jax.jit(loss)(POLICY)  # without jax.grad another function runs
  np.testing.assert_allclose(alone, total, rtol=1e-6)
  chex.assert_trees_all_close(same_sums, sums, rtol=1e-6)
  np.testing.assert_allclose(sums['loss'].total, total, rtol=1e-6)


WIDE = 320  # a vocabulary of more ids than the 8 x 2 x 7 response tokens of BATCH, so that devices share it out


def wide(seed):
  hidden = hidden_of(seed, BATCH)
  kernel = jnp.asarray(np.random.default_rng(seed + 5).standard_normal((WIDTH, WIDE)).astype(np.float32))
  return hidden._replace(head=Head(kernel, soft_cap=4.0))


@pytest.mark.parametrize(
  ('shape', 'name', 'chunk'),
  [
    ((2, 2, 2), 'dpo', 14),  # a prompt of each shard
    pytest.param((1, 8, 1), 'ra_dpo', 4, marks=pytest.mark.slow),  # two positions of a prompt of each shard
    pytest.param((1, 4, 2), 'ra_dpo', 10_000, marks=pytest.mark.slow),
    pytest.param((2, 4, 1), 'simpo', 14, marks=pytest.mark.slow),
  ],
)
def test_devices_that_share_out_the_vocabulary_give_value_and_gradient_of_full_logits(shape, name, chunk):
  objective, policy, mesh = OBJECTIVES[name], wide(0), mesh_lib.make_mesh(*shape)
  reference = wide(1) if stats.missing_reference(objective.needs, ()) else None
  assert forward.together(policy, rows.Layout(chunk, mesh=mesh)) == shape[1]
  by_prompt, by_width = rules.batch_sharding(mesh), NamedSharding(mesh, PartitionSpec('fsdp', 'tensor'))

  def placed(hidden):
    states, kernel = jax.device_put(hidden.states, by_prompt), jax.device_put(hidden.head.kernel, by_width)
    return hidden._replace(states=states, head=dataclasses.replace(hidden.head, kernel=kernel))

  def loss(policy, reference, batch):
    return fused_head.fused_loss(objective, policy, reference, batch, chunk=chunk, mesh=mesh)

  expected, wanted = jax.jit(jax.value_and_grad(functools.partial(unfused, objective)))(policy, reference, BATCH)
  inputs = placed(policy), reference and placed(reference), jax.device_put(BATCH, by_prompt)
  program = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*inputs).compile()
  (total, _), gradient = program(*inputs)
  np.testing.assert_allclose(total, expected, rtol=2e-6)
  assert step_test.relative_error(gradient, wanted) < 1e-5
  assert f'f32[{WIDTH},{WIDE}]' not in program.as_text()  # no device holds a whole head, or its gradient


@pytest.mark.parametrize(
  ('tokens', 'vocabulary', 'shape', 'expected'),
  [
    (1024, 2048, (1, 8, 1), 8),
    (4096, 2048, (1, 8, 1), 1),  # heads are smaller than states
    (4096, 2048, (4, 2, 1), 2),  # each of 4 replicas has a quarter of the tokens
    (1024, 2052, (1, 8, 1), 1),  # does not divide
    (1024, 2048, (8, 1, 1), 1),
  ],
)
def test_devices_exchange_what_is_smaller(tokens, vocabulary, shape, expected):
  assert rows.Layout(mesh=mesh_lib.make_mesh(*shape)).together(tokens, vocabulary) == expected


def test_the_gradient_is_scaled_by_the_cotangent_of_the_loss_and_the_sums_carry_none():
  objective = OBJECTIVES['dpo']

  def mean(policy, scale):
    total, sums = fused_head.fused_loss(objective, policy, REFERENCE, BATCH, chunk=28)
    return jnp.square(scale * total) / sums['loss'].weight + jnp.sin(sums['reward_margin'].total)

  def expected(policy, scale):
    return jnp.square(scale * unfused(objective, policy, REFERENCE, BATCH)) / jnp.sum(BATCH.weight)

  found, wanted = (jax.jit(jax.grad(function, argnums=(0, 1)))(POLICY, 2.0) for function in (mean, expected))
  assert step_test.relative_error(found[0], wanted[0]) < 1e-5
  np.testing.assert_allclose(found[1], wanted[1], rtol=1e-5)


def test_no_gradient_enters_the_reference_or_the_batch():
  def loss(reference, label):
    batch = dataclasses.replace(BATCH, label=label)
    return fused_head.fused_loss(OBJECTIVES['dpo'], POLICY, reference, batch)[0]

  inputs = REFERENCE, BATCH.label
  found = jax.jit(jax.grad(loss, argnums=(0, 1)))(*inputs)
  chex.assert_trees_all_equal(found, jax.tree.map(jnp.zeros_like, inputs))


def test_states_in_bfloat16_have_a_gradient_in_bfloat16_and_the_head_one_in_float32():
  policy = POLICY._replace(states=POLICY.states.astype(jnp.bfloat16))

  def loss(policy):
    return 3.0 * fused_head.fused_loss(OBJECTIVES['dpo'], policy, REFERENCE, BATCH)[0]

  gradient = jax.eval_shape(jax.grad(loss), policy)
  chex.assert_trees_all_equal_dtypes(gradient, policy)


@pytest.fixture(scope='module')
def adapted():
  """A policy with adapters, its base, a reference, adapters that are not 0; and loss and gradient by full logits."""
  model = transformer.build(dataclasses.replace(step_test.CONFIG, layers=1))
  base, reference = (jax.device_put(token_batches.params(model, seed)) for seed in (0, 1))
  policy = Policy(model, lora.LoRA(rank=2, alpha=4.0, targets='query+mlp'))
  adapters = jax.tree.map(lambda leaf: leaf + 0.2, policy.init(jax.random.key(2), base))

  def expected(adapters):
    hidden = forward.hidden_states(policy.bind(base), adapters, ROWS)
    return 2.0 * unfused(OBJECTIVES['dpo'], hidden, forward.hidden_states(model, reference, ROWS), ROWS)

  return policy, base, reference, adapters, jax.jit(jax.value_and_grad(expected))(adapters)


@pytest.mark.slow  # reward_test.py has adapters on this mesh, and the tests above a user's own gradient
@pytest.mark.parametrize('shape', [None, (2, 2, 2)], ids=str)
def test_adapters_get_the_gradient_of_full_logits_on_any_mesh(adapted, shape):
  policy, base, reference, adapters, (expected, wanted) = adapted
  mesh = None if shape is None else mesh_lib.make_mesh(*shape)

  def loss(adapters, batch):
    hidden = forward.hidden_states(policy.bind(base), adapters, batch)
    frozen = forward.hidden_states(policy.model, reference, batch)
    return 2.0 * fused_head.fused_loss(OBJECTIVES['dpo'], hidden, frozen, batch, chunk=28, mesh=mesh)[0]

  batch = ROWS if mesh is None else jax.device_put(ROWS, rules.batch_sharding(mesh))
  value, gradient = jax.jit(jax.value_and_grad(loss))(adapters, batch)
  np.testing.assert_allclose(value, expected, rtol=2e-6)
  assert step_test.norm(wanted) > 1e-2
  assert step_test.relative_error(gradient, wanted) < 1e-5


def products(function, *args):
  """The number of matrix products in the compiled program: all of them are with the head."""
  return jax.jit(function).lower(*args).compile().as_text().count(' dot(')


def test_there_are_three_products_with_the_vocabulary_and_fewer_where_fewer_will_do():
  def loss(states, head):
    policy = stats.HiddenStates(states, head)
    return fused_head.fused_loss(OBJECTIVES['simpo'], policy, None, BATCH, chunk=28)[0]

  assert products(jax.grad(loss, argnums=(0, 1)), *POLICY[:2]) == 3
  assert products(jax.grad(loss), *POLICY[:2]) == 2  # as for adapters: the compiler drops d head
  assert products(loss, *POLICY[:2]) == 1


def test_an_objective_that_couples_rows_is_refused():
  with pytest.raises(ValueError, match=r'alpha_dpo.* couples the rows'):
    fused_head.fused_loss(objectives.alpha_dpo(), POLICY, REFERENCE, BATCH)


def test_arrays_of_other_shapes_are_refused_by_name():
  wrong = POLICY._replace(states=POLICY.states[:, :, :-1])
  with pytest.raises(AssertionError, match='states must be'):
    fused_head.fused_loss(OBJECTIVES['dpo'], wrong, REFERENCE, BATCH)
  with pytest.raises(AssertionError, match=r'batch\.weight does not fit'):
    fused_head.fused_loss(OBJECTIVES['dpo'], POLICY, REFERENCE, dataclasses.replace(BATCH, weight=jnp.ones(3)))
