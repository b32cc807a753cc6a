"""The training step and the evaluation step: pure functions that the caller jits with its shardings."""

from collections.abc import Callable, Mapping
import dataclasses

import jax
import jax.numpy as jnp
import optax

from alignjax import objectives, optim, stats
from alignjax.training import forward, gradients, rows
from alignjax.training.policy import Policy
from alignjax.training.state import Frozen, TrainState
from alignjax.types import Array, Params, PreferenceBatch, WeightedSum

Metrics = dict[str, Array]


def build_train_step(
  policy: Policy,
  objective: objectives.Objective,
  tx: optax.GradientTransformation,
  *,
  chunk: int = 1024,
  microbatches: int = 1,
  mesh: jax.sharding.Mesh | None = None,
) -> Callable[[TrainState, Frozen, PreferenceBatch], tuple[TrainState, Metrics]]:
  """Builds one update: gradient of sum_b weight_b loss_b / sum_b weight_b, then the optimizer.

  Args:
    policy: the model and its trained parameters; the reference shares the model.
    objective: the loss.
    tx: an optax transformation. If it takes extra arguments, it gets `reference_delta=Frozen.delta`.
    chunk: response tokens whose logits exist at once on a device: a few times chunk * V * 4 bytes of memory.
    microbatches: number of parts of the batch that are processed in sequence; their gradients are summed.
    mesh: the mesh over whose (data, fsdp) axes the batch is split; None for a single device.

  Returns:
    A pure function (state, frozen, batch) -> (state, metrics). Metrics are float32 scalars: `loss`, `gradient_norm`
    (before the optimizer's own clipping), `prompts` (the sum of weights), lengths in tokens, log-probabilities of
    responses in nats, the objective's metrics, and those of online merging, `merge/...`.

  Raises:
    ValueError: chunk or microbatches is below 1 (at build time); the batch does not divide into microbatches and
      shards, or the reference or base is missing (at trace time).
    AssertionError: a field of the batch does not have the shape that `PreferenceBatch` documents (at trace time).
  """
  layout = rows.Layout(chunk, microbatches, mesh)
  differentiate = gradients.coupled if objective.couples_rows else gradients.rowwise
  update = build_update(tx)

  def step(state: TrainState, frozen: Frozen, batch: PreferenceBatch) -> tuple[TrainState, Metrics]:
    forward.assert_batch(batch)
    frozen = dataclasses.replace(frozen, memory=state.memory, step=state.updates)
    total, sums, memory = differentiate(policy, objective, state.params, frozen, batch, layout)
    weight = sums['loss'].weight
    mean = jax.tree.map(lambda g: g / jnp.where(weight > 0, weight, 1.0), total)
    metrics = {name: value.mean() for name, value in sums.items()}
    metrics |= {'prompts': weight, **objective.summary(metrics)}
    return update(state, frozen, mean, memory, metrics)

  return step


Update = Callable[[TrainState, Frozen, Params, Mapping[str, Array], Metrics], tuple[TrainState, Metrics]]


def build_update(tx: optax.GradientTransformation) -> Update:
  """Builds the update from the gradient of a mean: (state, frozen, gradient, the objective's next memory, metrics)."""
  transform = optax.with_extra_args_support(tx).update

  def update(
    state: TrainState, frozen: Frozen, gradient: Params, memory: Mapping[str, Array], metrics: Metrics
  ) -> tuple[TrainState, Metrics]:
    updates, opt_state = transform(gradient, state.opt_state, state.params, reference_delta=frozen.delta)
    params = optax.apply_updates(state.params, updates)
    metrics = {**metrics, 'gradient_norm': optax.tree.norm(gradient)}
    metrics |= {f'merge/{name}': value for name, value in optim.merge_metrics(opt_state).items()}
    return TrainState(state.step + 1, params, opt_state, state.key, memory, state.skips), metrics

  return update


EvalStep = Callable[[Params, Frozen, PreferenceBatch], dict[str, WeightedSum]]


def build_eval_step(
  policy: Policy,
  objective: objectives.Objective,
  *,
  chunk: int = 1024,
  mesh: jax.sharding.Mesh | None = None,
) -> EvalStep:
  """Builds the evaluation of one batch: loss and metrics as weighted sums that add over batches before the division.

  Args, Raises: as for `build_train_step`.

  Returns:
    A pure function (trained parameters, frozen, batch) -> weighted sums by name. If the objective has a pool, the
    losses are those of the whole evaluation if `frozen.pool` holds its sums, and otherwise those of the batch.
  """
  tabulate = _tabulation(policy, objective, rows.Layout(chunk, mesh=mesh))

  def evaluate(params: Params, frozen: Frozen, batch: PreferenceBatch) -> dict[str, WeightedSum]:
    return dict(forward.weighted_sums(objective, tabulate(params, frozen, batch), batch))

  return evaluate


def build_pool_step(
  policy: Policy,
  objective: objectives.Objective,
  *,
  chunk: int = 1024,
  mesh: jax.sharding.Mesh | None = None,
) -> EvalStep | None:
  """Builds the sums of `objective.pool` over one batch, to be added over all batches before they are evaluated.

  Args, Raises: as for `build_train_step`.

  Returns:
    A pure function (trained parameters, frozen, batch) -> the sums; None if the objective has no pool.
  """
  if not objective.pool.names:
    return None
  tabulate = _tabulation(policy, objective, rows.Layout(chunk, mesh=mesh))

  def pool(params: Params, frozen: Frozen, batch: PreferenceBatch) -> dict[str, WeightedSum]:
    return dict(objective.pool.sums(tabulate(params, frozen, batch), batch.examples))

  return pool


def _tabulation(
  policy: Policy, objective: objectives.Objective, layout: rows.Layout
) -> Callable[[Params, Frozen, PreferenceBatch], stats.StatTable]:
  """Builds the forward pass of an evaluation."""

  def tabulate(params: Params, frozen: Frozen, batch: PreferenceBatch) -> stats.StatTable:
    forward.assert_batch(batch)
    model = policy.bind(frozen.base)
    reference = frozen.reference_states(policy, objective.needs, batch)
    hidden = forward.hidden_states(model, params, batch, objective.needs)
    table = forward.table(objective.needs, hidden, reference, batch, layout)
    return dataclasses.replace(table, memory=frozen.memory, step=frozen.step, pool=frozen.pool)

  return tabulate
