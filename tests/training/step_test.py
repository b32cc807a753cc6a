"""The training step against plain autodiff, and its invariances: mesh, microbatches, chunk, padding."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
import numpy as np
import optax
import pytest

from alignjax import objectives, stats
from alignjax.models import transformer
from alignjax.parallel import mesh as mesh_lib
from alignjax.parallel import rules
from alignjax.training import forward, references, rows
from alignjax.training import state as state_lib
from alignjax.training import step as step_lib
from alignjax.training.policy import Policy
from alignjax.types import Term
from tests import fixtures
from tests.models import token_batches
from tests.training import bigram

CONFIG = transformer.TransformerConfig(
  vocab_size=24,
  width=16,
  layers=2,
  heads=4,
  kv_heads=2,
  head_width=4,
  mlp_width=32,
  norm_epsilon=1e-5,
  rope_theta=1e4,
  tied_embeddings=True,
  max_positions=64,
  remat='none',  # transformer_test.py compares it with the others
)
ONE_LAYER = dataclasses.replace(CONFIG, layers=1, scan_layers=False)
OBJECTIVE = objectives.dpo(beta=0.3) + 0.1 * objectives.sft()


def batch_of(prompts=8):
  batch = fixtures.preference_batch(seed=1, prompts=prompts, vocab=CONFIG.vocab_size)
  return dataclasses.replace(batch, weight=batch.weight * (np.arange(prompts) != 2))  # a padding row


@pytest.fixture(scope='module')
def model():
  return bigram.MODEL


@pytest.fixture(scope='module')
def params():
  return bigram.params(2), bigram.params(3)


def coupled():
  """An objective in which rows see each other: DPO margins around their mean over the batch."""

  def apply(table, batch):
    margin = table.log_ratio()[:, 0] - table.log_ratio()[:, 1]
    mean = jnp.sum(batch.weight * margin) / jnp.sum(batch.weight)
    return Term(-jax.nn.log_sigmoid(margin - mean) + 0.01 * jnp.square(mean), {'margin': jax.lax.stop_gradient(margin)})

  return objectives.Objective(frozenset({stats.logp, stats.reference_logp}), apply, couples_rows=True, name='coupled()')


def plain_gradient(model, objective, policy, reference, batch):
  """Autodiff through full logits: what every other way has to equal."""

  def logits(params):
    states = model.hidden(params, batch.prompt, batch.prompt_length, batch.response, batch.response_length)
    return jnp.einsum('bnrd,dv->bnrv', states, model.head(params).kernel)

  def loss(policy):
    table = stats.from_logits(objective.needs, logits(policy), logits(reference), batch)
    return jnp.sum(batch.weight * objective.apply(table, batch).loss) / jnp.sum(batch.weight)

  return jax.jit(jax.value_and_grad(loss))(policy)


def placed(tree, shardings):
  """The arrays on a mesh, by way of the host: moving them between devices would compile programs."""

  def on_host(leaf):
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)

  return jax.device_put(jax.tree.map(on_host, tree), shardings)


def step_gradient(model, objective, policy, reference, batch, mesh=None, **options):
  """Loss, metrics and gradient as the step sees them: with learning rate 1 the update is the gradient."""
  step = step_lib.build_train_step(Policy(model), objective, optax.sgd(1.0), mesh=mesh, **options)
  state = state_lib.TrainState.create(policy, optax.sgd(1.0), jax.random.key(0))
  frozen = state_lib.Frozen(references.NotLoaded() if reference is None else references.Live(reference))
  if mesh is not None:
    shardings = state_lib.shardings(mesh, state)
    places = shardings, state_lib.Frozen(references.Live(shardings.params)), rules.batch_sharding(mesh)
    state, frozen, batch = placed((state, frozen, batch), places)
  after, metrics = jax.jit(step)(state, frozen, batch)
  gradient = jax.tree.map(lambda before, now: np.asarray(before) - np.asarray(now), policy, after.params)
  return metrics, gradient


def norm(tree):
  """With numpy, since JAX would compile programs for every shape."""
  return np.linalg.norm([np.linalg.norm(np.asarray(leaf)) for leaf in jax.tree.leaves(tree)])


def relative_error(tree, expected):
  difference = jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), tree, expected)
  return norm(difference) / norm(expected)


@pytest.fixture(scope='module')
def stepped(model, params):
  """Metrics and gradient of one step with `batch_of()`."""
  return step_gradient(model, OBJECTIVE, *params, batch_of())


EXPECTED = {'rowwise': OBJECTIVE, 'coupled': coupled()}


@pytest.fixture(scope='module')
def expected(model, params):
  """(objective by name) -> the objective, and the loss and gradient of 16 prompts by plain autodiff."""
  return functools.cache(lambda name: (EXPECTED[name], *plain_gradient(model, EXPECTED[name], *params, batch_of(16))))


def padded(batch):
  """The same batch with more padding, of other tokens."""
  more = ((0, 0), (0, 0), (0, 5))
  return dataclasses.replace(
    batch,
    prompt=np.pad(batch.prompt, ((0, 0), (0, 6)), constant_values=3),
    response=np.pad(batch.response, more, constant_values=4),
    cached={name: np.pad(values, more, constant_values=5) for name, values in batch.cached.items()},
  )


@pytest.mark.parametrize(
  ('name', 'microbatches', 'chunk'),
  [
    ('rowwise', 4, 4),
    *(
      pytest.param(name, *options, marks=pytest.mark.slow)
      for name in EXPECTED
      for options in ((1, 10_000), (1, 28), (2, 1), (4, 4))
      if (name, *options) != ('rowwise', 4, 4)
    ),
  ],
)
def test_any_number_of_microbatches_and_any_chunk_give_the_plain_gradient(
  model, params, expected, name, microbatches, chunk
):
  objective, loss, gradient = expected(name)
  metrics, found = step_gradient(model, objective, *params, batch_of(16), microbatches=microbatches, chunk=chunk)
  np.testing.assert_allclose(metrics['loss'], loss, rtol=2e-6)
  np.testing.assert_allclose(metrics['gradient_norm'], norm(gradient), rtol=1e-5)
  assert relative_error(found, gradient) < 1e-5


@pytest.fixture(scope='module')
def of_a_transformer():
  """(objective by name) -> the parameters of both models, and the loss and gradient of 16 prompts."""
  plain = transformer.build(ONE_LAYER)
  both = tuple(jax.device_put(token_batches.params(plain, seed)) for seed in (2, 3))
  return functools.cache(lambda name: (both, *plain_gradient(plain, EXPECTED[name], *both, batch_of(16))))


@pytest.mark.parametrize(
  'shape', [pytest.param((8, 1, 1), marks=pytest.mark.slow), (2, 2, 2), pytest.param((1, 4, 2), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
  'name',
  ['rowwise', pytest.param('coupled', marks=pytest.mark.slow)],  # coupled_test.py has the same mesh
)
def test_any_mesh_gives_the_plain_gradient(of_a_transformer, name, shape):
  params, loss, gradient = of_a_transformer(name)
  mesh, objective = mesh_lib.make_mesh(*shape), EXPECTED[name]
  model = transformer.build(ONE_LAYER, rules.constraint(mesh))
  metrics, found = step_gradient(model, objective, *params, batch_of(16), mesh=mesh, microbatches=2, chunk=16)
  np.testing.assert_allclose(metrics['loss'], loss, rtol=2e-6)
  assert relative_error(found, gradient) < 1e-5


@pytest.mark.slow  # contract_test.py and packing_test.py have padding
def test_extra_padding_changes_nothing(model, params, stepped):
  metrics, gradient = stepped
  wide_metrics, wide_gradient = step_gradient(model, OBJECTIVE, *params, padded(batch_of()))
  # Rewards are differences of sums of about 20 nats: their last digits depend on how the sums associate.
  chex.assert_trees_all_close(wide_metrics, metrics, rtol=1e-5, atol=1e-5)
  assert relative_error(wide_gradient, gradient) < 1e-6


@pytest.mark.slow  # tests/commands/train_test.py::test_a_whole_run checks the first step of a run
def test_at_the_reference_the_loss_is_log_two_and_rewards_are_zero(model, params):
  batch = dataclasses.replace(batch_of(), label=jnp.ones(8))
  metrics, _ = step_gradient(model, objectives.dpo(), params[0], params[0], batch, chunk=8, microbatches=2)
  np.testing.assert_allclose(metrics['loss'], np.log(2.0), rtol=1e-6)
  for name in ('reward_chosen', 'reward_rejected', 'reward_margin'):
    assert metrics[name] == 0.0
  assert metrics['reward_accuracy'] == 0.5


def test_evaluation_adds_up_to_the_loss_of_the_step(model, params):
  batch = batch_of()
  batch = dataclasses.replace(batch, label=jnp.ones_like(batch.label))  # soft labels cancel most of the margin
  evaluate = jax.jit(step_lib.build_eval_step(Policy(model), OBJECTIVE, chunk=8))
  frozen = state_lib.Frozen(references.Live(params[1]))
  first, second = (
    evaluate(params[0], frozen, jax.tree.map(lambda x, i=i: np.asarray(x)[i::2], batch)) for i in range(2)
  )
  metrics, _ = step_gradient(model, OBJECTIVE, *params, batch)
  for name, value in first.items():
    np.testing.assert_allclose((value + second[name]).mean(), metrics[name], rtol=2e-6, atol=1e-7)


def test_cached_reference_statistics_need_no_reference(model, params, stepped):
  batch = batch_of()
  live, gradient = stepped

  @jax.jit
  def compute(params):
    states = forward.hidden_states(model, params, batch)
    return stats.statistics({stats.reference_logp}, states, states, batch, chunk=1000)[stats.reference_logp]

  cached = dataclasses.replace(batch, cached={'reference_logp': compute(params[1])})
  metrics, found = step_gradient(model, OBJECTIVE, params[0], None, cached, microbatches=2)
  chex.assert_trees_all_close(metrics, live, rtol=1e-5, atol=1e-5)
  assert relative_error(found, gradient) < 1e-5


def test_cached_reference_states_and_the_head_give_the_losses_of_a_live_reference(model, params):
  batch = batch_of()
  evaluate = jax.jit(step_lib.build_eval_step(Policy(model), objectives.tdpo(beta=0.3), chunk=8))
  live = evaluate(params[0], state_lib.Frozen(references.Live(params[1])), batch)
  states = jax.jit(lambda params: forward.hidden_states(model, params, batch).states)(params[1])
  cached = dataclasses.replace(batch, cached={references.STATES: states})
  found = evaluate(params[0], state_lib.Frozen(references.CachedStates(model.head(params[1]))), cached)
  chex.assert_trees_all_close(found, live, rtol=1e-6, atol=1e-6)
  assert abs(live['loss'].total - np.log(2) * live['loss'].weight) > 0.1  # another reference than the policy


def test_without_a_reference_the_step_names_what_it_lacks(model, params):
  with pytest.raises(ValueError, match='reference_logp'):
    step_gradient(model, OBJECTIVE, params[0], None, batch_of())


def test_a_batch_that_cannot_be_split_is_refused_with_the_numbers(model, params):
  with pytest.raises(ValueError, match='8 prompts cannot be split into 3 microbatches'):
    step_gradient(model, OBJECTIVE, *params, batch_of(), microbatches=3)


@pytest.mark.parametrize('options', [{'chunk': 0}, {'microbatches': 0}])
def test_impossible_sizes_are_named(model, options):
  with pytest.raises(ValueError, match=next(iter(options))):
    step_lib.build_train_step(Policy(model), OBJECTIVE, optax.sgd(1.0), **options)


def test_splitting_deals_rows_out_and_join_undoes_it():
  x = jnp.arange(12).reshape(6, 2)
  parts = rows.split({'x': x}, rows.Layout(microbatches=3))
  np.testing.assert_array_equal(parts['x'][1, :, 0], [2, 8])
  np.testing.assert_array_equal(rows.join(parts)['x'], x)


def test_optimizer_state_is_sharded_like_the_parameters():
  mesh = mesh_lib.make_mesh(1, 4, 2)
  params = jax.eval_shape(transformer.build(CONFIG).init, jax.random.key(0))
  state = jax.eval_shape(lambda p: state_lib.TrainState.create(p, optax.adamw(1e-3), jax.random.key(0)), params)
  shardings = state_lib.shardings(mesh, state)
  moments = shardings.opt_state[0].mu
  chex.assert_trees_all_equal(moments, shardings.params)
  assert all(isinstance(leaf, NamedSharding) for leaf in jax.tree.leaves(shardings))
  assert shardings.opt_state[0].count.is_fully_replicated
  assert moments['layers']['mlp']['up']['kernel'].spec == jax.sharding.PartitionSpec(None, 'fsdp', 'tensor')


def compiled_step(chunk, vocab, prompts=8, response=64):
  """The compiled step of a narrow model with a large vocabulary."""
  tx = optax.sgd(1e-3)
  params = jax.eval_shape(lambda: bigram.params(0, vocab))
  state = jax.eval_shape(lambda p: state_lib.TrainState.create(p, tx, jax.random.key(0)), params)
  batch = jax.eval_shape(lambda: fixtures.preference_batch(prompts=prompts, response_size=response))
  step = step_lib.build_train_step(Policy(bigram.MODEL), objectives.dpo(), tx, chunk=chunk)
  return jax.jit(step, donate_argnums=0).lower(state, state_lib.Frozen(references.Live(params)), batch).compile()


@pytest.mark.slow  # packing_test.py measures one chunk at a time
def test_logits_of_a_whole_batch_never_exist():
  vocab, tokens = 8192, 8 * 2 * 64
  full = tokens * vocab * 4
  table_and_gradient = 2 * vocab * bigram.WIDTH * 4
  chunked = compiled_step(64, vocab).memory_analysis().temp_size_in_bytes
  whole = compiled_step(tokens, vocab).memory_analysis().temp_size_in_bytes
  assert whole > full  # the check can see logits
  assert chunked < full / 2 + table_and_gradient
