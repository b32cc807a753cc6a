"""Contents of config.json of each family, and the fields that they stand for."""

from alignjax.models import families, layers

REMOVED = object()
OLD = {  # as transformers 4 writes it, with entries of well-known checkpoints
  '_name_or_path': 'someone/model',
  'architectures': ['LlamaForCausalLM'],
  'attention_bias': False,
  'attention_dropout': 0.0,
  'bos_token_id': 1,
  'eos_token_id': [2, 3],
  'hidden_act': 'silu',
  'hidden_size': 576,
  'initializer_range': 0.04,
  'intermediate_size': 1536,
  'is_llama_config': True,
  'max_position_embeddings': 8192,
  'mlp_bias': False,
  'model_type': 'llama',
  'num_attention_heads': 9,
  'num_hidden_layers': 30,
  'num_key_value_heads': 3,
  'pad_token_id': 2,
  'pretraining_tp': 1,
  'rms_norm_eps': 1e-05,
  'rope_interleaved': False,
  'rope_scaling': None,
  'rope_theta': 100000,
  'tie_word_embeddings': True,
  'torch_dtype': 'bfloat16',
  'transformers.js_config': {'kv_cache_dtype': {'q4f16': 'float16'}},
  'transformers_version': '4.42.3',
  'use_cache': True,
  'vocab_size': 49152,
}
FIELDS = {
  'model_type': 'llama',
  'vocab_size': 49152,
  'width': 576,
  'layers': 30,
  'heads': 9,
  'kv_heads': 3,
  'head_width': 64,
  'mlp_width': 1536,
  'norm_epsilon': 1e-5,
  'rope_theta': 100000.0,
  'tied_embeddings': True,
  'max_positions': 8192,
  'rope_scaling': None,
}
LLAMA_FIELDS = FIELDS | {'qkv_bias': False, 'output_bias': False, 'mlp_bias': False}
LLAMA3 = {'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0, 'original_max_position_embeddings': 8192}
MISTRAL = {'model_type': 'mistral', 'architectures': ['MistralForCausalLM'], 'sliding_window': 4096}
QWEN2 = {
  'model_type': 'qwen2',
  'architectures': ['Qwen2ForCausalLM'],
  'use_sliding_window': False,
  'sliding_window': 32768,
  'max_window_layers': 21,
  'layer_types': ['full_attention'] * 30,
}
QWEN3 = QWEN2 | {'model_type': 'qwen3', 'architectures': ['Qwen3ForCausalLM'], 'attention_bias': False, 'head_dim': 128}
GEMMA2 = {
  'model_type': 'gemma2',
  'architectures': ['Gemma2ForCausalLM'],
  'attention_bias': False,
  'hidden_act': 'gelu_pytorch_tanh',
  'hidden_activation': 'gelu_pytorch_tanh',
  'cache_implementation': 'hybrid',
  'head_dim': 128,
  'query_pre_attn_scalar': 144,
  'sliding_window': 2048,
  'attn_logit_softcapping': 40.0,
  'final_logit_softcapping': 20,
  'layer_types': ['sliding_attention', 'full_attention'] * 15,
}
GEMMA3 = {
  'model_type': 'gemma3_text',
  'architectures': ['Gemma3ForCausalLM'],
  'attention_bias': False,
  'hidden_act': REMOVED,
  'hidden_activation': 'gelu_pytorch_tanh',
  'cache_implementation': 'hybrid',
  'head_dim': 128,
  'query_pre_attn_scalar': 144,
  'rope_local_base_freq': 10000.0,
  'rope_scaling': {'rope_type': 'linear', 'factor': 8.0},
  'sliding_window': 512,
  'sliding_window_pattern': 6,
  'attn_logit_softcapping': None,
  'final_logit_softcapping': None,
}
OLMO2 = {'model_type': 'olmo2', 'architectures': ['Olmo2ForCausalLM'], 'attention_bias': False}
OLMO3 = {
  'model_type': 'olmo3',
  'architectures': ['Olmo3ForCausalLM'],
  'attention_bias': False,
  'sliding_window': 4096,
  'layer_types': (['sliding_attention'] * 3 + ['full_attention']) * 7 + ['sliding_attention'] * 2,
}
GEMMA = {
  'model_type': 'gemma',
  'architectures': ['GemmaForCausalLM'],
  'attention_bias': False,
  'head_dim': 256,
  'hidden_act': 'gelu_pytorch_tanh',
  'hidden_activation': 'gelu_pytorch_tanh',
}
GRANITE = {
  'model_type': 'granite',
  'architectures': ['GraniteForCausalLM'],
  'attention_bias': False,
  'mlp_bias': False,
  'attention_multiplier': 0.015625,
  'embedding_multiplier': 12,
  'logits_scaling': 8.0,
  'residual_multiplier': 0.22,
}
STABLELM = {
  'model_type': 'stablelm',
  'architectures': ['StableLmForCausalLM'],
  'hidden_dropout': 0.0,
  'layer_norm_eps': 1e-5,
  'rms_norm_eps': REMOVED,
  'partial_rotary_factor': 0.25,
  'qk_layernorm': False,
  'use_parallel_residual': False,
  'use_qkv_bias': True,
}
PHI3 = {
  'model_type': 'phi3',
  'architectures': ['Phi3ForCausalLM'],
  'attention_bias': False,
  'auto_map': {'AutoConfig': 'configuration_phi3.Phi3Config'},
  'embd_pdrop': 0.0,
  'original_max_position_embeddings': 4096,
  'resid_pdrop': 0.0,
  'sliding_window': 2047,
}
SMOLLM3 = {  # of SmolLM3-3B
  'model_type': 'smollm3',
  'architectures': ['SmolLM3ForCausalLM'],
  'attention_bias': False,
  'hidden_act': 'silu',
  'layer_types': ['full_attention'] * 36,
  'max_window_layers': 28,
  'mlp_bias': False,
  'no_rope_layer_interval': 4,
  'no_rope_layers': [1, 1, 1, 0] * 9,
  'pretraining_tp': 2,
  'sliding_window': None,
  'use_sliding_window': False,
}
MIXTRAL = {  # of Mixtral-8x7B
  'model_type': 'mixtral',
  'architectures': ['MixtralForCausalLM'],
  'num_experts_per_tok': 2,
  'num_local_experts': 8,
  'output_router_logits': False,
  'router_aux_loss_coef': 0.02,
  'sliding_window': None,
}
QWEN3_MOE = QWEN3 | {  # of Qwen3-30B-A3B
  'model_type': 'qwen3_moe',
  'architectures': ['Qwen3MoeForCausalLM'],
  'decoder_sparse_step': 1,
  'intermediate_size': 6144,
  'mlp_only_layers': [],
  'moe_intermediate_size': 768,
  'norm_topk_prob': True,
  'num_experts': 128,
  'num_experts_per_tok': 8,
  'output_router_logits': False,
  'router_aux_loss_coef': 0.001,
}
PHI4_MINI = PHI3 | {  # what it adds to Phi-3; its lists of factors are longer
  'full_attn_mod': 1,
  'interpolate_factor': 1,
  'lm_head_bias': False,
  'max_position_embeddings': 131072,
  'mlp_bias': False,
  'partial_rotary_factor': 0.75,
  'rope_scaling': {'long_factor': [1, 1.118320672] * 12, 'short_factor': [1.0] * 24, 'type': 'longrope'},
  'sliding_window': 262144,
}
GEMMA3_4B = {  # as published; what it leaves out are defaults of transformers
  'architectures': ['Gemma3ForConditionalGeneration'],
  'boi_token_index': 255999,
  'eoi_token_index': 256000,
  'eos_token_id': [1, 106],
  'image_token_index': 262144,
  'initializer_range': 0.02,
  'mm_tokens_per_image': 256,
  'model_type': 'gemma3',
  'text_config': {
    'hidden_size': 2560,
    'intermediate_size': 10240,
    'model_type': 'gemma3_text',
    'num_hidden_layers': 34,
    'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'},
    'sliding_window': 1024,
  },
  'torch_dtype': 'bfloat16',
  'transformers_version': '4.50.0.dev0',
  'vision_config': {'hidden_size': 1152, 'model_type': 'siglip_vision_model', 'num_hidden_layers': 27},
}
GEMMA2_FIELDS = {
  'model_type': 'gemma2',
  'activation': 'gelu_tanh',
  'full_attention_every': 2,
  'output_norms': True,
  'scaled_embeddings': True,
  'zero_centred_norms': True,
  'head_width': 128,
  'score_width': 144,
  'sliding_window': 2048,
  'score_cap': 40.0,
  'logit_cap': 20.0,
}
GEMMA3_FIELDS = GEMMA2_FIELDS | {
  'model_type': 'gemma3_text',
  'full_attention_every': 6,
  'qk_norm': True,
  'local_rope_theta': 10000.0,
  'rope_scaling': layers.LinearScaling(8.0),
  'sliding_window': 512,
  'score_cap': None,
  'logit_cap': None,
}
OLMO2_FIELDS = {'model_type': 'olmo2', 'input_norms': False, 'joint_qk_norm': True, 'output_norms': True}
OLMO3_FIELDS = OLMO2_FIELDS | {
  'model_type': 'olmo3',
  'full_attention_every': 4,
  'local_rope_theta': 100000.0,
  'sliding_window': 4096,
}
GEMMA_FIELDS = {
  'model_type': 'gemma',
  'activation': 'gelu_tanh',
  'head_width': 256,
  'scaled_embeddings': True,
  'zero_centred_norms': True,
}
GRANITE_FIELDS = {
  'model_type': 'granite',
  'qkv_bias': False,
  'output_bias': False,
  'mlp_bias': False,
  'embedding_multiplier': 12.0,
  'residual_multiplier': 0.22,
  'score_multiplier': 0.015625,
  'logit_divisor': 8.0,
}
STABLELM_FIELDS = {'model_type': 'stablelm', 'norm': 'layer', 'qkv_bias': True, 'rotary_fraction': 0.25}
SMOLLM3_FIELDS = {
  'model_type': 'smollm3',
  'qkv_bias': False,
  'output_bias': False,
  'mlp_bias': False,
  'unrotated_every': 4,
}
MIXTRAL_FIELDS = {'model_type': 'mixtral', 'experts': 8, 'experts_per_token': 2, 'sliding_window': None}
QWEN3_MOE_FIELDS = {
  'model_type': 'qwen3_moe',
  'experts': 128,
  'experts_per_token': 8,
  'head_width': 128,
  'mlp_width': 768,
  'normalised_experts': True,
  'qk_norm': True,
}
PHI3_FIELDS = {'model_type': 'phi3', 'rotary_fraction': 1.0, 'sliding_window': 2047}
PHI4_MINI_FIELDS = PHI3_FIELDS | {
  'max_positions': 131072,
  'rope_scaling': layers.LongRopeScaling((1.0,) * 24, (1.0, 1.118320672) * 12, 4096, 32.0),
  'rotary_fraction': 0.75,
  'sliding_window': 262144,
}
GPT2 = {  # of the smallest one, as it was published
  'activation_function': 'gelu_new',
  'architectures': ['GPT2LMHeadModel'],
  'attn_pdrop': 0.1,
  'bos_token_id': 50256,
  'embd_pdrop': 0.1,
  'eos_token_id': 50256,
  'initializer_range': 0.02,
  'layer_norm_epsilon': 1e-05,
  'model_type': 'gpt2',
  'n_ctx': 1024,
  'n_embd': 768,
  'n_head': 12,
  'n_layer': 12,
  'n_positions': 1024,
  'resid_pdrop': 0.1,
  'summary_activation': None,
  'summary_first_dropout': 0.1,
  'summary_proj_to_labels': True,
  'summary_type': 'cls_index',
  'summary_use_proj': True,
  'task_specific_params': {'text-generation': {'do_sample': True, 'max_length': 50}},
  'vocab_size': 50257,
}
GPT2_FIELDS = {
  'model_type': 'gpt2',
  'vocab_size': 50257,
  'width': 768,
  'layers': 12,
  'heads': 12,
  'kv_heads': 12,
  'head_width': 64,
  'mlp_width': 3072,
  'norm_epsilon': 1e-5,
  'rope_theta': None,
  'tied_embeddings': True,
  'max_positions': 1024,
  'rope_scaling': None,
  'activation': 'gelu_tanh',
  'gated_mlp': False,
  'norm': 'layer',
  'qkv_bias': True,
  'output_bias': True,
  'mlp_bias': True,
}
NEOX = {  # of Pythia-70M
  'architectures': ['GPTNeoXForCausalLM'],
  'bos_token_id': 0,
  'eos_token_id': 0,
  'hidden_act': 'gelu',
  'hidden_size': 512,
  'initializer_range': 0.02,
  'intermediate_size': 2048,
  'layer_norm_eps': 1e-05,
  'max_position_embeddings': 2048,
  'model_type': 'gpt_neox',
  'num_attention_heads': 8,
  'num_hidden_layers': 6,
  'rotary_emb_base': 10000,
  'rotary_pct': 0.25,
  'tie_word_embeddings': False,
  'torch_dtype': 'float16',
  'transformers_version': '4.24.0',
  'use_cache': True,
  'use_parallel_residual': True,
  'vocab_size': 50304,
}
NEOX_FIELDS = {
  'model_type': 'gpt_neox',
  'vocab_size': 50304,
  'width': 512,
  'layers': 6,
  'heads': 8,
  'kv_heads': 8,
  'head_width': 64,
  'mlp_width': 2048,
  'norm_epsilon': 1e-5,
  'rope_theta': 10000.0,
  'rotary_fraction': 0.25,
  'tied_embeddings': False,
  'max_positions': 2048,
  'rope_scaling': None,
  'activation': 'gelu',
  'gated_mlp': False,
  'norm': 'layer',
  'parallel_residual': True,
  'qkv_bias': True,
  'output_bias': True,
  'mlp_bias': True,
}


