"""Relative differences of loss and gradient between equivalent arrangements of the same computation.

  python -m bench.invariance

Uses a small random model on 8 virtual CPU devices, with uneven lengths, one padding row and float32. Every arrangement
is compared with one device, one microbatch and all logits at once.
"""

from absl import app, logging
import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignjax import objectives
from alignjax.models import transformer
from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from alignjax.training import references
from alignjax.training import state as training_state
from alignjax.training import step as training_step
from alignjax.training.policy import Policy
from alignjax.types import PreferenceBatch

CONFIG = transformer.TransformerConfig(
  vocab_size=512,
  width=64,
  layers=3,
  heads=4,
  kv_heads=2,
  head_width=16,
  mlp_width=128,
  norm_epsilon=1e-5,
  rope_theta=1e4,
  tied_embeddings=True,
  max_positions=1024,
)
PROMPTS, PROMPT, RESPONSE = 32, 24, 40
OBJECTIVES = ('dpo(beta=0.1)', 'simpo(beta=2.0, gamma=0.5) + 0.1 * sft()')
ARRANGEMENTS = {
  'mesh (8, 1, 1)': {'mesh': (8, 1, 1)},
  'mesh (2, 2, 2)': {'mesh': (2, 2, 2)},
  'mesh (1, 4, 2)': {'mesh': (1, 4, 2)},
  '2 microbatches': {'microbatches': 2},
  '4 microbatches': {'microbatches': 4},
  'chunk 16': {'chunk': 16},
  'chunk 256': {'chunk': 256},
  'extra padding': {'padding': 24},
  'all of them': {'mesh': (2, 2, 2), 'microbatches': 4, 'chunk': 16, 'padding': 24},
}


def make_batch(padding: int) -> PreferenceBatch:
  rng = np.random.default_rng(0)
  response_length = rng.integers(1, RESPONSE + 1, (PROMPTS, 2))
  weight = np.ones(PROMPTS)
  weight[5] = 0.0
  prompt = rng.integers(0, CONFIG.vocab_size, (PROMPTS, PROMPT))
  response = rng.integers(0, CONFIG.vocab_size, (PROMPTS, 2, RESPONSE))
  return PreferenceBatch(
    prompt=jnp.asarray(np.pad(prompt, ((0, 0), (0, padding))), jnp.int32),
    prompt_length=jnp.asarray(rng.integers(1, PROMPT + 1, PROMPTS), jnp.int32),
    response=jnp.asarray(np.pad(response, ((0, 0), (0, 0), (0, padding))), jnp.int32),
    response_length=jnp.asarray(response_length, jnp.int32),
    label=jnp.ones(PROMPTS),
    weight=jnp.asarray(weight, jnp.float32),
  )


def loss_and_gradient(objective: str, *, mesh=(1, 1, 1), microbatches=1, chunk=100_000, padding=0):
  """Loss and gradient of a step; the gradient is the update with learning rate 1."""
  devices = jax.devices()[: int(np.prod(mesh))]
  mesh = parallel_mesh.make_mesh(*mesh, devices=devices)
  model = transformer.build(CONFIG, rules.constraint(mesh))
  params = model.init(jax.random.key(0))
  reference = jax.tree.map(lambda x, y: x + 0.1 * y, params, model.init(jax.random.key(1)))
  tx = optax.sgd(1.0)
  state = training_state.TrainState.create(params, tx, jax.random.key(0))
  shardings = training_state.shardings(mesh, state)
  step = training_step.build_train_step(
    Policy(model), objectives.parse(objective), tx, chunk=chunk, microbatches=microbatches, mesh=mesh
  )
  after, metrics = jax.jit(step, out_shardings=(shardings, rules.replicated(mesh)))(
    jax.device_put(state, shardings),
    jax.device_put(
      training_state.Frozen(references.Live(reference)), training_state.Frozen(references.Live(shardings.params))
    ),
    jax.device_put(make_batch(padding), rules.batch_sharding(mesh)),
  )
  return float(metrics['loss']), jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), params, after.params)


def main(_):
  logging.set_verbosity(logging.WARNING)
  jax.config.update('jax_num_cpu_devices', 8)
  print(f'{"objective":<42} {"arrangement":<16} {"loss":>9} {"gradient":>9}')
  for objective in OBJECTIVES:
    loss, gradient = loss_and_gradient(objective)
    for name, options in ARRANGEMENTS.items():
      other_loss, other = loss_and_gradient(objective, **options)
      difference = jax.tree.map(np.subtract, other, gradient)
      relative = float(optax.tree.norm(difference) / optax.tree.norm(gradient))
      print(f'{objective:<42} {name:<16} {abs(other_loss / loss - 1):9.1e} {relative:9.1e}', flush=True)


if __name__ == '__main__':
  app.run(main)
