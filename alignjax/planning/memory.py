"""Device memory of a training step: exact for the arguments, estimated for what the step creates.

A step passes through stages that need different temporaries. Its peak is the arguments plus the most expensive stage.
Every term below is one array, or one group of arrays, on one device, and its comment names it. `Sizes` has what the
terms are made of.
"""

from collections.abc import Mapping
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.models import lora, transformer
from alignjax.parallel import mesh as parallel_mesh
from alignjax.planning import program
from alignjax.run import settings
from alignjax.training import forward, references
from alignjax.training.policy import Policy
from alignjax.types import PreferenceBatch

MOST = 0.9  # share of the device memory up to which a run fits
FLOAT32 = 4  # bytes

Parts = Mapping[str, float]
"""Bytes on each device, by what they hold."""


class Estimate(NamedTuple):
  """The memory of a step on each device, in bytes."""

  arguments: Parts
  stages: Mapping[str, Parts]  # temporaries that exist together, by stage

  @property
  def stage(self) -> str:
    """The stage that needs the most memory."""
    return max(self.stages, key=lambda name: sum(self.stages[name].values()))

  @property
  def parts(self) -> dict[str, float]:
    """What the device holds at the peak."""
    return {name: size for name, size in {**self.arguments, **self.stages[self.stage]}.items() if size}

  @property
  def argument_bytes(self) -> float:
    return sum(self.arguments.values())

  @property
  def peak(self) -> float:
    """Bytes at the peak."""
    return sum(self.parts.values())

  def verdict(self, limit: float) -> str:
    """'fits', 'tight' or 'does not fit' into a device with `limit` bytes of memory."""
    return 'fits' if self.peak <= MOST * limit else 'tight' if self.peak <= limit else 'does not fit'


def estimate(planned: program.Program, config: settings.Config) -> Estimate:
  """Estimates the memory of a planned step.

  Args:
    planned: the step.
    config: the settings of the run.
  """
  return Estimate(arguments(planned), stages(Sizes.of(planned, config)))


def arguments(planned: program.Program) -> dict[str, float]:
  """The arguments of the step: exact, apart from the tiles of the TPU's memory, which pad small arrays."""
  state, frozen = planned.state, planned.frozen
  scalars = dataclasses.replace(state, params=None, opt_state=None)
  return {
    'parameters': bytes_of(state.params),
    'optimizer state': bytes_of(state.opt_state),
    'reference': bytes_of(frozen.reference),
    'frozen base': bytes_of(frozen.base),
    'delta': bytes_of(frozen.delta),
    'batch': bytes_of((planned.batch, scalars)),
  }


def bytes_of(tree: Any) -> int:
  """Bytes of a tree of placed arrays on one device; host memory does not count."""
  return sum(_bytes_of_leaf(leaf) for leaf in jax.tree.leaves(tree) if leaf.sharding.memory_kind != 'pinned_host')


