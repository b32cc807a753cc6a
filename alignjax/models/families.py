"""Model families, declared as data: what a Hugging Face folder calls each setting and each tensor.

A family is one `Family` in `FAMILIES`. Everything that reads or writes a checkpoint works from that declaration.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any, NamedTuple

from alignjax.models import folders, transformer


class Setting(NamedTuple):
  """One field of `TransformerConfig` and the entries of config.json that hold it.

  A nested entry is written with a dot. The first key is the one that is written; all of them are read.
  `default` is what the family's own code takes where the entry is absent: a value, or a function of the fields so far.
  """

  field: str
  keys: tuple[str, ...]
  kind: type[int] | type[float] | type[bool]
  default: int | float | bool | Callable[[Mapping[str, Any]], int] | None = None  # None: the entry must be there


class Tensor(NamedTuple):
  """One leaf of the parameter tree and the tensors that hold it.

  A `{layer}` in the name stands for each index of the leaf's first axis.
  """

  leaf: str
  name: str
  transposed: bool = False  # stored as [out, in], while kernels are [in, out]

  @property
  def stacked(self) -> bool:
    """Whether the leaf stacks one stored tensor for each layer."""
    return '{layer}' in self.name

  def names(self, shape: tuple[int, ...]) -> list[str]:
    """The stored names of a leaf of this shape, in the order of its first axis."""
    return [self.name.format(layer=layer) for layer in range(shape[0])] if self.stacked else [self.name]


@dataclasses.dataclass(frozen=True)
class Family:
  """How one family stores its configuration and its weights.

  Attributes:
    model_type: entry of config.json that names the family.
    settings: entries that configure the model.
    fixed: entries that change the function computed, with the only value that is supported.
    ignored: entries without effect on the function computed.
    tensors: every leaf of the parameter tree.
    ignored_tensors: endings of the names of stored tensors that hold no parameter.
  """

  model_type: str
  settings: tuple[Setting, ...]
  fixed: Mapping[str, Any]
  ignored: frozenset[str]
  tensors: tuple[Tensor, ...]
  ignored_tensors: tuple[str, ...] = ()

  def parse(self, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the contents of config.json.

    Args:
      entries: config.json, parsed.

    Returns:
      Fields of `TransformerConfig` by name.

    Raises:
      ValueError: an entry is missing, malformed, unknown or not supported; the message names it.
    """
    entries = _flatten({key: value for key, value in entries.items() if key not in self.ignored})
    known = {key for setting in self.settings for key in setting.keys} | set(self.fixed) | {'model_type'}
    refused = [f'{key}={value!r} (unknown)' for key, value in entries.items() if key not in known]
    for key, supported in self.fixed.items():
      if entries.get(key, supported) != supported:
        refused.append(f'{key}={entries[key]!r} (only {supported!r} is supported)')
    if refused:
      raise ValueError(
        f'fields that model_type {self.model_type!r} does not support here: {", ".join(sorted(refused))}'
      )
    fields: dict[str, Any] = {}
    for setting in self.settings:
      fields[setting.field] = _read(setting, entries, fields)
    return fields

  def render(self, config: transformer.TransformerConfig) -> dict[str, Any]:
    """The contents of config.json for `config`: what `parse` reads back, and what other tools expect to find."""
    entries = {'model_type': self.model_type}
    entries |= {setting.keys[0]: getattr(config, setting.field) for setting in self.settings}
    return entries | {key: value for key, value in self.fixed.items() if '.' not in key}

  def tensor(self, leaf: str) -> Tensor:
    """Where the parameter at the path `leaf` is stored.

    Raises:
      ValueError: the family does not declare it.
    """
    for tensor in self.tensors:
      if tensor.leaf == leaf:
        return tensor
    raise ValueError(f'model_type {self.model_type!r} declares no tensor for the parameter {leaf}')

  def check(self, shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]]) -> None:
    """Compares what a model asks for with what a file holds.

    Args:
      shapes: of the parameters, by path.
      stored: shapes of the stored tensors, by name.

    Raises:
      ValueError: a tensor is missing, unexpected or mis-shaped; the message names all of them.
    """
    expected = {}
    for leaf, shape in shapes.items():
      tensor = self.tensor(leaf)
      row = shape[1:] if tensor.stacked else shape
      expected |= dict.fromkeys(tensor.names(shape), row[::-1] if tensor.transposed else row)
    found = {name: shape for name, shape in stored.items() if not name.endswith(self.ignored_tensors)}
    both = expected.keys() & found.keys()
    faults = {
      'missing': expected.keys() - found.keys(),
      'unexpected': found.keys() - expected.keys(),
      'of another shape': [f'{n} (expected {expected[n]}, found {found[n]})' for n in both if expected[n] != found[n]],
    }
    if any(faults.values()):
      raise ValueError(
        '; '.join(f'tensors {fault}: {folders.listed(names)}' for fault, names in faults.items() if names)
      )


