"""The declaration of Llama, and the parts of it that other families share."""

from alignjax.models import config_entries, declaration, inert

SETTINGS = (
  config_entries.Setting('vocab_size', ('vocab_size',), int),
  config_entries.Setting('width', ('hidden_size',), int),
  config_entries.Setting('layers', ('num_hidden_layers',), int),
  config_entries.Setting('heads', ('num_attention_heads',), int),
  config_entries.Setting('kv_heads', ('num_key_value_heads',), int, lambda fields: fields['heads']),
  config_entries.Setting('head_width', ('head_dim',), int, lambda fields: fields['width'] // fields['heads']),
  config_entries.Setting('mlp_width', ('intermediate_size',), int),
  config_entries.Setting('norm_epsilon', ('rms_norm_eps',), float, 1e-6),
  config_entries.Setting('rope_theta', ('rope_theta', 'rope_parameters.rope_theta'), float, 10_000.0),
  config_entries.Setting('tied_embeddings', ('tie_word_embeddings',), bool, False),
  config_entries.Setting('max_positions', ('max_position_embeddings',), int, 2048),
)
TENSORS = (
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
QKV_BIASES = (
  declaration.Tensor('layers/attention/query/bias', 'model.layers.{layer}.self_attn.q_proj.bias'),
  declaration.Tensor('layers/attention/key/bias', 'model.layers.{layer}.self_attn.k_proj.bias'),
  declaration.Tensor('layers/attention/value/bias', 'model.layers.{layer}.self_attn.v_proj.bias'),
)
QK_NORMS = (
  declaration.Tensor('layers/attention/query_norm/scale', 'model.layers.{layer}.self_attn.q_norm.weight'),
  declaration.Tensor('layers/attention/key_norm/scale', 'model.layers.{layer}.self_attn.k_norm.weight'),
)
BIASES = (
  config_entries.Setting('qkv_bias', ('attention_bias',), bool, False),
  config_entries.Setting('output_bias', ('attention_bias',), bool, False),
  config_entries.Setting('mlp_bias', ('mlp_bias',), bool, False),
)

LLAMA = declaration.Family(
  model_type='llama',
  settings=(*SETTINGS, *BIASES),
  fixed={'architectures': ['LlamaForCausalLM'], 'hidden_act': 'silu', 'rope_interleaved': False},
  ignored=inert.IGNORED,
  inert={'activation': ('swiglu',), 'mlp_bias': (False,)},  # Falcon 3 names its MLP beside the activation in it
  tensors=(
    *TENSORS,
    *QKV_BIASES,
    declaration.Tensor('layers/attention/output/bias', 'model.layers.{layer}.self_attn.o_proj.bias'),
    declaration.Tensor('layers/mlp/gate/bias', 'model.layers.{layer}.mlp.gate_proj.bias'),
    declaration.Tensor('layers/mlp/up/bias', 'model.layers.{layer}.mlp.up_proj.bias'),
    declaration.Tensor('layers/mlp/down/bias', 'model.layers.{layer}.mlp.down_proj.bias'),
  ),
  ignored_tensors=('.rotary_emb.inv_freq',),  # rotary frequencies, stored by old versions of transformers
)


def settings(*changed: config_entries.Setting) -> tuple[config_entries.Setting, ...]:
  """The common settings, with the given settings added or replacing those of the same field."""
  by_field = {setting.field: setting for setting in (*SETTINGS, *changed)}
  return tuple(by_field.values())


def tensors(*added: declaration.Tensor, without: str | tuple[str, ...]) -> tuple[declaration.Tensor, ...]:
  """The common tensors, except those whose paths start with `without`, plus the given ones."""
  return (*(tensor for tensor in TENSORS if not tensor.leaf.startswith(without)), *added)


def experts(block: str, gate: str, up: str, down: str) -> tuple[declaration.Tensor, ...]:
  """The tensors of a mixture of experts, by the names of its block in a layer and of the projections of an expert."""
  place = f'model.layers.{{layer}}.{block}'
  expert = f'{place}.experts.{{expert}}'
  return (
    declaration.Tensor('layers/mlp/router', f'{place}.gate.weight', transposed=True),
    declaration.Tensor('layers/mlp/gate', f'{expert}.{gate}.weight', transposed=True),
    declaration.Tensor('layers/mlp/up', f'{expert}.{up}.weight', transposed=True),
    declaration.Tensor('layers/mlp/down', f'{expert}.{down}.weight', transposed=True),
  )


# Required here: the families' own defaults for a missing num_key_value_heads are not sensible.
KV_HEADS = config_entries.Setting('kv_heads', ('num_key_value_heads',), int)

OUTPUT_NORMS = (
  declaration.Tensor('layers/attention_output_norm/scale', 'model.layers.{layer}.post_attention_layernorm.weight'),
  declaration.Tensor('layers/mlp_output_norm/scale', 'model.layers.{layer}.post_feedforward_layernorm.weight'),
)
