"""Declarations of the Gemma families."""

import dataclasses

from alignjax.models import declaration, llama_family

GEMMA = dataclasses.replace(
  llama_family.LLAMA,
  model_type='gemma',
  settings=llama_family.settings(
    llama_family.KV_HEADS,
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
  tensors=llama_family.TENSORS,
)

GEMMA2 = dataclasses.replace(
  llama_family.LLAMA,
  model_type='gemma2',
  settings=llama_family.settings(
    llama_family.KV_HEADS,
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
  tensors=llama_family.tensors(
    *llama_family.OUTPUT_NORMS,
    declaration.Tensor('layers/mlp_norm/scale', 'model.layers.{layer}.pre_feedforward_layernorm.weight'),
    without='layers/mlp_norm',
  ),
)

GEMMA3 = dataclasses.replace(  # text only
  GEMMA2,
  model_type='gemma3_text',
  settings=llama_family.settings(
    llama_family.KV_HEADS,
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
  tensors=GEMMA2.tensors + llama_family.QK_NORMS,
  rotary_places=('rope_scaling', 'rope_parameters.full_attention'),
)
