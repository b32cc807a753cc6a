"""Entries of config.json without effect on the function that a causal language model computes, in any family.

Everything that no table lists is refused, because an unknown entry may change the result. Families add their own.
"""

from collections.abc import Mapping
import types
from typing import Any

_GENERATION = frozenset(  # settings of `generate` that transformers 4 stored with the model
  {
    'bad_words_ids',
    'begin_suppress_tokens',
    'decoder_start_token_id',
    'diversity_penalty',
    'do_sample',
    'early_stopping',
    'encoder_no_repeat_ngram_size',
    'exponential_decay_length_penalty',
    'forced_bos_token_id',
    'forced_eos_token_id',
    'length_penalty',
    'max_length',
    'min_length',
    'no_repeat_ngram_size',
    'num_beam_groups',
    'num_beams',
    'num_return_sequences',
    'output_scores',
    'remove_invalid_values',
    'repetition_penalty',
    'return_dict_in_generate',
    'suppress_tokens',
    'temperature',
    'top_k',
    'top_p',
    'typical_p',
  }
)
_CLASSIFICATION = frozenset(  # settings of classification heads, which a causal language model lacks
  {
    '_num_labels',
    'classifier_dropout',
    'finetuning_task',
    'id2label',
    'label2id',
    'num_labels',
    'problem_type',
    'task_specific_params',
  }
)
IGNORED = (  # without effect, whatever the value
  _GENERATION
  | _CLASSIFICATION
  | frozenset(
    {
      '_attn_implementation',
      '_attn_implementation_autoset',
      '_commit_hash',
      '_flash_attn_2_enabled',
      '_name_or_path',
      'attention_dropout',  # alignment fine-tuning runs without dropout; the same applies to other dropout entries
      'attn_implementation',
      'bos_token_id',
      'cache_implementation',
      'chunk_size_feed_forward',
      'dtype',
      'eos_token_id',
      'gradient_checkpointing',
      'initializer_range',
      'is_llama_config',
      'output_attentions',
      'output_hidden_states',
      'pad_token_id',
      'prefix',
      'pretraining_tp',  # affects only the order of summation
      'return_dict',
      'sep_token_id',
      'tokenizer_class',
      'torch_dtype',
      'transformers.js_config',
      'transformers_version',
      'unsloth_fixed',
      'unsloth_version',
      'use_cache',
    }
  )
)
VALUES: Mapping[str, tuple[Any, ...]] = types.MappingProxyType(  # without effect with these values alone
  {
    'add_cross_attention': (False, None),
    'architectures': (None, []),
    'cross_attention_hidden_size': (None,),
    'is_decoder': (False, None),
    'is_encoder_decoder': (False, None),
    'partial_rotary_factor': (1.0, 1, None),
    'pruned_heads': ({}, None),
    'quantization_config': ({}, None),
    'rope_parameters': ({}, None),
    'rope_parameters.partial_rotary_factor': (1.0, 1, None),
    'rope_scaling': ({}, None),
    'tf_legacy_loss': (False, None),
    'tie_encoder_decoder': (False, None),
    'torchscript': (False, None),
    'use_bfloat16': (False, None),
  }
)


def has_no_effect(key: str, value: Any, values: Mapping[str, tuple[Any, ...]]) -> bool:
  """Whether a table lists an entry with this value; `False` and `0` are different values."""
  return any(type(value) is type(listed) and value == listed for listed in values.get(key, ()))
