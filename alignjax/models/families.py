"""Model families, declared as data: the names of settings and tensors in Hugging Face folders.

Each family is one `Family` in `FAMILIES`. All code that reads or writes checkpoints works from these declarations.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from alignjax.models import (
  config_entries,
  declaration,
  gemma_families,
  gpt_families,
  inert,
  llama_family,
  rotary_entries,
  transformer,
)

LLAMA = llama_family.LLAMA
_FULL_ATTENTION = {'layer_types': ('full_attention',)}
_WITHOUT_WINDOW = frozenset({'max_window_layers', 'sliding_window'})  # no effect if use_sliding_window is false

QWEN2 = dataclasses.replace(  # and Qwen1.5, Qwen2.5
  LLAMA,
  model_type='qwen2',
  settings=llama_family.settings(
    llama_family.KV_HEADS, config_entries.Setting('max_positions', ('max_position_embeddings',), int, 32_768)
  ),
  fixed={
    'architectures': ['Qwen2ForCausalLM'],
    'hidden_act': 'silu',
    'use_mrope': False,
    'use_sliding_window': False,
  },
  cycles=_FULL_ATTENTION,
  fields={'qkv_bias': True},
  ignored=inert.IGNORED | _WITHOUT_WINDOW,
  tensors=llama_family.TENSORS + llama_family.QKV_BIASES,
)

QWEN3 = dataclasses.replace(
  LLAMA,
  model_type='qwen3',
  settings=llama_family.settings(
    llama_family.KV_HEADS,
    config_entries.Setting('head_width', ('head_dim',), int, 128),
    config_entries.Setting('max_positions', ('max_position_embeddings',), int, 32_768),
  ),
  fixed={
    'architectures': ['Qwen3ForCausalLM'],
    'attention_bias': False,
    'hidden_act': 'silu',
    'use_sliding_window': False,
  },
  cycles=_FULL_ATTENTION,
  fields={'qk_norm': True},
  ignored=inert.IGNORED | _WITHOUT_WINDOW,
  tensors=llama_family.TENSORS + llama_family.QK_NORMS,
)

MISTRAL = dataclasses.replace(
  LLAMA,
  model_type='mistral',
  settings=llama_family.settings(
    llama_family.KV_HEADS,
    config_entries.Setting('max_positions', ('max_position_embeddings',), int, 131_072),
    config_entries.Setting('sliding_window', ('sliding_window',), int, 4096, nullable=True),
  ),
  fixed={'architectures': ['MistralForCausalLM'], 'hidden_act': 'silu'},
  inert={'attention_bias': (False,), 'mlp_bias': (False,)},
  tensors=llama_family.TENSORS,
)

# Entries of mixtures that affect only the auxiliary loss of pre-training, which alignment does not add.
_ROUTER_LOSS = frozenset({'output_router_logits', 'router_aux_loss_coef'})

MIXTRAL = dataclasses.replace(
  LLAMA,
  model_type='mixtral',
  settings=llama_family.settings(
    config_entries.Setting('experts', ('num_local_experts',), int),
    config_entries.Setting('experts_per_token', ('num_experts_per_tok',), int),
    llama_family.KV_HEADS,
    config_entries.Setting('norm_epsilon', ('rms_norm_eps',), float, 1e-5),
    config_entries.Setting('rope_theta', ('rope_theta', 'rope_parameters.rope_theta'), float, 1_000_000.0),
    config_entries.Setting('max_positions', ('max_position_embeddings',), int, 131_072),
    config_entries.Setting('sliding_window', ('sliding_window',), int, nullable=True),
  ),
  fixed={'architectures': ['MixtralForCausalLM'], 'hidden_act': 'silu'},
  ignored=inert.IGNORED | _ROUTER_LOSS,
  inert={'attention_bias': (False,), 'router_jitter_noise': (0.0, 0)},
  tensors=llama_family.tensors(
    *llama_family.experts('block_sparse_moe', gate='w1', up='w3', down='w2'), without='layers/mlp/'
  ),
)

QWEN3_MOE = dataclasses.replace(
  QWEN3,
  model_type='qwen3_moe',
  settings=llama_family.settings(
    config_entries.Setting('experts', ('num_experts', 'num_local_experts'), int),
    config_entries.Setting('experts_per_token', ('num_experts_per_tok',), int),
    llama_family.KV_HEADS,
    config_entries.Setting('mlp_width', ('moe_intermediate_size',), int),
    config_entries.Setting('normalised_experts', ('norm_topk_prob',), bool, False),
    config_entries.Setting('max_positions', ('max_position_embeddings',), int, 32_768),
  ),
  fixed={
    'architectures': ['Qwen3MoeForCausalLM'],
    'attention_bias': False,
    'decoder_sparse_step': 1,
    'hidden_act': 'silu',
    'mlp_only_layers': [],
    'use_sliding_window': False,
  },
  ignored=QWEN3.ignored | _ROUTER_LOSS | {'intermediate_size'},  # of dense layers, which there are none of
  inert={'mlp_only_layers': (None,)},
  tensors=llama_family.tensors(
    *llama_family.QK_NORMS,
    *llama_family.experts('mlp', gate='gate_proj', up='up_proj', down='down_proj'),
    without='layers/mlp/',
  ),
)

OLMO2 = dataclasses.replace(
  LLAMA,
  model_type='olmo2',
  settings=llama_family.settings(config_entries.Setting('norm_epsilon', ('rms_norm_eps',), float, 1e-5)),
  fixed={'architectures': ['Olmo2ForCausalLM'], 'attention_bias': False, 'hidden_act': 'silu'},
  fields={'input_norms': False, 'joint_qk_norm': True, 'output_norms': True},
  tensors=llama_family.tensors(
    *llama_family.OUTPUT_NORMS, *llama_family.QK_NORMS, without=('layers/attention_norm', 'layers/mlp_norm')
  ),
)


def _by_layer_type(config: transformer.TransformerConfig) -> Mapping[str, Any]:
  """The rotary entries as transformers 5 writes them: without them it takes a default theta for layers with windows."""
  theta = {'rope_theta': config.rope_theta}
  full = rotary_entries.rendered(config) or {'rope_type': 'default'}
  return {'rope_parameters': {'full_attention': full | theta, 'sliding_attention': {'rope_type': 'default'} | theta}}


OLMO3 = dataclasses.replace(
  OLMO2,
  model_type='olmo3',
  settings=llama_family.settings(
    config_entries.Setting('norm_epsilon', ('rms_norm_eps',), float, 1e-5),
    config_entries.Setting(
      'rope_theta',
      ('rope_theta', 'rope_parameters.full_attention.rope_theta', 'rope_parameters.sliding_attention.rope_theta'),
      float,
      500_000.0,
    ),
    config_entries.Setting('local_rope_theta', (), float, lambda fields: fields['rope_theta']),
    config_entries.Setting('sliding_window', ('sliding_window',), int, 4096),
  ),
  fixed={
    'architectures': ['Olmo3ForCausalLM'],
    'attention_bias': False,
    'hidden_act': 'silu',
    'rope_parameters.sliding_attention.rope_type': 'default',
  },
  cycles={'layer_types': ('sliding_attention',) * 3 + ('full_attention',)},
  fields=OLMO2.fields | {'full_attention_every': 4},
  rotary_places=('rope_scaling', 'rope_parameters.full_attention'),
  also_written=_by_layer_type,
)

GRANITE = dataclasses.replace(
  LLAMA,
  model_type='granite',
  settings=(
    *LLAMA.settings,
    config_entries.Setting('embedding_multiplier', ('embedding_multiplier',), float, 1.0),
    config_entries.Setting('residual_multiplier', ('residual_multiplier',), float, 1.0),
    config_entries.Setting('score_multiplier', ('attention_multiplier',), float, 1.0),
    config_entries.Setting('logit_divisor', ('logits_scaling',), float, 1.0),
  ),
  fixed={'architectures': ['GraniteForCausalLM'], 'hidden_act': 'silu'},
  inert={},
)


def _with_interval(entries: Mapping[str, Any]) -> Mapping[str, Any]:
  """Replaces the list of the layers with rotary positions, which takes precedence, by its interval, if it has one."""
  rotated = entries.get('no_rope_layers')
  if not isinstance(rotated, list) or not rotated:
    return entries
  interval = rotated.index(0) + 1 if 0 in rotated else len(rotated) + 1
  if any(value != int((i + 1) % interval != 0) for i, value in enumerate(rotated)):
    return entries  # refused as unknown
  return {key: value for key, value in entries.items() if key != 'no_rope_layers'} | {
    'no_rope_layer_interval': interval
  }


SMOLLM3 = dataclasses.replace(
  LLAMA,
  model_type='smollm3',
  settings=llama_family.settings(
    *llama_family.BIASES,
    llama_family.KV_HEADS,
    config_entries.Setting('rope_theta', ('rope_theta', 'rope_parameters.rope_theta'), float, 2_000_000.0),
    config_entries.Setting('tied_embeddings', ('tie_word_embeddings',), bool, True),
    config_entries.Setting('max_positions', ('max_position_embeddings',), int, 32_768),
    config_entries.Setting('unrotated_every', ('no_rope_layer_interval',), int, 4),
  ),
  fixed={'architectures': ['SmolLM3ForCausalLM'], 'hidden_act': 'silu', 'use_sliding_window': False},
  cycles=_FULL_ATTENTION,
  ignored=inert.IGNORED | _WITHOUT_WINDOW,
  inert={'no_rope_layers': (None,)},
  rewrite=_with_interval,
)

STABLELM = dataclasses.replace(
  LLAMA,
  model_type='stablelm',
  settings=llama_family.settings(
    llama_family.KV_HEADS,
    config_entries.Setting('norm_epsilon', ('layer_norm_eps',), float, 1e-5),
    config_entries.Setting('head_width', (), int, lambda fields: fields['width'] // fields['heads']),
    config_entries.Setting('max_positions', ('max_position_embeddings',), int, 4096),
    config_entries.Setting(
      'rotary_fraction', ('partial_rotary_factor', 'rope_parameters.partial_rotary_factor'), float, 0.25
    ),
    config_entries.Setting('qkv_bias', ('use_qkv_bias',), bool, False),
  ),
  fixed={
    'architectures': ['StableLmForCausalLM'],
    'hidden_act': 'silu',
    'qk_layernorm': False,
    'use_parallel_residual': False,
  },
  ignored=inert.IGNORED | {'hidden_dropout'},
  inert={},
  fields={'norm': 'layer'},
  tensors=(
    *llama_family.TENSORS,
    *llama_family.QKV_BIASES,
    declaration.Tensor('layers/attention_norm/bias', 'model.layers.{layer}.input_layernorm.bias'),
    declaration.Tensor('layers/mlp_norm/bias', 'model.layers.{layer}.post_attention_layernorm.bias'),
    declaration.Tensor('final_norm/bias', 'model.norm.bias'),
  ),
)


def _with_original_positions(entries: Mapping[str, Any]) -> Mapping[str, Any]:
  """Adds the default of Phi-3, which takes precedence over the entries of the scaling."""
  return {'original_max_position_embeddings': 4096, **entries}


PHI3 = dataclasses.replace(
  LLAMA,
  model_type='phi3',
  settings=llama_family.settings(
    config_entries.Setting('norm_epsilon', ('rms_norm_eps',), float, 1e-5),
    config_entries.Setting('head_width', (), int, lambda fields: fields['width'] // fields['heads']),
    config_entries.Setting('max_positions', ('max_position_embeddings',), int, 4096),
    config_entries.Setting(
      'rotary_fraction', ('partial_rotary_factor', 'rope_parameters.partial_rotary_factor'), float, 1.0
    ),
    config_entries.Setting('sliding_window', ('sliding_window',), int, nullable=True),
  ),
  fixed={'architectures': ['Phi3ForCausalLM'], 'attention_bias': False, 'hidden_act': 'silu'},
  ignored=inert.IGNORED
  | {
    'auto_map',  # custom code, which is never run
    'embd_pdrop',
    'resid_pdrop',
  },
  inert={  # of Phi-4-mini
    'full_attn_mod': (1,),
    'interpolate_factor': (1,),
    'lm_head_bias': (False,),
    'mlp_bias': (False,),
  },
  rotary_types={'default': 'default', 'longrope': 'longrope', 'su': 'longrope'},  # su: of its first release
  rotary_keys={'original_positions': ('original_max_position_embeddings',)},
  rewrite=_with_original_positions,
  tensors=llama_family.tensors(
    declaration.Tensor(
      'layers/attention/query/kernel',
      'model.layers.{layer}.self_attn.qkv_proj.weight',
      transposed=True,
      fused=('layers/attention/key/kernel', 'layers/attention/value/kernel'),
    ),
    declaration.Tensor(
      'layers/mlp/gate/kernel',
      'model.layers.{layer}.mlp.gate_up_proj.weight',
      transposed=True,
      fused=('layers/mlp/up/kernel',),
    ),
    without=(
      'layers/attention/query',
      'layers/attention/key',
      'layers/attention/value',
      'layers/mlp/gate',
      'layers/mlp/up',
    ),
  ),
)

EXECUTION = ('compute_dtype', 'remat', 'scan_layers', 'attention')  # fields that affect how, not what, is computed
FAMILIES = {
  family.model_type: family
  for family in (
    gemma_families.GEMMA,
    gemma_families.GEMMA2,
    gemma_families.GEMMA3,
    GRANITE,
    LLAMA,
    MISTRAL,
    MIXTRAL,
    OLMO2,
    OLMO3,
    PHI3,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    SMOLLM3,
    STABLELM,
    gpt_families.GPT2,
    gpt_families.GPT_NEOX,
  )
}
# Larger models with a model of one of the families in them, by their model_type. They are read, not written.
WRAPPERS = {'gemma3': gemma_families.GEMMA3_WITH_IMAGES}


def by_type(model_type: Any) -> declaration.Family:
  """The family with this `model_type` in config.json.

  Raises:
    ValueError: the family is not declared here.
  """
  known = FAMILIES | WRAPPERS
  if not isinstance(model_type, str) or model_type not in known:
    raise ValueError(f'model_type {model_type!r} is not supported; known: {", ".join(sorted(known))}')
  return known[model_type]


def of(config: transformer.TransformerConfig) -> declaration.Family:
  """The family of `config`, after checking that the family can store it: reading it back gives the same configuration.

  Raises:
    ValueError: the family cannot store the configuration; the message names the fields.
  """
  family = by_type(config.model_type)
  execution = {name: getattr(config, name) for name in EXECUTION}
  fields = family.parse(family.render(config))
  if config.output == 'both' and family.classifier:
    fields['output'] = 'both'  # stored with both heads; the reader selects what to read
  restored = transformer.TransformerConfig(**fields, **execution)
  if restored != config:
    names = [field.name for field in dataclasses.fields(config)]
    lost = [f'{name}={getattr(config, name)!r}' for name in names if getattr(config, name) != getattr(restored, name)]
    raise ValueError(f'model_type {config.model_type!r} cannot store {", ".join(lost)}')
  return family
