"""Declarations of the Gemma families."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from alignjax.models import config_entries, declaration, llama_family

GEMMA = dataclasses.replace(
  llama_family.LLAMA,
  model_type='gemma',
  settings=llama_family.settings(
    llama_family.KV_HEADS,
    config_entries.Setting('head_width', ('head_dim',), int, 256),
    config_entries.Setting('tied_embeddings', ('tie_word_embeddings',), bool, True),
    config_entries.Setting('max_positions', ('max_position_embeddings',), int, 8192),
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
    config_entries.Setting('head_width', ('head_dim',), int, 256),
    config_entries.Setting('tied_embeddings', ('tie_word_embeddings',), bool, True),
    config_entries.Setting('max_positions', ('max_position_embeddings',), int, 8192),
    config_entries.Setting('sliding_window', ('sliding_window', 'sliding_window_size'), int, 4096),
    config_entries.Setting('score_width', ('query_pre_attn_scalar',), int, 256),
    config_entries.Setting('score_cap', ('attn_logit_softcapping',), float, 50.0, nullable=True),
    config_entries.Setting('logit_cap', ('final_logit_softcapping',), float, 30.0, nullable=True),
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
    config_entries.Setting('head_width', ('head_dim',), int, 256),
    config_entries.Setting(
      'rope_theta', ('rope_theta', 'rope_parameters.full_attention.rope_theta'), float, 1_000_000.0
    ),
    config_entries.Setting(
      'local_rope_theta', ('rope_local_base_freq', 'rope_parameters.sliding_attention.rope_theta'), float, 10_000.0
    ),
    config_entries.Setting('tied_embeddings', ('tie_word_embeddings',), bool, True),
    config_entries.Setting('max_positions', ('max_position_embeddings',), int, 131_072),
    config_entries.Setting('sliding_window', ('sliding_window', 'sliding_window_size'), int, 4096),
    config_entries.Setting('score_width', ('query_pre_attn_scalar',), int, 256),
    config_entries.Setting('score_cap', ('attn_logit_softcapping',), float, nullable=True),
    config_entries.Setting('logit_cap', ('final_logit_softcapping',), float, nullable=True),
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

_VISION = frozenset(  # of the larger model; they do not affect its text model
  {
    'boi_token_id',
    'boi_token_index',
    'eoi_token_id',
    'eoi_token_index',
    'image_token_id',
    'image_token_index',
    'mm_tokens_per_image',
    'vision_config',
  }
)
_TEXT_DEFAULTS = {  # of transformers; published files leave out what equals them
  'hidden_size': 2304,
  'intermediate_size': 9216,
  'num_attention_heads': 8,
  'num_hidden_layers': 26,
  'num_key_value_heads': 4,
  'vocab_size': 262_208,
}


def _text_entries(entries: Mapping[str, Any]) -> Mapping[str, Any]:
  """The entries of the text model in those of a model that also reads images."""
  architectures, text = entries.get('architectures'), entries.get('text_config')
  if architectures not in (None, ['Gemma3ForConditionalGeneration']):
    raise ValueError(f"field architectures={architectures!r} must be ['Gemma3ForConditionalGeneration']")
  if not isinstance(text, dict):
    raise ValueError('field text_config must be an object with the configuration of the text model')
  if text.get('model_type', 'gemma3_text') != 'gemma3_text':
    raise ValueError(f"field text_config.model_type={text['model_type']!r} must be 'gemma3_text'")
  if text.get('final_logit_softcapping') is not None:
    raise ValueError(
      f'field text_config.final_logit_softcapping={text["final_logit_softcapping"]!r} must be null, because gemma3 '
      'does not apply it and the text model alone does'
    )
  own = {'architectures', 'model_type', 'text_config'}
  outer = {key: value for key, value in entries.items() if key not in _VISION | own}
  tied = {name: value for name, value in (('text_config.', text), ('', outer)) if 'tie_word_embeddings' in value}
  if len({value['tie_word_embeddings'] for value in tied.values()}) > 1:
    contradiction = ', '.join(f'{name}tie_word_embeddings={v["tie_word_embeddings"]!r}' for name, v in tied.items())
    raise ValueError(f'fields contradict each other: {contradiction}')
  return {**_TEXT_DEFAULTS, **{key: value for key, value in text.items() if key != 'architectures'}, **outer}


GEMMA3_WITH_IMAGES = dataclasses.replace(  # the text model of `gemma3`, which is stored as `gemma3_text`
  GEMMA3,
  rewrite=_text_entries,
  renamed={
    'language_model.model.': 'model.',  # as published, and as transformers saves them
    'language_model.lm_head.': 'lm_head.',
    'model.language_model.': 'model.',  # as transformers 5 names them in memory
  },
  dropped=('vision_tower.', 'multi_modal_projector.', 'model.vision_tower.', 'model.multi_modal_projector.'),
)
