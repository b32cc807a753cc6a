"""Declarations of the GPT families: GPT-2, and GPT-NeoX with Pythia.

Unlike Llama, they have layer norms, biases and an MLP without a gate, and store queries, keys and values as one tensor.
"""

from alignjax.models import config_entries, declaration, inert

_QKV = tuple(f'layers/attention/{part}' for part in ('query', 'key', 'value'))


def _affine(module: str, name: str) -> tuple[declaration.Tensor, ...]:
  """Scale and bias of a layer norm."""
  return declaration.Tensor(f'{module}/scale', f'{name}.weight'), declaration.Tensor(f'{module}/bias', f'{name}.bias')


def _linear(
  modules: tuple[str, ...], name: str, transposed: bool, grouped_by: str | None = None
) -> tuple[declaration.Tensor, ...]:
  """Kernel and bias of one projection, or of several that are fused into one tensor."""
  kernels, biases = ([f'{module}/{leaf}' for module in modules] for leaf in ('kernel', 'bias'))
  return (
    declaration.Tensor(kernels[0], f'{name}.weight', transposed, tuple(kernels[1:]), grouped_by),
    declaration.Tensor(biases[0], f'{name}.bias', fused=tuple(biases[1:]), grouped_by=grouped_by),
  )


_HEADS = (  # no entry sets these
  config_entries.Setting('kv_heads', (), int, lambda fields: fields['heads']),
  config_entries.Setting('head_width', (), int, lambda fields: fields['width'] // fields['heads']),
)

GPT2 = declaration.Family(
  model_type='gpt2',
  settings=(
    config_entries.Setting('vocab_size', ('vocab_size',), int),
    config_entries.Setting('width', ('n_embd', 'hidden_size'), int),
    config_entries.Setting('layers', ('n_layer', 'num_hidden_layers'), int),
    config_entries.Setting('heads', ('n_head', 'num_attention_heads'), int),
    *_HEADS,
    config_entries.Setting('mlp_width', ('n_inner',), int, lambda fields: 4 * fields['width']),
    config_entries.Setting('norm_epsilon', ('layer_norm_epsilon',), float, 1e-5),
    config_entries.Setting('tied_embeddings', ('tie_word_embeddings',), bool, True),
    config_entries.Setting('max_positions', ('n_positions', 'n_ctx', 'max_position_embeddings'), int, 1024),
  ),
  fixed={
    'activation_function': 'gelu_new',
    'add_cross_attention': False,
    'architectures': ['GPT2LMHeadModel'],
    'scale_attn_by_inverse_layer_idx': False,
    'scale_attn_weights': True,
  },
  fields={
    'rope_theta': None,
    'activation': 'gelu_tanh',
    'gated_mlp': False,
    'norm': 'layer',
    'qkv_bias': True,
    'output_bias': True,
    'mlp_bias': True,
  },
  ignored=inert.IGNORED
  | {
    'attn_pdrop',
    'embd_pdrop',
    'n_special',
    'output_past',
    'predict_special_tokens',
    'reorder_and_upcast_attn',  # affects only the order of operations
    'resid_pdrop',
    'summary_activation',  # this and the other summary entries configure a classification head
    'summary_first_dropout',
    'summary_proj_to_labels',
    'summary_type',
    'summary_use_proj',
  },
  tensors=(
    declaration.Tensor('embed/embedding', 'transformer.wte.weight'),
    declaration.Tensor('positions/embedding', 'transformer.wpe.weight'),
    *_affine('layers/attention_norm', 'transformer.h.{layer}.ln_1'),
    *_linear(_QKV, 'transformer.h.{layer}.attn.c_attn', transposed=False),
    *_linear(('layers/attention/output',), 'transformer.h.{layer}.attn.c_proj', transposed=False),
    *_affine('layers/mlp_norm', 'transformer.h.{layer}.ln_2'),
    *_linear(('layers/mlp/up',), 'transformer.h.{layer}.mlp.c_fc', transposed=False),
    *_linear(('layers/mlp/down',), 'transformer.h.{layer}.mlp.c_proj', transposed=False),
    *_affine('final_norm', 'transformer.ln_f'),
    declaration.Tensor('unembed/kernel', 'lm_head.weight', transposed=True),
  ),
  ignored_tensors=('.attn.bias', '.attn.masked_bias'),  # masks
  optional_prefix='transformer.',
  rotary_places=(),
)

GPT_NEOX = declaration.Family(
  model_type='gpt_neox',
  settings=(
    config_entries.Setting('vocab_size', ('vocab_size',), int),
    config_entries.Setting('width', ('hidden_size',), int),
    config_entries.Setting('layers', ('num_hidden_layers',), int),
    config_entries.Setting('heads', ('num_attention_heads',), int),
    *_HEADS,
    config_entries.Setting('mlp_width', ('intermediate_size',), int),
    config_entries.Setting('norm_epsilon', ('layer_norm_eps',), float, 1e-5),
    config_entries.Setting(
      'rope_theta', ('rotary_emb_base', 'rope_theta', 'rope_parameters.rope_theta'), float, 10_000.0
    ),
    config_entries.Setting(
      'rotary_fraction',
      ('rotary_pct', 'partial_rotary_factor', 'rope_parameters.partial_rotary_factor'),
      float,
      0.25,
    ),
    config_entries.Setting('tied_embeddings', ('tie_word_embeddings',), bool, False),
    config_entries.Setting('max_positions', ('max_position_embeddings',), int, 2048),
    config_entries.Setting('parallel_residual', ('use_parallel_residual',), bool, True),
    config_entries.Setting('qkv_bias', ('attention_bias',), bool, True),
    config_entries.Setting('output_bias', ('attention_bias',), bool, True),
  ),
  fixed={'architectures': ['GPTNeoXForCausalLM'], 'hidden_act': 'gelu'},
  fields={'activation': 'gelu', 'gated_mlp': False, 'norm': 'layer', 'mlp_bias': True},
  ignored=inert.IGNORED
  | {
    'attention_probs_dropout_prob',
    'hidden_dropout',
    'hidden_dropout_prob',
    'is_decoder',
  },
  tensors=(
    declaration.Tensor('embed/embedding', 'gpt_neox.embed_in.weight'),
    *_affine('layers/attention_norm', 'gpt_neox.layers.{layer}.input_layernorm'),
    *_linear(_QKV, 'gpt_neox.layers.{layer}.attention.query_key_value', transposed=True, grouped_by='heads'),
    *_linear(('layers/attention/output',), 'gpt_neox.layers.{layer}.attention.dense', transposed=True),
    *_affine('layers/mlp_norm', 'gpt_neox.layers.{layer}.post_attention_layernorm'),
    *_linear(('layers/mlp/up',), 'gpt_neox.layers.{layer}.mlp.dense_h_to_4h', transposed=True),
    *_linear(('layers/mlp/down',), 'gpt_neox.layers.{layer}.mlp.dense_4h_to_h', transposed=True),
    *_affine('final_norm', 'gpt_neox.final_layer_norm'),
    declaration.Tensor('unembed/kernel', 'embed_out.weight', transposed=True),
  ),
  ignored_tensors=('.attention.bias', '.attention.masked_bias', '.rotary_emb.inv_freq'),  # masks and frequencies
)
