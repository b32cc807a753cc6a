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
from alignjax.training import forward, references, rows
from alignjax.training.policy import Policy
from alignjax.types import PreferenceBatch

# The share of the device memory up to which a run fits. A program needs what the compiler allocates: its peak, and gaps
# between arrays. On all runs of tests/planning/cells.json the estimate is at least 0.9 of that.
MOST = 0.9
ERROR = 0.1  # of the estimate, in both directions, on the TPU programs of tests/planning/cells.json
FLOAT32 = 4  # bytes
LANES = 128  # numbers in a row of a TPU's memory tile

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
  split: bool  # whether a device holds parts of the layers' kernels, and gathers each of them for its products
  unpacked: bool  # whether a device must dequantise the weights of a layer before it uses them
  trained: bool  # whether kernels and tables are trained, as they are without an adapter
  layer_entries: float  # entries of one layer's kernels, split over `tensor` alone
  kernel_entries: float  # entries of the largest of them
  attention_entries: float  # entries of the largest of them that attention multiplies by
  trained_layers: float  # bytes of the shard of the layers' gradients, float32
  copied_tables: float  # shards of tables and of their moments that the compiler copies into another layout
  d_embedding: float  # the shard of the embedding's gradient, float32
  head_entries: float  # entries of the head with which a device computes logits: whole, or its part of the vocabulary
  head_copied: bool  # whether the head is gathered, split another way, or cast to the compute dtype
  d_head: float  # the part of the head's gradient that a device has after its sum over devices, float32
  own_reference: bool  # whether a live reference has a head of its own
  coupled: bool  # whether the rows of the batch see each other
  rows: float  # hidden states of a group of tokens of all devices, in the compute dtype; 0 if devices keep their own
  logits: float  # float32 logits of the tokens that the head takes at once
  models: int  # models whose logits of these tokens are computed: the policy's, and those of a live reference
  joint: bool  # whether a statistic reads the distributions of both
  groups: int  # groups of tokens that the head takes one after another
  scores: float  # float32 attention scores of one layer
  scores_at_once: float  # those of prompts or those of responses, which follow each other
  feed_forward: float  # one layer's activations of the feed-forward width, in the compute dtype
  stream: float  # activations of the model's width, of all tokens, in the compute dtype
  microbatches: int

  @classmethod
  def of(cls, planned: program.Program, config: settings.Config) -> 'Sizes':
    """The sizes of a planned step."""
    built, batch, frozen = planned.built, planned.batch, planned.frozen
    model, mesh, adapter = built.policy.model.config, built.mesh, built.policy.adapter
    tensor, fsdp, shards = mesh.shape['tensor'], mesh.shape['fsdp'], parallel_mesh.batch_shards(mesh)
    prompts, responses, response = batch.response.shape
    prompt = batch.prompt.shape[1]
    width_parts = _divided(model.mlp_width, tensor)
    wide, others = saved_per_prompt(model, adapter, built.objective.needs, (prompt, responses, response))
    local = prompts // (shards * config.microbatches)  # prompts that a device processes at once
    tokens = local * (prompt + responses * response)
    compute = jnp.dtype(model.compute_dtype).itemsize
    layers = frozen.base['layers'] if adapter else planned.state.params['layers']
    kernels = [math.prod(leaf.shape) / model.layers for leaf in jax.tree.leaves(built.shapes['layers'])]
    predicts = model.output != 'score'
    at_once, groups = _at_once(config.chunk, local, responses, response)
    together = _layout(planned, config).together(local * shards * responses * response, model.vocab_size)
    vocabulary_parts = _divided(model.vocab_size, tensor)
    vocabulary = model.vocab_size / vocabulary_parts
    own = isinstance(frozen.reference, references.Live | references.CachedStates)
    needs = [stat for stat in built.objective.needs if stat.name not in batch.cached]
    pairs = responses * response * (prompt + response), prompt * prompt  # of queries and keys
    scores = FLOAT32 * local * model.heads / _divided(model.kv_heads, tensor)
    return cls(
      compute=compute,
      saved=local * (wide + others / width_parts),
      layers_cast=_cast(layers, compute),
      split=fsdp > 1,
      unpacked=config.base_quantization != 'none',
      trained=adapter is None,
      layer_entries=sum(kernels) / width_parts,
      kernel_entries=max(kernels) / width_parts,
      attention_entries=model.width * model.heads * model.head_width / _divided(model.kv_heads, tensor),
      trained_layers=bytes_of(planned.state.params['layers']),
      copied_tables=0.0 if adapter else _copied_tables(planned),
      d_embedding=0.0 if adapter else _in_rows(planned.state.params['embed']['embedding']),
      head_entries=predicts * model.width * vocabulary / together,
      head_copied=compute < FLOAT32 or fsdp > 1,
      d_head=FLOAT32 * predicts * (adapter is None) * model.width * model.vocab_size / (fsdp * vocabulary_parts),
      own_reference=own,
      coupled=built.objective.couples_rows,
      rows=predicts * compute * model.width * at_once * together if together > 1 else 0.0,
      logits=FLOAT32 * predicts * at_once * vocabulary,
      models=1 + (own or isinstance(frozen.reference, references.Base)),
      joint=any(stat.policy and stat.reference for stat in needs),
      groups=groups,
      scores=scores * sum(pairs),
      scores_at_once=scores * max(pairs),
      feed_forward=compute * tokens * model.mlp_width * (model.experts or 1) / width_parts,
      stream=compute * tokens * model.width,
      microbatches=config.microbatches,
    )