def _bytes_of_leaf(leaf: Any) -> int:
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.eval_shape(jax.random.key_data, leaf)
    return math.prod(leaf.shape) * leaf.dtype.itemsize
  return math.prod(leaf.sharding.shard_shape(leaf.shape)) * jax.dtypes.itemsize_bits(leaf.dtype) // 8


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What the terms of the estimate are made of. Bytes are those on one device."""

  compute: int  # bytes of a number in the compute dtype
  saved: float  # activations that the layers keep for the backward pass
  layers_cast: float  # the device's shard of the policy's layers in the compute dtype, if that is not float32
  gathered: bool  # whether a device must gather weights before it uses them
  unpacked: bool  # whether a device must dequantise the weights of a layer before it uses them
  summed: bool  # whether gradients are summed over devices
  layer_entries: float  # entries of one layer's kernels, split over `tensor` alone
  trained_layers: float  # bytes of the shard of the layers' gradients, float32
  table_entries: float  # entries V x D of the embedding or the head, split over `tensor` alone
  trains_tables: bool  # whether embedding and head are trained, as they are without an adapter
  predicts: bool  # whether the model has a head, and not only a score
  coupled: bool  # whether the rows of the batch see each other
  embeds_reference: bool  # whether the reference has an embedding of its own, and not only a head
  of_reference: float  # of a live reference, bytes of the table gathered; 0 without
  logits: float  # float32 logits of the tokens that the head takes at once
  logit_copies: int  # arrays of that size that exist together
  groups: int  # groups of tokens that the head takes one after another
  scores: float  # float32 attention scores of one layer
  feed_forward: float  # one layer's activations of the feed-forward width, in the compute dtype
  microbatches: int

  @classmethod
  def of(cls, planned: program.Program, config: settings.Config) -> 'Sizes':
    """The sizes of a planned step."""
    built, batch = planned.built, planned.batch
    model, mesh = built.policy.model.config, built.mesh
    tensor, fsdp, shards = mesh.shape['tensor'], mesh.shape['fsdp'], parallel_mesh.batch_shards(mesh)
    prompts, responses, response = batch.response.shape
    prompt = batch.prompt.shape[1]
    width_parts = _divided(model.mlp_width, tensor)
    wide, others = saved_per_prompt(model, built.policy.adapter, built.objective.needs, (prompt, responses, response))
    rows = prompts // (shards * config.microbatches)  # prompts that a device processes at once
    tokens = rows * (prompt + responses * response)
    compute = jnp.dtype(model.compute_dtype).itemsize
    layers = planned.frozen.base['layers'] if built.policy.adapter else planned.state.params['layers']
    per_layer = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(built.shapes['layers'])) / model.layers
    split = _divided(model.kv_heads, tensor)
    table = model.vocab_size * model.width / _divided(model.vocab_size, tensor)
    predicts = model.output != 'score'
    at_once, groups = _at_once(config.chunk, rows, responses, response)
    own = isinstance(planned.frozen.reference, references.Live | references.CachedStates)
    live = own or isinstance(planned.frozen.reference, references.Base)
    needs = [stat for stat in built.objective.needs if stat.name not in batch.cached]
    joint = any(stat.policy and stat.reference for stat in needs)
    scored = rows * (responses * response * (prompt + response) + prompt * prompt)
    return cls(
      compute=compute,
      saved=rows * (wide + others / width_parts),
      layers_cast=_cast(layers, compute),
      gathered=fsdp > 1,
      unpacked=config.base_quantization != 'none',
      summed=shards > 1,
      layer_entries=per_layer / width_parts,
      trained_layers=bytes_of(planned.state.params['layers']),
      table_entries=table,
      trains_tables=built.policy.adapter is None,
      predicts=predicts,
      coupled=built.objective.couples_rows,
      embeds_reference=isinstance(planned.frozen.reference, references.Live),
      of_reference=compute * table if own else 0.0,
      logits=FLOAT32 * predicts * at_once * model.vocab_size / _divided(model.vocab_size, tensor),
      logit_copies=3 if joint else 1 + live,
      groups=groups,
      scores=FLOAT32 * scored * model.heads / split,
      feed_forward=compute * tokens * model.mlp_width * (model.experts or 1) / width_parts,
      microbatches=config.microbatches,
    )


def stages(sizes: Sizes) -> dict[str, Parts]:
  """The temporaries of each stage of a step."""
  table = sizes.table_entries
  # A table in the compute dtype. Without sharding, one in float32 is used in place.
  copied_table = sizes.compute * table * (sizes.gathered or sizes.compute < FLOAT32)
  copied_head = copied_table * sizes.predicts
  in_parts = sizes.microbatches > 1
  of_run = {
    # The compiler moves their gathering out of the loop over microbatches.
    'embedding tables, gathered': (copied_table + sizes.of_reference * sizes.embeds_reference) * in_parts,
    'summed gradients of earlier microbatches': sizes.trained_layers * in_parts,
  }
  kept = of_run | {
    # The compiler moves this cast out of the loop over layers.
    'layers in the compute dtype': sizes.layers_cast,
    'activations kept for the backward pass': sizes.saved,
  }
  # A float32 gradient of a table, whole on each device until it is summed over the devices.
  d_table = FLOAT32 * table * sizes.trains_tables
  # The head's is summed over groups of tokens first, and over devices at the end. If rows are coupled, each group's is
  # summed over devices at once, and nothing whole is kept.
  d_group = d_table * sizes.predicts
  d_head = 0.0 if sizes.coupled else d_group
  d_layer = FLOAT32 * sizes.layer_entries * (sizes.gathered and sizes.trains_tables)
  return {
    'embedding': kept
    | {
      # Gathered, and once more in the layout in which rows are looked up.
      'embedding table, gathered': 2 * copied_table,
    },
    'head': kept
    | {
      'head of the policy, gathered': copied_head,
      # The running sum, and the term of the group.
      'gradient of the head': d_group if sizes.groups == 1 else d_head + d_group,
      # Those of the policy, and their gradient.
      'logits': 2 * sizes.logits,
    },
    'logits': kept
    | {
      'heads of policy and reference, gathered': copied_head + sizes.of_reference,
      'gradient of the head': d_head if sizes.groups > 1 else 0.0,
      'logits': sizes.logits * sizes.logit_copies,
    },
    'layers': kept
    | {
      'gradient of the head': d_head,
      'gradients of the layers': sizes.trained_layers,
      "one layer's weights, gathered": sizes.compute * sizes.layer_entries * (sizes.gathered or sizes.unpacked),
      "one layer's gradients, before they are summed": d_layer,
      "one layer's activations": 3 * sizes.feed_forward + 2 * sizes.scores,
    },
    'gradients': of_run
    | {
      'gradients of the layers': sizes.trained_layers,
      # d embedding before and after its sum over the devices, and d head.
      'gradients of embedding and head': (1 + sizes.summed) * d_table + d_head,
    },
  }


@functools.cache
def saved_per_prompt(
  model: transformer.TransformerConfig, adapter: lora.LoRA | None, needs: frozenset[Any], lengths: tuple[int, int, int]
) -> tuple[float, float]:
  """Bytes of activations kept for the backward pass, for each prompt: those of the model's width, and others.

  They are what `jax.vjp` keeps of a batch of two prompts and does not keep of one, which is exact on one device. The
  tensor axis divides all but those of the model's width.

  Args:
    model: the configuration of the model.
    adapter: the adapter that is trained; None for the model itself.
    needs: the statistics of the objective.
    lengths: P, N and R.
  """
  policy = Policy(transformer.build(model), adapter)
  base = None if adapter is None else jax.eval_shape(policy.model.init, jax.random.key(0))
  prompt, responses, response = lengths

  def kept(params: Any, base: Any, batch: PreferenceBatch) -> Any:
    return jax.vjp(lambda params: forward.hidden_states(policy.bind(base), params, batch, needs).states, params)[1]

  def size(rows: int) -> np.ndarray:
    shapes = (rows, prompt), (rows,), (rows, responses, response), (rows, responses)
    batch = PreferenceBatch(*(jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes), label=None, weight=None)
    found = jax.eval_shape(kept, policy.trained_shapes(), base, batch)
    sizes = np.zeros(2)
    for leaf in jax.tree.leaves(found):
      sizes[int(leaf.shape[-1:] != (model.width,))] += leaf.size * leaf.dtype.itemsize
    return sizes

  wide, others = map(float, size(2) - size(1))
  # As wide as the model, but divided: the queries, which are a product that `dots` keeps.
  queries = model.heads * model.head_width
  divided = queries * model.layers * (prompt + responses * response) * jnp.dtype(model.compute_dtype).itemsize
  moved = divided if queries == model.width and model.remat == 'dots' else 0
  return wide - moved, others + moved


def _at_once(chunk: int, rows: int, responses: int, response: int) -> tuple[int, int]:
  """The response tokens whose logits exist at once on a device, and the number of such groups."""
  tokens = responses * response
  if tokens > chunk:
    positions = max(1, chunk // responses)
    return positions * responses, rows * -(-response // positions)
  prompts = next(size for size in range(max(1, min(rows, chunk // tokens)), 0, -1) if rows % size == 0)
  return prompts * tokens, rows // prompts


def _cast(layers: Any, compute: int) -> float:
  """Bytes of the shard of the layers that are not stored in the compute dtype, after the cast."""
  leaves = [leaf for leaf in jax.tree.leaves(layers) if leaf.ndim > 2 and leaf.dtype.itemsize > compute]
  return compute * sum(_bytes_of_leaf(leaf) / leaf.dtype.itemsize for leaf in leaves)


def _divided(size: int, tensor: int) -> int:
  """The number of parts into which the tensor axis divides a dimension."""
  return tensor if size % tensor == 0 else 1
