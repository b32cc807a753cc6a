"""Model families, declared as data: the names of settings and tensors in Hugging Face folders.

Each family is one `Family` in `FAMILIES`. All code that reads or writes checkpoints works from these declarations.
"""

import dataclasses
from typing import Any

from alignjax.models import declaration, gemma_families, gpt_families, inert, llama_family, transformer

LLAMA = llama_family.LLAMA
_FULL_ATTENTION = {'layer_types': ('full_attention',)}
_WITHOUT_WINDOW = frozenset({'max_window_layers', 'sliding_window'})  # no effect if use_sliding_window is false

QWEN2 = dataclasses.replace(  # and Qwen1.5, Qwen2.5
  LLAMA,
  model_type='qwen2',
  settings=llama_family.settings(
    llama_family.KV_HEADS, declaration.Setting('max_positions', ('max_position_embeddings',), int, 32_768)
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
    declaration.Setting('head_width', ('head_dim',), int, 128),
    declaration.Setting('max_positions', ('max_position_embeddings',), int, 32_768),
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
    declaration.Setting('max_positions', ('max_position_embeddings',), int, 131_072),
    declaration.Setting('sliding_window', ('sliding_window',), int, 4096, nullable=True),
  ),
  fixed={'architectures': ['MistralForCausalLM'], 'hidden_act': 'silu'},
  inert={'attention_bias': (False,), 'mlp_bias': (False,)},
  tensors=llama_family.TENSORS,
)

OLMO2 = dataclasses.replace(
  LLAMA,
  model_type='olmo2',
  settings=llama_family.settings(declaration.Setting('norm_epsilon', ('rms_norm_eps',), float, 1e-5)),
  fixed={'architectures': ['Olmo2ForCausalLM'], 'attention_bias': False, 'hidden_act': 'silu'},
  fields={'input_norms': False, 'joint_qk_norm': True, 'output_norms': True},
  tensors=llama_family.tensors(
    *llama_family.OUTPUT_NORMS, *llama_family.QK_NORMS, without=('layers/attention_norm', 'layers/mlp_norm')
  ),
)

OLMO3 = dataclasses.replace(
  OLMO2,
  model_type='olmo3',
  settings=llama_family.settings(
    declaration.Setting('norm_epsilon', ('rms_norm_eps',), float, 1e-5),
    declaration.Setting(
      'rope_theta',
      ('rope_theta', 'rope_parameters.full_attention.rope_theta', 'rope_parameters.sliding_attention.rope_theta'),
      float,
      500_000.0,
    ),
    declaration.Setting('local_rope_theta', (), float, lambda fields: fields['rope_theta']),
    declaration.Setting('sliding_window', ('sliding_window',), int, 4096),
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
)

GRANITE = dataclasses.replace(
  LLAMA,
  model_type='granite',
  settings=(
    *LLAMA.settings,
    declaration.Setting('embedding_multiplier', ('embedding_multiplier',), float, 1.0),
    declaration.Setting('residual_multiplier', ('residual_multiplier',), float, 1.0),
    declaration.Setting('score_multiplier', ('attention_multiplier',), float, 1.0),
    declaration.Setting('logit_divisor', ('logits_scaling',), float, 1.0),
  ),
  fixed={'architectures': ['GraniteForCausalLM'], 'hidden_act': 'silu'},
  inert={},
)

STABLELM = dataclasses.replace(
  LLAMA,
  model_type='stablelm',
  settings=llama_family.settings(
    llama_family.KV_HEADS,
    declaration.Setting('norm_epsilon', ('layer_norm_eps',), float, 1e-5),
    declaration.Setting('head_width', (), int, lambda fields: fields['width'] // fields['heads']),
    declaration.Setting('max_positions', ('max_position_embeddings',), int, 4096),
    declaration.Setting(
      'rotary_fraction', ('partial_rotary_factor', 'rope_parameters.partial_rotary_factor'), float, 0.25
    ),
    declaration.Setting('qkv_bias', ('use_qkv_bias',), bool, False),
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

PHI3 = dataclasses.replace(
  LLAMA,
  model_type='phi3',
  settings=llama_family.settings(
    declaration.Setting('norm_epsilon', ('rms_norm_eps',), float, 1e-5),
    declaration.Setting('head_width', (), int, lambda fields: fields['width'] // fields['heads']),
    declaration.Setting('max_positions', ('max_position_embeddings',), int, 4096),
    declaration.Setting(
      'rotary_fraction', ('partial_rotary_factor', 'rope_parameters.partial_rotary_factor'), float, 1.0
    ),
    declaration.Setting('sliding_window', ('sliding_window',), int, nullable=True),
  ),
  fixed={'architectures': ['Phi3ForCausalLM'], 'attention_bias': False, 'hidden_act': 'silu'},
  ignored=inert.IGNORED
  | {
    'auto_map',  # custom code, which is never run
    'embd_pdrop',
    'original_max_position_embeddings',  # used only by `longrope` scaling
    'resid_pdrop',
  },
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
    OLMO2,
    OLMO3,
    PHI3,
    QWEN2,
    QWEN3,
    STABLELM,
    gpt_families.GPT2,
    gpt_families.GPT_NEOX,
  )
}


def by_type(model_type: Any) -> declaration.Family:
  """The family with this `model_type` in config.json.

  Raises:
    ValueError: the family is not declared here.
  """
  if not isinstance(model_type, str) or model_type not in FAMILIES:
    raise ValueError(f'model_type {model_type!r} is not supported; known: {", ".join(sorted(FAMILIES))}')
  return FAMILIES[model_type]


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