def _flatten(entries: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Turns nested entries into dotted ones, so that one table speaks of all of them."""
  flat = {}
  for key, value in entries.items():
    nested = isinstance(value, dict) and value
    flat |= _flatten(value, f'{prefix}{key}.') if nested else {prefix + key: value}
  return flat


def _read(setting: Setting, entries: Mapping[str, Any], fields: Mapping[str, Any]) -> int | float | bool:
  """The value of one setting; a null entry counts as absent."""
  found = {key: entries[key] for key in setting.keys if entries.get(key) is not None}
  if not found:
    if setting.default is None:
      raise ValueError(f'field {setting.keys[0]} is missing')
    return setting.default(fields) if callable(setting.default) else setting.default
  for key, value in found.items():
    if not _valid(value, setting.kind):
      expected = 'true or false' if setting.kind is bool else f'a positive {setting.kind.__name__}'
      raise ValueError(f'field {key}={value!r} must be {expected}')
  if len(set(found.values())) > 1:
    raise ValueError(f'fields contradict each other: {", ".join(f"{key}={value!r}" for key, value in found.items())}')
  return setting.kind(next(iter(found.values())))


def _valid(value: Any, kind: type) -> bool:
  if kind is bool or isinstance(value, bool):
    return kind is bool and isinstance(value, bool)
  if isinstance(value, int):
    return 0 < value < 2**31
  return kind is float and isinstance(value, float) and 0 < value < math.inf


LLAMA = Family(
  model_type='llama',
  settings=(
    Setting('vocab_size', ('vocab_size',), int),
    Setting('width', ('hidden_size',), int),
    Setting('layers', ('num_hidden_layers',), int),
    Setting('heads', ('num_attention_heads',), int),
    Setting('kv_heads', ('num_key_value_heads',), int, lambda fields: fields['heads']),
    Setting('head_width', ('head_dim',), int, lambda fields: fields['width'] // fields['heads']),
    Setting('mlp_width', ('intermediate_size',), int),
    Setting('norm_epsilon', ('rms_norm_eps',), float, 1e-6),
    Setting('rope_theta', ('rope_theta', 'rope_parameters.rope_theta'), float, 10_000.0),
    Setting('tied_embeddings', ('tie_word_embeddings',), bool, False),
    Setting('max_positions', ('max_position_embeddings',), int, 2048),
  ),
  fixed={
    'architectures': ['LlamaForCausalLM'],
    'attention_bias': False,
    'hidden_act': 'silu',
    'mlp_bias': False,
    'rope_interleaved': False,
    'rope_parameters.rope_type': 'default',
    'rope_scaling': None,
  },
  ignored=frozenset(
    {
      '_name_or_path',
      'attention_dropout',  # there is no dropout in alignment fine-tuning
      'bos_token_id',
      'chunk_size_feed_forward',
      'dtype',
      'eos_token_id',
      'initializer_range',
      'is_llama_config',
      'output_attentions',
      'output_hidden_states',
      'pad_token_id',
      'pretraining_tp',  # the order of a sum, not its terms
      'return_dict',
      'torch_dtype',
      'transformers.js_config',
      'transformers_version',
      'use_cache',
    }
  ),
  tensors=(
    Tensor('embed/embedding', 'model.embed_tokens.weight'),
    Tensor('layers/attention_norm/scale', 'model.layers.{layer}.input_layernorm.weight'),
    Tensor('layers/attention/query/kernel', 'model.layers.{layer}.self_attn.q_proj.weight', transposed=True),
    Tensor('layers/attention/key/kernel', 'model.layers.{layer}.self_attn.k_proj.weight', transposed=True),
    Tensor('layers/attention/value/kernel', 'model.layers.{layer}.self_attn.v_proj.weight', transposed=True),
    Tensor('layers/attention/output/kernel', 'model.layers.{layer}.self_attn.o_proj.weight', transposed=True),
    Tensor('layers/mlp_norm/scale', 'model.layers.{layer}.post_attention_layernorm.weight'),
    Tensor('layers/mlp/gate/kernel', 'model.layers.{layer}.mlp.gate_proj.weight', transposed=True),
    Tensor('layers/mlp/up/kernel', 'model.layers.{layer}.mlp.up_proj.weight', transposed=True),
    Tensor('layers/mlp/down/kernel', 'model.layers.{layer}.mlp.down_proj.weight', transposed=True),
    Tensor('final_norm/scale', 'model.norm.weight'),
    Tensor('unembed/kernel', 'lm_head.weight', transposed=True),
  ),
  ignored_tensors=('.rotary_emb.inv_freq',),  # old exports store the rotary frequencies
)

EXECUTION = ('compute_dtype', 'remat', 'scan_layers', 'attention')  # fields that say how to compute, not what
FAMILIES = {family.model_type: family for family in (LLAMA,)}


def by_type(model_type: Any) -> Family:
  """The family that config.json calls `model_type`.

  Raises:
    ValueError: it is not declared here.
  """
  if not isinstance(model_type, str) or model_type not in FAMILIES:
    raise ValueError(f'model_type {model_type!r} is not supported; known: {", ".join(sorted(FAMILIES))}')
  return FAMILIES[model_type]


def of(config: transformer.TransformerConfig) -> Family:
  """The family that can store `config`: what it writes is read back as the same model.

  Raises:
    ValueError: there is none.
  """
  execution = {name: getattr(config, name) for name in EXECUTION}
  for family in FAMILIES.values():
    if transformer.TransformerConfig(**family.parse(family.render(config)), **execution) == config:
      return family
  raise ValueError(f'none of the families {", ".join(sorted(FAMILIES))} can store {config}')
