"""The training step and the evaluation step: pure functions, to be jitted by whoever knows the shardings."""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
import optax

from alignjax import objectives, optim, stats
from alignjax.models import base as models
from alignjax.models import lora as lora_lib
from alignjax.training import gradients
from alignjax.training.state import Frozen, TrainState
from alignjax.types import Array, Head, Params, PreferenceBatch, WeightedSum

Metrics = dict[str, Array]


def build_train_step(
  model: models.LanguageModel,
  objective: objectives.Objective,
  tx: optax.GradientTransformation,
  *,
  lora: lora_lib.LoRA | None = None,
  chunk: int = 1024,
  microbatches: int = 1,
  mesh: jax.sharding.Mesh | None = None,
) -> Callable[[TrainState, Frozen, PreferenceBatch], tuple[TrainState, Metrics]]:
  """Builds one update: gradient of sum_b weight_b loss_b / sum_b weight_b, then the optimizer.

  Args:
    model: the policy; the reference has its shape.
    objective: the loss.
    tx: an optax transformation. Those that take extra arguments are given `reference_delta`, `Frozen.delta`.
    lora: trains adapters of `Frozen.base`, which the state holds for parameters; None trains the model's own.
    chunk: response tokens whose logits exist at once on a device: a few times chunk * V * 4 bytes of memory.
    microbatches: parts into which the batch is split and whose gradients are summed before the division.
    mesh: where the batch is split, over (data, fsdp); None for a single device.

  Returns:
    A pure function (state, frozen, batch) -> (state, metrics). Metrics are float32 scalars: `loss`, `gradient_norm`
    (before the optimizer's own clipping), `prompts` (the sum of weights), lengths in tokens, log-probabilities of
    responses in nats, what the objective reports, and what online merging does, `merge/...`.

  Raises:
    ValueError: at build time for a chunk or a number of microbatches below 1; at trace time for a batch that does not
      divide into microbatches and shards, or a reference or base that is missing.
  """
  _require_positive(chunk=chunk, microbatches=microbatches)
  options = {'reference_model': model, 'chunk': chunk, 'microbatches': microbatches, 'mesh': mesh}
  update = optax.with_extra_args_support(tx).update

  def step(state: TrainState, frozen: Frozen, batch: PreferenceBatch) -> tuple[TrainState, Metrics]:
    policy, reference = models_of(model, lora, frozen)
    inputs = (policy, objective, state.params, reference, batch)
    memory = state.memory
    if objective.couples_rows:
      total, sums, memory = gradients.coupled(*inputs, memory=memory, step=state.step, **options)
    else:
      total, sums = gradients.rowwise(*inputs, step=state.step, **options)
    weight = sums['loss'].weight
    mean = jax.tree.map(lambda g: g / jnp.where(weight > 0, weight, 1.0), total)
    updates, opt_state = update(mean, state.opt_state, state.params, reference_delta=frozen.delta)
    params = optax.apply_updates(state.params, updates)
    metrics = {name: value.mean() for name, value in sums.items()}
    metrics |= {'gradient_norm': optax.tree.norm(mean), 'prompts': weight, **objective.summary(metrics)}
    metrics |= {f'merge/{name}': value for name, value in optim.merge_metrics(opt_state).items()}
    return TrainState(state.step + 1, params, opt_state, state.key, memory), metrics

  return step


def build_eval_step(
  model: models.LanguageModel,
  objective: objectives.Objective,
  *,
  lora: lora_lib.LoRA | None = None,
  chunk: int = 1024,
  mesh: jax.sharding.Mesh | None = None,
) -> Callable[[Params, Frozen, PreferenceBatch], dict[str, WeightedSum]]:
  """Builds the evaluation of one batch: loss and metrics as weighted sums, to be added over batches and then divided.

  Args and Raises: as for `build_train_step`.
  """
  _require_positive(chunk=chunk)

  def evaluate(params: Params, frozen: Frozen, batch: PreferenceBatch) -> dict[str, WeightedSum]:
    policy, reference = models_of(model, lora, frozen)
    reference = gradients.reference_states(model, objective.needs, reference, batch)
    positions = gradients.positions_of(batch, chunk, mesh)
    policy = gradients.hidden_states(policy, params, batch)
    table = stats.statistics(objective.needs, policy, reference, batch, positions=positions)
    table = dataclasses.replace(table, memory=frozen.memory, step=frozen.step)
    return dict(gradients.weighted_sums(objective, table, batch))

  return evaluate


def models_of(
  model: models.LanguageModel, lora: lora_lib.LoRA | None, frozen: Frozen
) -> tuple[models.LanguageModel, Params | Head | None]:
  """The policy, and the parameters of the reference: with adapters the base, unless there is another."""
  if (lora is None) != (frozen.base is None):
    raise ValueError('adapters need a base, and a base needs adapters: give both `lora` and `Frozen.base`, or neither')
  if lora is None:
    return model, frozen.reference
  return lora_lib.bind(model, frozen.base, lora), frozen.base if frozen.reference is None else frozen.reference


def _require_positive(**sizes: int) -> None:
  for name, size in sizes.items():
    if size < 1:
      raise ValueError(f'{name} must be at least 1, got {size}')
