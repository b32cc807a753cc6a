"""Rewards in training: the state after the last token, and gradients through the score head on any mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax import objectives, stats
from alignjax.models import base, lora, transformer
from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from alignjax.training import forward
from alignjax.training import state as training_state
from alignjax.training import step as training_step
from alignjax.training.policy import Policy
from alignjax.types import Head, PreferenceBatch
from tests import fixtures
from tests.models import token_batches
from tests.training import step_test

CONFIG = dataclasses.replace(step_test.CONFIG, layers=1, remat='none', tied_embeddings=False, scan_layers=False)
BATCH = fixtures.preference_batch(seed=1, prompts=8, response_size=5, vocab=CONFIG.vocab_size)
BATCH = dataclasses.replace(BATCH, response_length=BATCH.response_length.at[0, 0].set(5))  # there is a full response
SCORE = transformer.build(dataclasses.replace(CONFIG, output='score'))
PARAMS = jax.device_put(token_batches.params(SCORE))


def model_of(objective):
  model = transformer.build(dataclasses.replace(CONFIG, output=forward.output(objective.needs)))
  return model, jax.device_put(token_batches.params(model))


@jax.jit
def rewards(params, batch):
  hidden = forward.hidden_states(SCORE, params, batch, {stats.reward})
  return stats.statistics({stats.reward}, hidden, None, batch, chunk=64)[stats.reward]


def test_the_heads_are_those_that_the_objective_needs():
  heads = {'bradley_terry()': 'score', 'bradley_terry() + 0.01 * sft()': 'both', 'dpo()': 'logits'}
  for name, output in heads.items():
    model, params = model_of(objectives.parse(name))
    assert model.config.output == output
    assert {'score', 'unembed'} & params.keys() == {
      'score': {'score'},
      'both': {'score', 'unembed'},
      'logits': {'unembed'},
    }[output]


@pytest.mark.slow  # the test below changes the last token and the padding
def test_the_reward_is_read_after_the_last_token_whatever_follows():
  """In longer responses, the state before the next token is that entry; the next token does not matter."""
  follow = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, *BATCH.response.shape[:2]))
  longer = np.pad(np.asarray(BATCH.response), ((0, 0), (0, 0), (0, 1)))
  for tokens in follow:
    np.put_along_axis(longer, np.asarray(BATCH.response_length)[..., None], tokens[..., None], axis=2)
    states = jax.jit(SCORE.hidden)(PARAMS, BATCH.prompt, BATCH.prompt_length, longer, BATCH.response_length + 1)
    final = np.take_along_axis(np.asarray(states), np.asarray(BATCH.response_length)[..., None, None], axis=2)[:, :, 0]
    np.testing.assert_allclose(rewards(PARAMS, BATCH), final @ np.asarray(PARAMS['score']['kernel'])[:, 0], atol=1e-5)


def test_the_reward_depends_on_the_last_token_and_not_on_the_batch():
  """The end token counts; N, padding and batch size do not."""
  together = np.asarray(rewards(PARAMS, BATCH))
  last = np.asarray(BATCH.response_length)[..., None] - 1
  changed = np.array(BATCH.response)
  np.put_along_axis(changed, last, (np.take_along_axis(changed, last, 2) + 1) % CONFIG.vocab_size, axis=2)
  assert np.abs(rewards(PARAMS, dataclasses.replace(BATCH, response=changed)) - together).min() > 1e-3
  padded = dataclasses.replace(
    BATCH,
    prompt=jnp.pad(BATCH.prompt, ((0, 0), (0, 6)), constant_values=3),
    response=jnp.pad(BATCH.response, ((0, 0), (0, 0), (0, 4)), constant_values=5),
  )
  np.testing.assert_allclose(rewards(PARAMS, padded), together, rtol=0, atol=1e-6)
  alone = [
    rewards(
      PARAMS,
      dataclasses.replace(
        jax.tree.map(lambda x, row=row: x[row : row + 1], BATCH),
        response=BATCH.response[row : row + 1, n : n + 1],
        response_length=BATCH.response_length[row : row + 1, n : n + 1],
      ),
    )
    for row, n in ((0, 0), (3, 1), (7, 0))
  ]
  np.testing.assert_allclose(np.ravel(alone), together[[0, 3, 7], [0, 1, 0]], rtol=0, atol=1e-6)


def test_in_bfloat16_the_score_and_the_sum_stay_float32():
  """Rounding the kernel to bfloat16 would change the reward."""
  final = jnp.asarray(np.random.default_rng(0).standard_normal((2, 2, 64)), jnp.bfloat16)
  kernel = jnp.asarray(np.random.default_rng(1).standard_normal((64, 1)), jnp.float32)
  batch = fixtures.preference_batch(prompts=2)
  hidden = stats.HiddenStates(jnp.zeros((2, 2, 7, 64), jnp.bfloat16), Head(None, score=kernel), final)
  found = stats.statistics({stats.reward}, hidden, None, batch, chunk=8)[stats.reward]
  exact = np.asarray(final, np.float64) @ np.asarray(kernel, np.float64)[:, 0]
  np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)
  rounded = np.asarray(final, np.float64) @ np.asarray(kernel.astype(jnp.bfloat16), np.float64)[:, 0]
  assert np.abs(rounded - exact).max() > 1e-3


def expected_gradient(policy, objective, params, base):
  """Autodiff through the whole table."""
  model = policy.bind(base)

  def loss(params):
    hidden = forward.hidden_states(model, params, BATCH, objective.needs)
    table = stats.statistics(objective.needs, hidden, None, BATCH, chunk=1024)
    return jnp.sum(BATCH.weight * objective.apply(table, BATCH).loss) / jnp.sum(BATCH.weight)

  return jax.jit(jax.grad(loss))(params)


@pytest.mark.parametrize(
  ('name', 'couples_rows', 'shape', 'adapter'),
  [
    pytest.param('bradley_terry(centre=0.1)', False, None, None, marks=pytest.mark.slow),
    ('bradley_terry() + 0.1 * sft()', False, (2, 2, 2), lora.LoRA(rank=2, targets='query')),
    pytest.param('bradley_terry() + 0.1 * sft()', True, (2, 2, 2), None, marks=pytest.mark.slow),
    pytest.param('bradley_terry() + 0.1 * sft()', False, (4, 2, 1), None, marks=pytest.mark.slow),
  ],
)
def test_the_gradient_does_not_depend_on_how_the_batch_is_split(name, couples_rows, shape, adapter):
  objective = dataclasses.replace(objectives.parse(name), couples_rows=couples_rows)
  model, params = model_of(objective)
  mesh = None if shape is None else parallel_mesh.make_mesh(*shape)
  policy, base = Policy(model, adapter), None
  if adapter is not None:
    base, params = params, policy.init(jax.random.key(2), params)
    params = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.2), params)
  wanted = expected_gradient(policy, objective, params, base)
  microbatches = 2 if mesh is None else 1
  step = training_step.build_train_step(
    policy, objective, optax.sgd(1.0), chunk=4, microbatches=microbatches, mesh=mesh
  )
  batch = BATCH if mesh is None else step_test.placed(BATCH, rules.batch_sharding(mesh))
  state = training_state.TrainState.create(params, optax.sgd(1.0), jax.random.key(0))
  after, metrics = jax.jit(step)(state, training_state.Frozen(base=base), batch)
  found = jax.tree.map(lambda before, now: np.asarray(before) - np.asarray(now), params, after.params)
  assert step_test.norm(wanted['score']) > 1e-2
  assert step_test.relative_error(found, wanted) < 1e-5
  assert 0.0 <= float(metrics['reward_accuracy']) <= 1.0
  assert float(metrics['reward_std']) > 0


def test_a_language_model_has_no_reward():
  model = transformer.build(CONFIG)

  def table(needs):
    hidden = forward.hidden_states(model, model.init(jax.random.key(0)), BATCH, needs)
    return stats.statistics({stats.reward}, hidden, None, BATCH, chunk=64)

  with pytest.raises(ValueError, match='`reward` needs a model with a score head'):
    jax.eval_shape(lambda: table({stats.reward}))
  with pytest.raises(ValueError, match=r"'reward' reads the state after each response: give it as HiddenStates\.final"):
    jax.eval_shape(lambda: table({stats.logp}))


def test_a_reward_model_has_no_logits():
  with pytest.raises(ValueError, match='a reward model without an output head'):
    stats.logits(stats.HiddenStates(jnp.zeros((1, 1, 1, CONFIG.width)), SCORE.head(PARAMS)))


def counted(count, seed, soft, vocab=6, tokens=6):
  """Pairs of random responses whose reward is linear in how often each token occurs.

  Args:
    count: number of pairs.
    seed: seed of the pairs.
    soft: whether labels are the probabilities of the Bradley-Terry model, or drawn from it.
    vocab: number of tokens, each with its own value.
    tokens: longest response.

  Returns:
    The batch, and the accuracy of the true reward on drawn labels.
  """
  rng = np.random.default_rng(seed)
  value = np.random.default_rng(0).normal(size=vocab)
  response = rng.integers(0, vocab, (count, 2, tokens)).astype(np.int32)
  length = rng.integers(3, tokens + 1, (count, 2)).astype(np.int32)
  reward = np.where(np.arange(tokens) < length[..., None], value[response], 0.0).sum(axis=-1)
  margin = reward[:, 0] - reward[:, 1]
  probability = 1 / (1 + np.exp(-margin))
  wins = rng.random(count) < probability
  batch = PreferenceBatch(
    prompt=np.zeros((count, 1), np.int32),
    prompt_length=np.ones(count, np.int32),
    response=response,
    response_length=length,
    label=(probability if soft else wins).astype(np.float32),
    weight=np.ones(count, np.float32),
  )
  return batch, np.mean((margin > 0) == wins)


def bag_of_tokens(vocab):
  """A model whose states are the counts of the response tokens so far, so that its reward is linear in them."""

  def hidden(params, prompt, prompt_length, response, response_length):
    del params, prompt, prompt_length, response_length
    seen = jnp.cumsum(jax.nn.one_hot(response, vocab), axis=2)
    return jnp.pad(seen, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]  # before each token

  return base.LanguageModel(
    config=None,
    init=lambda key: {'score': {'kernel': jnp.zeros((vocab, 1))}},
    hidden=hidden,
    head=lambda params: Head(None, score=params['score']['kernel']),
    prefill=None,
    decode=None,
  )


def accuracy_after(model, params, tx, updates, train, held_out):
  """The accuracy of a reward model on other pairs, after all updates on the same batch."""
  objective, policy = objectives.bradley_terry(), Policy(model)
  step = training_step.build_train_step(policy, objective, tx, chunk=4096)
  evaluate = training_step.build_eval_step(policy, objective, chunk=4096)

  @jax.jit
  def run(train, held_out):
    state = training_state.TrainState.create(params, tx, jax.random.key(0))
    state = jax.lax.fori_loop(0, updates, lambda i, state: step(state, training_state.Frozen(), train)[0], state)
    return evaluate(state.params, training_state.Frozen(), held_out)['reward_accuracy'].mean()

  return [float(run(*pairs)) for pairs in zip(train, held_out, strict=True)]


@pytest.mark.slow  # the gradient is compared above
def test_bradley_terry_learns_a_linear_reward_of_token_counts():
  """From 300 drawn labels. On other pairs it is nearly as accurate as the true reward, whose accuracy is 0.69."""
  model = bag_of_tokens(6)
  train = [counted(300, seed=seed, soft=False)[0] for seed in (1, 2, 3)]
  held_out, bayes = zip(*(counted(20000, seed=seed, soft=False) for seed in (101, 102, 103)), strict=True)
  found = accuracy_after(model, model.init(None), optax.adam(0.1), 100, train, held_out)
  lost = np.array(bayes) - found
  print(f'R3: accuracy {np.round(found, 3)}, true reward {np.round(bayes, 3)}, lost at most {lost.max():.4f}')
  assert lost.max() <= 0.02
  assert min(bayes) > 0.68


@pytest.mark.slow  # the one above has the same objective, and compiles faster
def test_a_transformer_learns_a_linear_reward_of_token_counts():
  """From probabilities as labels: 300 drawn labels are too few for its parameters."""
  model = transformer.build(dataclasses.replace(CONFIG, output='score', vocab_size=6))
  params, tx = jax.device_put(token_batches.params(model)), optax.adamw(1e-2, weight_decay=0.1)
  held_out, bayes = counted(2000, seed=2, soft=False)
  (found,) = accuracy_after(model, params, tx, 100, [counted(300, seed=1, soft=True)[0]], [held_out])
  assert found >= bayes - 0.02
