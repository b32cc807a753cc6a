"""The share of the update that online merging keeps, at the first merges of a run.

  python -m bench.kept

Adam's first update, and every update of Lion, has (nearly) one magnitude everywhere, so the largest entries are a
choice among ties. Gradients are normal random numbers. The parameters have a stack of layers and a matrix that is not
stacked; they are sharded over all devices of each mesh. `exact` is the share of int(p n) entries of each tensor.
"""

import functools

from absl import app, logging
import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignjax import optim
from alignjax.optim import top_fraction
from alignjax.parallel import mesh as meshes
from alignjax.training import state as training_state

RATE, ALPHA, MERGES = 1e-6, 1e-7, 3
OPTIMIZERS = {'adam': optax.adam, 'lion': functools.partial(optax.lion, weight_decay=0.0), 'sgd': optax.sgd}
SHAPES = {'layers': {'up': {'kernel': (4, 256, 384)}}, 'embed': {'embedding': (1000, 256)}}


def noise(seed: int, scale: float = 1.0, dtype=jnp.float32):
  rng = np.random.default_rng(seed)
  shapes, structure = jax.tree.flatten(SHAPES, is_leaf=lambda x: isinstance(x, tuple))
  return structure.unflatten([jnp.asarray(scale * rng.standard_normal(shape), dtype) for shape in shapes])


def kept(tx: optax.GradientTransformation, devices: int) -> list[float]:
  """The metric `kept` at the first merges on a mesh of so many devices."""
  tx = optax.chain(tx, optax.identity())
  params, tau = noise(0, 0.02), noise(1, 1e-3, jnp.bfloat16)
  mesh = meshes.make_mesh(1, devices, 1, devices=jax.devices()[:devices])
  state = training_state.TrainState.create(params, tx, jax.random.key(0))
  places = training_state.shardings(mesh, state)
  state, tau = jax.device_put(state, places), jax.device_put(tau, places.params)

  @jax.jit
  def step(params, opt_state, gradients, tau):
    updates, opt_state = tx.update(gradients, opt_state, params, reference_delta=tau)
    return optax.apply_updates(params, updates), opt_state

  params, opt_state, shares = state.params, state.opt_state, []
  for merge in range(MERGES):
    gradients = jax.device_put(noise(2 + merge), places.params)
    params, opt_state = step(params, opt_state, gradients, tau)
    shares.append(float(optim.merge_metrics(opt_state)['kept']))
  return shares


def exact(reserve: float) -> float:
  layers, *shape = SHAPES['layers']['up']['kernel']
  sizes = [int(np.prod(shape))] * layers + [int(np.prod(SHAPES['embed']['embedding']))]
  return sum(top_fraction.kept_count(reserve, size) for size in sizes) / sum(sizes)


def main(_):
  logging.set_verbosity(logging.WARNING)
  jax.config.update('jax_num_cpu_devices', 8)
  print(f'{"p":>6} {"exact":>11} {"optimizer":<9} {"devices":>7} {"merge 1":>11} {"merge 2":>11} {"merge 3":>11}')
  for reserve in (0.05, 5e-4):
    for name, base in OPTIMIZERS.items():
      for devices in (1, 8):
        shares = kept(optax.chain(base(RATE), optim.online_ties(reserve, ALPHA)), devices)
        print(
          f'{reserve:6} {exact(reserve):11.4e} {name:<9} {devices:7} ' + ' '.join(f'{share:11.4e}' for share in shares),
          flush=True,
        )


if __name__ == '__main__':
  app.run(main)