def changed(**changes):
  """The entries of a Llama, with changes."""
  return {key: value for key, value in (OLD | changes).items() if value is not REMOVED}


def parse(entries, **changes):
  """Parses the entries of another family, with those of OLD that it has too."""
  llama = dict.fromkeys(('attention_bias', 'mlp_bias', 'rope_interleaved'), REMOVED)
  return families.by_type(entries['model_type']).parse(changed(**llama | entries | changes))


def of(model_type):
  """The fields of `TransformerConfig` of a family."""
  own = {
    'gpt2': GPT2_FIELDS,
    'gpt_neox': NEOX_FIELDS,
    'qwen2': {'qkv_bias': True},
    'qwen3': {'qk_norm': True},
    'mistral': {'sliding_window': 4096},
    'gemma2': GEMMA2_FIELDS,
    'gemma3_text': GEMMA3_FIELDS,
    'olmo2': OLMO2_FIELDS,
    'olmo3': OLMO3_FIELDS,
    'gemma': GEMMA_FIELDS,
    'granite': GRANITE_FIELDS,
    'stablelm': STABLELM_FIELDS,
    'mixtral': MIXTRAL_FIELDS,
    'phi3': PHI3_FIELDS,
    'qwen3_moe': QWEN3_MOE_FIELDS,
    'smollm3': SMOLLM3_FIELDS,
  }
  return FIELDS | own.get(model_type, {}) | {'model_type': model_type}
