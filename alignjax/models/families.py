"""Model families, declared as data: the names of settings and tensors in Hugging Face folders.

Each family is one `Family` in `FAMILIES`. All code that reads or writes checkpoints works from these declarations.
"""

import dataclasses
from typing import Any

from alignjax.models import declaration, gpt_families, inert, transformer

_SETTINGS = (
  declaration.Setting('vocab_size', ('vocab_size',), int),
  declaration.Setting('width', ('hidden_size',), int),
  declaration.Setting('layers', ('num_hidden_layers',), int),
  declaration.Setting('heads', ('num_attention_heads',), int),
  declaration.Setting('kv_heads', ('num_key_value_heads',), int, lambda fields: fields['heads']),
  declaration.Setting('head_width', ('head_dim',), int, lambda fields: fields['width'] // fields['heads']),
  declaration.Setting('mlp_width', ('intermediate_size',), int),
  declaration.Setting('norm_epsilon', ('rms_norm_eps',), float, 1e-6),
  declaration.Setting('rope_theta', ('rope_theta', 'rope_parameters.rope_theta'), float, 10_000.0),
  declaration.Setting('tied_embeddings', ('tie_word_embeddings',), bool, False),
  declaration.Setting('max_positions', ('max_position_embeddings',), int, 2048),
)
_TENSORS = (
  declaration.Tensor('embed/embedding', 'model.embed_tokens.weight'),
  declaration.Tensor('layers/attention_norm/scale', 'model.layers.{layer}.input_layernorm.weight'),
  declaration.Tensor('layers/attention/query/kernel', 'model.layers.{layer}.self_attn.q_proj.weight', transposed=True),
  declaration.Tensor('layers/attention/key/kernel', 'model.layers.{layer}.self_attn.k_proj.weight', transposed=True),
  declaration.Tensor('layers/attention/value/kernel', 'model.layers.{layer}.self_attn.v_proj.weight', transposed=True),
  declaration.Tensor('layers/attention/output/kernel', 'model.layers.{layer}.self_attn.o_proj.weight', transposed=True),
  declaration.Tensor('layers/mlp_norm/scale', 'model.layers.{layer}.post_attention_layernorm.weight'),
  declaration.Tensor('layers/mlp/gate/kernel', 'model.layers.{layer}.mlp.gate_proj.weight', transposed=True),
  declaration.Tensor('layers/mlp/up/kernel', 'model.layers.{layer}.mlp.up_proj.weight', transposed=True),
  declaration.Tensor('layers/mlp/down/kernel', 'model.layers.{layer}.mlp.down_proj.weight', transposed=True),
  declaration.Tensor('final_norm/scale', 'model.norm.weight'),
  declaration.Tensor('unembed/kernel', 'lm_head.weight', transposed=True),
)
_QKV_BIASES = (
  declaration.Tensor('layers/attention/query/bias', 'model.layers.{layer}.self_attn.q_proj.bias'),
  declaration.Tensor('layers/attention/key/bias', 'model.layers.{layer}.self_attn.k_proj.bias'),
  declaration.Tensor('layers/attention/value/bias', 'model.layers.{layer}.self_attn.v_proj.bias'),
)
_QK_NORMS = (
  declaration.Tensor('layers/attention/query_norm/scale', 'model.layers.{layer}.self_attn.q_norm.weight'),
  declaration.Tensor('layers/attention/key_norm/scale', 'model.layers.{layer}.self_attn.k_norm.weight'),
)

LLAMA = declaration.Family(
  model_type='llama',
  settings=(
    *_SETTINGS,
    declaration.Setting('qkv_bias', ('attention_bias',), bool, False),
    declaration.Setting('output_bias', ('attention_bias',), bool, False),
    declaration.Setting('mlp_bias', ('mlp_bias',), bool, False),
  ),
  fixed={'architectures': ['LlamaForCausalLM'], 'hidden_act': 'silu', 'rope_interleaved': False},
  ignored=inert.IGNORED,
  inert={'activation': ('swiglu',), 'mlp_bias': (False,)},  # Falcon 3 names its MLP beside the activation in it
  tensors=(
    *_TENSORS,
    *_QKV_BIASES,
    declaration.Tensor('layers/attention/output/bias', 'model.layers.{layer}.self_attn.o_proj.bias'),
    declaration.Tensor('layers/mlp/gate/bias', 'model.layers.{layer}.mlp.gate_proj.bias'),
    declaration.Tensor('layers/mlp/up/bias', 'model.layers.{layer}.mlp.up_proj.bias'),
    declaration.Tensor('layers/mlp/down/bias', 'model.layers.{layer}.mlp.down_proj.bias'),
  ),
  ignored_tensors=('.rotary_emb.inv_freq',),  # rotary frequencies, stored by old versions of transformers
)


def _settings(*changed: declaration.Setting) -> tuple[declaration.Setting, ...]:
  """The common settings, with the given settings added or replacing those of the same field."""
  by_field = {setting.field: setting for setting in (*_SETTINGS, *changed)}
  return tuple(by_field.values())


def _tensors(*added: declaration.Tensor, without: str | tuple[str, ...]) -> tuple[declaration.Tensor, ...]:
  """The common tensors, except those whose paths start with `without`, plus the given ones."""
  return (*(tensor for tensor in _TENSORS if not tensor.leaf.startswith(without)), *added)


# Required here: the families' own defaults for a missing num_key_value_heads are not sensible.
_KV_HEADS = declaration.Setting('kv_heads', ('num_key_value_heads',), int)
_FULL_ATTENTION = {'layer_types': ('full_attention',)}
_WITHOUT_WINDOW = frozenset({'max_window_layers', 'sliding_window'})  # no effect if use_sliding_window is false

QWEN2 = dataclasses.replace(  # and Qwen1.5, Qwen2.5
  LLAMA,
  model_type='qwen2',
  settings=_settings(_KV_HEADS, declaration.Setting('max_positions', ('max_position_embeddings',), int, 32_768)),
  fixed={
    'architectures': ['Qwen2ForCausalLM'],
    'hidden_act': 'silu',
    'use_mrope': False,
    'use_sliding_window': False,
  },
  cycles=_FULL_ATTENTION,
  fields={'qkv_bias': True},
  ignored=inert.IGNORED | _WITHOUT_WINDOW,
  tensors=_TENSORS + _QKV_BIASES,
)

QWEN3 = dataclasses.replace(
  LLAMA,
  model_type='qwen3',
  settings=_settings(
    _KV_HEADS,
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
  tensors=_TENSORS + _QK_NORMS,
)

MISTRAL = dataclasses.replace(
  LLAMA,
  model_type='mistral',
  settings=_settings(
    _KV_HEADS,
    declaration.Setting('max_positions', ('max_position_embeddings',), int, 131_072),
    declaration.Setting('sliding_window', ('sliding_window',), int, 4096, nullable=True),
  ),
  fixed={'architectures': ['MistralForCausalLM'], 'hidden_act': 'silu'},
  inert={'attention_bias': (False,), 'mlp_bias': (False,)},
  tensors=_TENSORS,
)

_OUTPUT_NORMS = (
  declaration.Tensor('layers/attention_output_norm/scale', 'model.layers.{layer}.post_attention_layernorm.weight'),
  declaration.Tensor('layers/mlp_output_norm/scale', 'model.layers.{layer}.post_feedforward_layernorm.weight'),
)

GEMMA = dataclasses.replace(
  LLAMA,
  model_type='gemma',
  settings=_settings(
    _KV_HEADS,
    declaration.Setting('head_width', ('head_dim',), int, 256),
    declaration.Setting('tied_embeddings', ('tie_word_embeddings',), bool, True),
    declaration.Setting('max_positions', ('max_position_embeddings',), int, 8192),
  ),
  fixed={
    'architectures': ['GemmaForCausalLM'],
    'attention_bias': False,
    'hidden_act': 'gelu_pytorch_tanh',
    'use_bidirectional_attention': None,
  },
  inert={
    'hidden_act': ('gelu',),  # of the first release, which means the tanh approximation too
    'hidden_activation': ('gelu_pytorch_tanh', None),
  },
  fields={'activation': 'gelu_tanh', 'scaled_embeddings': True, 'zero_centred_norms': True},
  tensors=_TENSORS,
)

GEMMA2 = dataclasses.replace(
  LLAMA,
  model_type='gemma2',
  settings=_settings(
    _KV_HEADS,
    declaration.Setting('head_width', ('head_dim',), int, 256),
    declaration.Setting('tied_embeddings', ('tie_word_embeddings',), bool, True),
    declaration.Setting('max_positions', ('max_position_embeddings',), int, 8192),
    declaration.Setting('sliding_window', ('sliding_window', 'sliding_window_size'), int, 4096),
    declaration.Setting('score_width', ('query_pre_attn_scalar',), int, 256),
    declaration.Setting('score_cap', ('attn_logit_softcapping',), float, 50.0, nullable=True),
    declaration.Setting('logit_cap', ('final_logit_softcapping',), float, 30.0, nullable=True),
  ),
  fixed={
    'architectures': ['Gemma2ForCausalLM'],
    'attention_bias': False,
    'hidden_act': 'gelu_pytorch_tanh',
    'hidden_activation': 'gelu_pytorch_tanh',
    'use_bidirectional_attention': None,
  },
  cycles={'layer_types': ('sliding_attention', 'full_attention')},
  inert={},
  fields={
    'activation': 'gelu_tanh',
    'full_attention_every': 2,
    'output_norms': True,
    'scaled_embeddings': True,
    'zero_centred_norms': True,
  },
  tensors=_tensors(
    *_OUTPUT_NORMS,
    declaration.Tensor('layers/mlp_norm/scale', 'model.layers.{layer}.pre_feedforward_layernorm.weight'),
    without='layers/mlp_norm',
  ),
)

GEMMA3 = dataclasses.replace(  # text only
  GEMMA2,
  model_type='gemma3_text',
  settings=_settings(
    _KV_HEADS,
    declaration.Setting('head_width', ('head_dim',), int, 256),
    declaration.Setting('rope_theta', ('rope_theta', 'rope_parameters.full_attention.rope_theta'), float, 1_000_000.0),
    declaration.Setting(
      'local_rope_theta', ('rope_local_base_freq', 'rope_parameters.sliding_attention.rope_theta'), float, 10_000.0
    ),
    declaration.Setting('tied_embeddings', ('tie_word_embeddings',), bool, True),
    declaration.Setting('max_positions', ('max_position_embeddings',), int, 131_072),
    declaration.Setting('sliding_window', ('sliding_window', 'sliding_window_size'), int, 4096),
    declaration.Setting('score_width', ('query_pre_attn_scalar',), int, 256),
    declaration.Setting('score_cap', ('attn_logit_softcapping',), float, nullable=True),
    declaration.Setting('logit_cap', ('final_logit_softcapping',), float, nullable=True),
  ),
  fixed={
    'architectures': ['Gemma3ForCausalLM'],
    'attention_bias': False,
    'hidden_activation': 'gelu_pytorch_tanh',
    'use_bidirectional_attention': False,
    'sliding_window_pattern': 6,
    '_sliding_window_pattern': 6,
    'rope_parameters.sliding_attention.rope_type': 'default',
  },
  cycles={'layer_types': ('sliding_attention',) * 5 + ('full_attention',)},
  fields=GEMMA2.fields | {'full_attention_every': 6, 'qk_norm': True},
  tensors=GEMMA2.tensors + _QK_NORMS,
  rotary_places=('rope_scaling', 'rope_parameters.full_attention'),
)

OLMO2 = dataclasses.replace(
  LLAMA,
  model_type='olmo2',
  settings=_settings(declaration.Setting('norm_epsilon', ('rms_norm_eps',), float, 1e-5)),
  fixed={'architectures': ['Olmo2ForCausalLM'], 'attention_bias': False, 'hidden_act': 'silu'},
  fields={'input_norms': False, 'joint_qk_norm': True, 'output_norms': True},
  tensors=_tensors(*_OUTPUT_NORMS, *_QK_NORMS, without=('layers/attention_norm', 'layers/mlp_norm')),
)

OLMO3 = dataclasses.replace(
  OLMO2,
  model_type='olmo3',
  settings=_settings(
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
  settings=_settings(
    _KV_HEADS,
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
    *_TENSORS,
    *_QKV_BIASES,
    declaration.Tensor('layers/attention_norm/bias', 'model.layers.{layer}.input_layernorm.bias'),
    declaration.Tensor('layers/mlp_norm/bias', 'model.layers.{layer}.post_attention_layernorm.bias'),
    declaration.Tensor('final_norm/bias', 'model.norm.bias'),
  ),
)

PHI3 = dataclasses.replace(
  LLAMA,
  model_type='phi3',
  settings=_settings(
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
  tensors=_tensors(
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
    GEMMA,
    GEMMA2,
    GEMMA3,
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
  restored = transformer.TransformerConfig(**family.parse(family.render(config)), **execution)
  if restored != config:
    names = [field.name for field in dataclasses.fields(config)]
    lost = [f'{name}={getattr(config, name)!r}' for name in names if getattr(config, name) != getattr(restored, name)]
    raise ValueError(f'model_type {config.model_type!r} cannot store {", ".join(lost)}')
  return family