def stages(sizes: Sizes) -> dict[str, Parts]:
  """The temporaries of each stage of a step."""
  kept = {
    'tables and their moments in another layout': sizes.copied_tables,
    # The compiler moves this cast out of the loops over layers and microbatches.
    'layers in the compute dtype': sizes.layers_cast,
    'activations kept for the backward pass': sizes.saved,
    'summed gradients of earlier microbatches': sizes.trained_layers * (sizes.microbatches > 1),
  }
  head = sizes.compute * sizes.head_entries * sizes.head_copied
  # Summed over groups of tokens first, and over devices at the end. If rows are coupled and each device has a gradient
  # of the whole head, each group's is summed over devices at once, and nothing whole is kept.
  d_group = FLOAT32 * sizes.head_entries * sizes.trained
  together = sizes.rows > 0
  summed_over_groups = d_group if together or not sizes.coupled else sizes.d_head
  d_head = d_group if together else sizes.d_head
  one_group = sizes.groups == 1
  summed_head = 0.0 if one_group else summed_over_groups
  # The gradient in a single group's logits, in the compute dtype; the product for d head may wait until the end.
  d_logits = sizes.compute / FLOAT32 * sizes.logits
  waiting = sizes.rows + d_logits if one_group and together and sizes.trained else 0.0
  layers = kept | {
    'gradient of the head': d_head,
    'gradients of the layers': sizes.trained_layers,
    'hidden states and logits for the gradient of the head': waiting,
  }
  split_kernels = sizes.split and sizes.trained
  # Kernels under an adapter are gathered, or dequantised, a layer at a time.
  whole_layer = sizes.layer_entries * (sizes.split or sizes.unpacked)

  def gathered(kernel: float) -> float:
    """The kernel in use, and one of attention that is gathered early or still kept, in the compute dtype."""
    return sizes.compute * (kernel + sizes.attention_entries if split_kernels else whole_layer)

  one_layer = {
    # Residual, input, and their gradients.
    'activations of one layer': 4 * sizes.stream,
    'attention weights of one layer': sizes.scores,
    # float32 on each device until they are summed over the devices
    'gradients of two kernels, before they are summed': 2 * FLOAT32 * sizes.kernel_entries * split_kernels,
  }
  return {
    'forward': kept
    | {
      'gathered kernels': gathered(sizes.attention_entries),
      'attention scores and weights of one layer': 2 * sizes.scores_at_once,
    },
    'logits': kept
    | {
      'heads of policy and reference': head * (1 + sizes.own_reference),
      'hidden states of all devices': sizes.rows * sizes.models,
      'gradient of the head': summed_head,
      # The loss of coupled rows follows later. Until then a single group keeps its log-probabilities.
      'logits of policy and reference': sizes.logits * (sizes.models + (sizes.coupled and one_group)),
    },
    'loss': kept
    | {
      'head of the policy': head,
      'hidden states of all devices': sizes.rows,
      'gradient of the head': summed_head,
      # A statistic of both distributions reads logits and probabilities of both.
      'logits and their gradient': 4 * sizes.logits if sizes.joint else sizes.logits + d_logits,
    },
    'head': kept
    | {
      'head of the policy': head,
      'hidden states of all devices': sizes.rows,
      'gradient of the head': summed_head,
      'term of a group of tokens': d_group,
      'gradient of logits': d_logits,
    },
    'feed-forward': layers
    | one_layer
    | {
      'gathered kernels': gathered(sizes.kernel_entries),
      'feed-forward activations of one layer': 3 * sizes.feed_forward,
    },
    'attention': layers
    | one_layer
    | {
      'gathered kernels': gathered(sizes.attention_entries),
      'gradient of attention scores': sizes.compute / FLOAT32 * sizes.scores_at_once,
      'feed-forward activations of one layer': 2 * sizes.feed_forward,
    },
    'end of a layer': layers
    | {"gradients of a layer's kernels, before they are summed": FLOAT32 * sizes.layer_entries * split_kernels},
    'gradients': {
      'tables and their moments in another layout': sizes.copied_tables,
      'gradients of the layers': sizes.trained_layers * (1 + (sizes.microbatches > 1)),
      'hidden states and logits for the gradient of the head': waiting,
      'gradients of embedding and head': sizes.d_embedding + d_head,
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

  compute = jnp.dtype(model.compute_dtype).itemsize

  def size(rows: int) -> np.ndarray:
    shapes = (rows, prompt), (rows,), (rows, responses, response), (rows, responses)
    batch = PreferenceBatch(*(jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes), label=None, weight=None)
    found = jax.eval_shape(kept, policy.trained_shapes(), base, batch)
    sizes = np.zeros(2)
    for leaf in jax.tree.leaves(found):
      wide = leaf.shape[-1:] == (model.width,)
      # The final norm is computed again from states in the compute dtype, because it is elementwise.
      widest = compute if wide and leaf.shape[0] == rows else leaf.dtype.itemsize
      sizes[int(not wide)] += leaf.size * min(widest, leaf.dtype.itemsize)
    return sizes

  wide, others = map(float, size(2) - size(1))
  # As wide as the model, but divided: the queries, which are a product that `dots` keeps.
  queries = model.heads * model.head_width
  divided = queries * model.layers * (prompt + responses * response) * compute
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


def _layout(planned: program.Program, config: settings.Config) -> rows.Layout:
  return rows.Layout(config.chunk, config.microbatches, planned.built.mesh)


def _copied_tables(planned: program.Program) -> float:
  """Bytes of the arrays that are stored by columns and read by rows, or the other way round, on one device.

  They are the embedding and its moments, because tokens are looked up by row, and the moments of the head, because
  its gradient comes by row.
  """
  moments = jax.tree_util.tree_leaves_with_path(planned.state.opt_state)
  tables = [leaf for path, leaf in moments if leaf.ndim == 2 and _names(path) & {'embed', 'unembed'}]
  return sum(map(_in_rows, [planned.state.params['embed']['embedding'], *tables]))


def _names(path: tuple[Any, ...]) -> set[str]:
  return {key.key for key in path if hasattr(key, 'key')}


def _in_rows(leaf: Any) -> float:
  """Bytes of a table on one device, stored by row: TPUs pad rows to a multiple of 128 numbers."""
  rows, columns = leaf.sharding.shard_shape(leaf.shape)
  return rows * -(-columns // LANES) * LANES * leaf.dtype.itemsize


def _cast(layers: Any, compute: int) -> float:
  """Bytes of the shard of the layers that are not stored in the compute dtype, after the cast."""
  leaves = [leaf for leaf in jax.tree.leaves(layers) if leaf.ndim > 2 and leaf.dtype.itemsize > compute]
  return compute * sum(_bytes_of_leaf(leaf) / leaf.dtype.itemsize for leaf in leaves)


def _divided(size: int, tensor: int) -> int:
  """The number of parts into which the tensor axis divides a dimension."""
  return tensor if size % tensor == 0 else 1
