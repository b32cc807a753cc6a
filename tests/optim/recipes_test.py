"""Expressions name optimizers, what they build is what they say, and no other order of links gets through."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax import expressions, optim
from alignjax.optim import recipes, schedules

parse = recipes.parse_optimizer
DARE = 'online_dare(reserve=0.1, alpha=1e-6)'
SHAPES = {'kernel': (3, 4), 'scale': (4,)}


def built(text: str, shape: str = 'linear', steps: int = 5, **options) -> optax.GradientTransformation:
  recipe = parse(text)
  return recipes.build_optimizer(recipe, schedules.build_schedule(shape, recipe.learning_rate, steps=steps), **options)


def tree(values: dict[str, np.ndarray]) -> dict:
  return {'a': {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}}


def draws(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
  generator = np.random.default_rng(seed)
  return [{name: generator.standard_normal(shape) for name, shape in SHAPES.items()} for _ in range(count)]


def after(tx: optax.GradientTransformation, start: dict, gradients: list, **extra) -> dict:
  """The parameters after some steps."""
  params, state = tree(start), tx.init(tree(start))
  update = jax.jit(optax.with_extra_args_support(tx).update)
  for gradient in gradients:
    updates, state = update(tree(gradient), state, params, **extra)
    params = optax.apply_updates(params, updates)
  return params['a']


def structure(text: str, **options) -> dict[str, tuple]:
  """Arrays of the state by path, which is what a checkpoint compares."""
  state = built(text, **options).init(tree(draws(1)[0]))
  return {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


@pytest.mark.parametrize(
  ('text', 'learning_rate', 'needs_delta', 'averages'),
  [
    ('adamw(1e-6)', 1e-6, False, False),
    ('adamw(learning_rate=2, beta1=0.8, weight_decay=0.1)', 2, False, False),
    ('adafactor(1e-5)', 1e-5, False, False),
    ('lion(1e-7)', 1e-7, False, False),
    ('muon(1e-6)', 1e-6, False, False),
    ('rmsprop(5e-7)', 5e-7, False, False),
    ('sgd(0.1, momentum=0.9)', 0.1, False, False),
    (f'chain(adamw(1e-6), {DARE})', 1e-6, True, False),
    (f'chain(child_tuning(0.1), lion(1e-7), {DARE}, online_ties(0.1, 1e-6), weight_decay(0.1))', 1e-7, True, False),
    ('chain(sgd(1.0), moving_average())', 1.0, False, True),
    ("chain(sgd(1.0), weight_decay(0), moving_average(0.1, 'previous'))", 1.0, False, False),
  ],
)
def test_expressions_that_name_an_optimizer(text, learning_rate, needs_delta, averages):
  recipe = parse(text)
  assert (recipe.learning_rate, recipe.needs_delta, recipe.averages) == (learning_rate, needs_delta, averages)
  assert built(text).init(tree(draws(1)[0]))


@pytest.mark.parametrize(
  ('text', 'says'),
  [
    ('admw(1e-6)', "unknown name 'admw'; did you mean adamw(learning_rate, beta1=0.9, beta2=0.999, epsilon=1e-08, "),
    ('adamw', 'adamw must be called: adamw(learning_rate, '),
    ('adamw()', "adamw: missing a required argument: 'learning_rate'"),
    ('1e-6', 'this is 1e-06, not an optimizer'),
    ('-adamw(1e-6)', 'only a number can be negated, not an optimizer'),
    ('adamw(1e-6) + lion(1e-6)', 'only calls of known names and literals are allowed'),
    (
      'dpo()',
      'Known optimizers: adafactor, adamw, chain, lion, muon, rmsprop, sgd\nKnown links of a chain: child_tuning, ',
    ),
    ('adamw(0)', 'learning_rate=0 must be a positive number'),
    ("adamw('1e-6')", "learning_rate='1e-6' must be a positive number"),
    ('adamw(True)', 'learning_rate=True must be a positive number'),
    ('adamw(1, beta2=1.0)', 'beta2=1.0 must be in [0, 1)'),
    ('adamw(1, epsilon=0)', 'epsilon=0 must be a positive number'),
    ('adamw(1, weight_decay=-1)', 'weight_decay=-1 must be at least 0'),
    ('adafactor(1, decay=1)', 'decay=1 must be in [0, 1)'),
    ('adafactor(1, clip=None)', 'clip=None must be a positive number'),
    ('lion(1, beta1=-0.1)', 'beta1=-0.1 must be in [0, 1)'),
    ('muon(1, rms=0)', 'rms=0 must be a positive number'),
    ('rmsprop(1, epsilon=0)', 'epsilon=0 must be a positive number'),
    ('rmsprop(1, decay=1)', 'decay=1 must be in [0, 1)'),
    ('rmsprop(1, momentum=-1)', 'momentum=-1 must be in [0, 1)'),
    ('sgd(1, momentum=1)', 'momentum=1 must be in [0, 1)'),
    ('chain(sgd(1), weight_decay(-1))', 'rate=-1 must be at least 0'),
    (
      'chain(adamw(1), online_dare(reserv=1, alpha=1))',
      "did you mean 'reserve'? The signature is online_dare(reserve, alpha, mask=",
    ),
    ('chain(adamw(1), online_dare(2, alpha=1))', 'reserve'),
    ('chain(adamw(1), child_tunin(1))', 'did you mean child_tuning(reserve, seed=0) or '),
    ('chain()', 'no link has a learning rate: chain one of adafactor, adamw, lion, muon, rmsprop, sgd'),
    (DARE, 'no link has a learning rate'),
    (f'chain({DARE})', 'no link has a learning rate'),
    ('chain(adamw(1), 2)', 'chain: 2 is not a link of an optimizer'),
    ('chain(chain(adamw(1)), weight_decay(1))', 'chain: chains cannot be nested'),
    ('chain(adamw(1), sgd(1))', 'a chain has one learning rate, but adamw and sgd have one each'),
    (f'chain({DARE}, adamw(1))', 'online_dare must come after adamw: it merges the update'),
    (
      'chain(weight_decay(1), adamw(1))',
      'weight_decay must come after adamw: the decay is added to the update',
    ),
    (f'chain(adamw(1), weight_decay(1), {DARE})', 'weight_decay must come after online_dare: '),
    ('chain(adamw(1), child_tuning(0.1))', 'child_tuning must come before adamw: it masks the gradient'),
    ('chain(sgd(1), moving_average(), weight_decay(1))', 'moving_average must come after weight_decay: it averages'),
    ('chain(sgd(1), moving_average(), moving_average())', 'at most one moving_average'),
    (f'chain(adamw(1, weight_decay=0.1), {DARE})', 'online_dare would also merge the weight decay of adamw'),
  ],
)
def test_what_is_no_optimizer_is_refused(text, says):
  with pytest.raises(expressions.ExpressionError) as caught:
    parse(text)
  assert says in str(caught.value)
  assert text in str(caught.value)


def test_every_transform_has_a_place():
  assert sorted(recipes.LINKS) == sorted([*optim.TRANSFORMS, 'weight_decay'])
  places = {name: link(0.1, 0.1).place.name for name, link in recipes.LINKS.items() if name.startswith('online_')}
  assert places == dict.fromkeys(['online_dare', 'online_merge', 'online_ties'], 'MERGE')


def test_adamw_is_that_of_optax_bit_for_bit():
  start, *gradients = draws(6)
  schedule = schedules.build_schedule('cosine', 1e-2, steps=5, warmup=2)
  recipe = parse('adamw(1e-2, 0.8, 0.95, epsilon=1e-6, weight_decay=0.1)')
  reference = optax.adamw(schedule, 0.8, 0.95, 1e-6, weight_decay=0.1, mask={'a': {'kernel': True, 'scale': False}})
  found, expected = (after(tx, start, gradients) for tx in (recipes.build_optimizer(recipe, schedule), reference))
  for name in SHAPES:
    assert found[name].tobytes() == expected[name].tobytes()


@pytest.mark.parametrize('clip', [0.0, 0.5])
def test_adamw_behind_a_clip_against_its_equation(clip):
  decay, beta1, beta2, epsilon = 0.1, 0.8, 0.95, 1e-8
  start, *gradients = draws(6)
  values = {name: value.copy() for name, value in start.items()}
  means, squares = ({name: np.zeros_like(x) for name, x in values.items()} for _ in range(2))
  for t, drawn in enumerate(gradients):
    norm = np.sqrt(sum(np.sum(g**2) for g in drawn.values()))
    for name, gradient in drawn.items():
      gradient = gradient * min(1.0, clip / norm) if clip else gradient
      means[name] = beta1 * means[name] + (1 - beta1) * gradient
      squares[name] = beta2 * squares[name] + (1 - beta2) * gradient**2
      adam = means[name] / (1 - beta1 ** (t + 1)) / (np.sqrt(squares[name] / (1 - beta2 ** (t + 1))) + epsilon)
      decays = decay if name == 'kernel' else 0.0
      values[name] = values[name] - 1e-2 * (1 - t / 5) * (adam + decays * values[name])
  found = after(built('adamw(1e-2, 0.8, 0.95, weight_decay=0.1)', gradient_clip=clip), start, gradients)
  for name in SHAPES:
    np.testing.assert_allclose(found[name], values[name], rtol=2e-5)


def test_weight_decay_after_a_merge_is_not_merged():
  alpha, decay = 0.25, 0.3
  start, tau, *gradients = draws(7)
  values = {name: value.copy() for name, value in start.items()}
  for t, drawn in enumerate(gradients):
    rate = 0.1 * (1 - t / 5)
    for name, gradient in drawn.items():
      merged = (1 - alpha) * -rate * gradient + alpha * tau[name]
      values[name] = values[name] + merged - (rate * decay * values[name] if name == 'kernel' else 0)
  tx = built(f'chain(sgd(0.1), online_dare(1.0, {alpha}), weight_decay({decay}))')
  found = after(tx, start, gradients, reference_delta=tree(tau))
  for name in SHAPES:
    np.testing.assert_allclose(found[name], values[name], rtol=2e-5, atol=1e-6)


def test_lion_and_sgd_against_their_equations():
  start, *gradients = draws(4)
  for text, step in {
    'lion(0.1, 0.6, 0.7)': lambda m, g: (np.sign(0.6 * m + 0.4 * g), 0.7 * m + 0.3 * g),
    'sgd(0.1, momentum=0.9)': lambda m, g: (0.9 * m + g,) * 2,
    'sgd(0.1)': lambda m, g: (g, m),
  }.items():
    found = after(built(text, 'constant'), start, gradients)
    for name, value in start.items():
      momentum = np.zeros_like(value)
      for gradient in gradients:
        update, momentum = step(momentum, gradient[name])
        value = value - 0.1 * update
      np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=text)


@pytest.mark.parametrize(
  ('text', 'momentum'), [('rmsprop(0.1, 0.6, 1e-2)', 0.0), ('rmsprop(0.1, 0.6, 1e-2, 0.9)', 0.9)]
)
def test_rmsprop_against_the_equation_of_pytorch(text, momentum):
  """epsilon is added after the square root; the learning rate, which falls, comes after the momentum."""
  start, *gradients = draws(6)
  found = after(built(text), start, gradients)
  for name, value in start.items():
    square, buffer = np.zeros_like(value), np.zeros_like(value)
    for t, gradient in enumerate(gradients):
      square = 0.6 * square + 0.4 * gradient[name] ** 2
      buffer = momentum * buffer + gradient[name] / (np.sqrt(square) + 1e-2)
      value = value - 0.1 * (1 - t / 5) * buffer
    np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)


def test_muon_makes_each_layer_orthogonal_and_leaves_the_rest_to_adam():
  shapes = {
    'embed': {'embedding': (9, 4)},
    'layers': {'up': {'kernel': (3, 4, 8), 'lora_a': (3, 4, 8), 'lora_b': (3, 4, 8)}, 'norm': {'scale': (3, 4)}},
    'unembed': {'kernel': (4, 9)},
  }
  params = jax.tree.map(jnp.zeros, shapes, is_leaf=lambda node: isinstance(node, tuple))
  keys = iter(jax.random.split(jax.random.key(0), 6))
  gradient = jax.tree.map(lambda p: jax.random.normal(next(keys), p.shape), params)
  gradient['layers']['up']['kernel'] *= jnp.array([1.0, 1e-3, 1e3])[:, None, None]
  gradient['layers']['up']['lora_a'] *= 0.0  # as it is before the first step
  tx = built('muon(0.5)')
  updates, _ = jax.jit(tx.update)(gradient, tx.init(params), params)
  assert not updates['layers']['up']['lora_a'].any()
  for name in ('kernel', 'lora_b'):
    update = np.asarray(updates['layers']['up'][name])
    np.testing.assert_allclose(np.sqrt(np.mean(update**2, axis=(1, 2))), 0.5 * 0.2, rtol=0.25)
    for layer, moved in zip(gradient['layers']['up'][name], update, strict=True):
      left, _, right = np.linalg.svd(np.asarray(layer), full_matrices=False)
      sizes = np.diag(left.T @ -moved @ right.T) / (0.5 * 0.2 * np.sqrt(8))
      assert np.all((sizes > 0.6) & (sizes < 1.4))  # the iteration leaves singular values around 1
  adam = optax.nadam(0.5)
  rest = (updates['embed'], updates['unembed'], updates['layers']['norm'])
  its = (gradient['embed'], gradient['unembed'], gradient['layers']['norm'])
  expected, _ = jax.jit(adam.update)(its, adam.init(its))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), rest, expected)


def test_adafactor_takes_stacked_layers_for_separate_matrices():
  layers = np.random.default_rng(0).standard_normal((2, 128, 130)) * np.array([1.0, 100.0])[:, None, None]
  tx = built('adafactor(0.5, clip=1e9)')

  def moved(gradient: np.ndarray) -> np.ndarray:
    params = {'kernel': jnp.zeros(gradient.shape)}
    updates, state = jax.jit(tx.update)({'kernel': jnp.asarray(gradient, jnp.float32)}, tx.init(params), params)
    assert max(leaf.size for leaf in jax.tree.leaves(state)) == gradient.size // 128
    return np.asarray(updates['kernel'])

  together = moved(layers)
  for layer, found in zip(layers, together, strict=True):
    np.testing.assert_allclose(found, moved(layer), rtol=1e-5)
    squares = layer**2
    second = np.outer(squares.mean(axis=1), squares.mean(axis=0)) / squares.mean()
    np.testing.assert_allclose(found, -0.5 * layer / np.sqrt(second), rtol=1e-4)


@pytest.mark.parametrize(
  ('text', 'other', 'same'),
  [
    ('adamw(1e-3)', 'chain(adamw(2.0, 0.1, 0.2, 0.3, weight_decay=0.4))', True),
    (f'chain(adamw(1), {DARE}, weight_decay(0.1))', 'chain(adamw(2), online_dare(0.3, 0.3), weight_decay(1))', True),
    ('adamw(1)', f'chain(adamw(1), {DARE})', False),
    (f'chain(adamw(1), {DARE})', 'chain(adamw(1), online_ties(0.1, 1e-6))', False),
    (f'chain(adamw(1), {DARE})', 'chain(adamw(1), online_dare(0.1, 1e-6, every=2))', False),
    ('adamw(1)', 'lion(1)', False),
  ],
)
def test_the_state_depends_on_what_is_chained_and_not_on_numbers(text, other, same):
  assert (structure(text) == structure(other, shape='constant', gradient_clip=1.0)) is same
