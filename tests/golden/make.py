"""Writes the golden checkpoints: tiny random models with the logits that Hugging Face transformers computes for them,
and the hidden states that they come from.

Run by hand, where torch and transformers are installed; the library itself needs neither:

  python tests/golden/make.py smollm3 phi3_longrope

Without names, it writes all of them. To compare what alignjax exports with the same logits:

  python tests/golden/make.py --check=<folder of the export> smollm3
"""

import argparse
import json
import pathlib

import numpy as np
from safetensors import numpy as safetensors_numpy
import torch
import transformers

HERE = pathlib.Path(__file__).parent
VOCAB = 96
SHARED = {
  'vocab_size': VOCAB,
  'hidden_size': 32,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'max_position_embeddings': 64,
}
TOKEN_IDS = {'bos_token_id': 1, 'eos_token_id': 2, 'pad_token_id': 0}
SMALL = {'hidden_size': 24, 'intermediate_size': 32, 'num_hidden_layers': 2}
NEOX = {
  'vocab_size': VOCAB,
  'hidden_size': 32,
  'intermediate_size': 40,
  'num_attention_heads': 4,
  'num_hidden_layers': 2,
  'max_position_embeddings': 64,
  'layer_norm_eps': 1e-2,
  'rope_parameters': {'rope_type': 'default', 'rope_theta': 20.0, 'partial_rotary_factor': 0.5},
}
MODELS = {
  'llama_tied': transformers.LlamaConfig(
    **SHARED, num_hidden_layers=2, intermediate_size=48, tie_word_embeddings=True, rms_norm_eps=1e-5
  ),
  # Heads wider than width / heads, another rotary base, and an epsilon large enough to be seen.
  'llama_untied': transformers.LlamaConfig(
    **SHARED,
    num_hidden_layers=3,
    intermediate_size=40,
    tie_word_embeddings=False,
    rms_norm_eps=1e-2,
    head_dim=12,
    rope_parameters={'rope_type': 'default', 'rope_theta': 250.0},
  ),
  # Of the 6 rotary frequencies, 2 stay, 2 mix and 2 are divided.
  'llama_31': transformers.LlamaConfig(
    **SHARED | SMALL | {'max_position_embeddings': 128},
    tie_word_embeddings=True,
    head_dim=12,
    rope_parameters={
      'rope_type': 'llama3',
      'rope_theta': 100.0,
      'factor': 8.0,
      'low_freq_factor': 1.0,
      'high_freq_factor': 4.0,
      'original_max_position_embeddings': 64,
    },
  ),
  'qwen2': transformers.Qwen2Config(
    **SHARED | SMALL,
    tie_word_embeddings=False,
    rope_parameters={'rope_type': 'linear', 'rope_theta': 50.0, 'factor': 2.5},
  ),
  'qwen3': transformers.Qwen3Config(**SHARED | SMALL, tie_word_embeddings=True, head_dim=10, rms_norm_eps=1e-2),
  # The window is shorter than prompts and than responses.
  'mistral': transformers.MistralConfig(**SHARED | SMALL, tie_word_embeddings=False, sliding_window=4),
  # Caps that scores and logits reach, and a score width that is not the head width.
  'gemma2': transformers.Gemma2Config(
    **SHARED | SMALL | {'num_hidden_layers': 3},
    head_dim=8,
    query_pre_attn_scalar=12,
    sliding_window=4,
    attn_logit_softcapping=2.0,
    final_logit_softcapping=4.0,
  ),
  'llama_biased': transformers.LlamaConfig(
    **SHARED | SMALL, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
  ),
  # Of each head of 8 numbers, the first 6 are turned.
  'phi3': transformers.Phi3Config(
    **SHARED | SMALL | {'hidden_size': 32},
    **TOKEN_IDS,
    tie_word_embeddings=False,
    sliding_window=4,
    rope_parameters={'rope_type': 'default', 'rope_theta': 50.0, 'partial_rotary_factor': 0.75},
  ),
  'olmo2': transformers.Olmo2Config(**SHARED | SMALL, **TOKEN_IDS, tie_word_embeddings=False, rms_norm_eps=1e-2),
  # The sixth layer alone sees everything, with rotary positions that are stretched. One layer more stands after it.
  'gemma3': transformers.Gemma3TextConfig(
    **SHARED | SMALL | {'num_hidden_layers': 7},
    head_dim=8,
    query_pre_attn_scalar=48,
    sliding_window=4,
    rope_parameters={
      'full_attention': {'rope_type': 'linear', 'rope_theta': 20.0, 'factor': 3.0},
      'sliding_attention': {'rope_type': 'default', 'rope_theta': 200.0},
    },
  ),
  'gpt2': transformers.GPT2Config(
    vocab_size=VOCAB,
    **TOKEN_IDS,
    n_embd=24,
    n_layer=2,
    n_head=4,
    n_inner=40,
    n_positions=64,
    layer_norm_epsilon=1e-2,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
  ),
  # Of each head of 8 numbers, the first 4 are turned; residuals are parallel, and in the other one they are not.
  'gpt_neox': transformers.GPTNeoXConfig(**NEOX, **TOKEN_IDS, use_parallel_residual=True),
  'gpt_neox_sequential': transformers.GPTNeoXConfig(
    **NEOX, **TOKEN_IDS, use_parallel_residual=False, attention_bias=False
  ),
  # Of the 8 rotary frequencies, 2 stay, 3 mix and 3 are divided; cosine and sine are multiplied by 1.2.
  'qwen3_yarn': transformers.Qwen3Config(
    **SHARED | SMALL,
    tie_word_embeddings=True,
    head_dim=16,
    rope_parameters={
      'rope_type': 'yarn',
      'rope_theta': 50.0,
      'factor': 8.0,
      'original_max_position_embeddings': 64,
      'beta_fast': 6.0,
      'beta_slow': 1.0,
    },
  ),
  'gemma': transformers.GemmaConfig(**SHARED | SMALL, head_dim=8),
  # Heads as wide as the hidden size over the heads, three layers with a window and one without, whose positions alone
  # are scaled. One layer more stands after it.
  'olmo3': transformers.Olmo3Config(
    **SHARED | SMALL | {'num_hidden_layers': 5, 'hidden_size': 32},
    **TOKEN_IDS,
    sliding_window=4,
    rms_norm_eps=1e-2,
    rope_parameters={
      'full_attention': {
        'rope_type': 'yarn',
        'rope_theta': 50.0,
        'factor': 4.0,
        'original_max_position_embeddings': 32,
        'beta_fast': 4.0,
        'attention_factor': 1.3,
      },
      'sliding_attention': {'rope_type': 'default', 'rope_theta': 50.0},
    },
  ),
  'granite': transformers.GraniteConfig(
    **SHARED | SMALL,
    tie_word_embeddings=True,
    embedding_multiplier=3.0,
    residual_multiplier=0.4,
    attention_multiplier=0.7,
    logits_scaling=0.5,
  ),
  # Of each head of 8 numbers, the first 2 are turned.
  'stablelm': transformers.StableLmConfig(
    **SHARED | SMALL | {'hidden_size': 32}, **TOKEN_IDS, use_qkv_bias=True, layer_norm_eps=1e-2
  ),
}
# Of the 6 layers, the fourth has no rotary positions. The head width is the real one.
MODELS['smollm3'] = transformers.SmolLM3Config(
  **SHARED | SMALL | {'num_hidden_layers': 6, 'hidden_size': 32},
  **TOKEN_IDS,
  rope_parameters={'rope_type': 'default', 'rope_theta': 20.0},
)
# Of each head of 16 numbers, the first 12 are turned, as in Phi-4-mini. The context of pre-training is shorter than the
# shortest sequence, so the long factors are used.
LONGROPE = {
  'rope_type': 'longrope',
  'rope_theta': 50.0,
  'partial_rotary_factor': 0.75,
  'short_factor': [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
  'long_factor': [1.0, 1.118320672, 2.446418898, 5.351743533, 11.70738129, 25.6],
}
MODELS['phi3_longrope'] = transformers.Phi3Config(
  **SHARED | SMALL | {'hidden_size': 64, 'max_position_embeddings': 128},
  **TOKEN_IDS,
  tie_word_embeddings=True,
  original_max_position_embeddings=3,
  rope_parameters=dict(LONGROPE),
)
MODELS['phi3_longrope_short'] = transformers.Phi3Config(
  **SHARED | SMALL | {'hidden_size': 64, 'max_position_embeddings': 128},
  **TOKEN_IDS,
  tie_word_embeddings=True,
  original_max_position_embeddings=64,
  rope_parameters=dict(LONGROPE),
)
# A model that reads images too; the text model in it is that of `gemma3`, less one layer.
MODELS['gemma3_images'] = transformers.Gemma3Config(
  text_config=MODELS['gemma3'].to_dict() | {'num_hidden_layers': 6, 'layer_types': None},
  vision_config={
    'hidden_size': 8,
    'image_size': 8,
    'intermediate_size': 8,
    'model_type': 'siglip_vision_model',
    'num_attention_heads': 2,
    'num_hidden_layers': 1,
    'patch_size': 4,
    'vision_use_head': False,
  },
  mm_tokens_per_image=4,
)
# Two of four experts answer for a token, and their weights are divided by their sum.
MODELS['mixtral'] = transformers.MixtralConfig(
  **SHARED | SMALL,
  num_local_experts=4,
  num_experts_per_tok=2,
  rope_parameters={'rope_type': 'default', 'rope_theta': 50.0},
)
# Three of five experts, without that division.
MODELS['qwen3_moe'] = transformers.Qwen3MoeConfig(
  **SHARED | SMALL,
  head_dim=10,
  moe_intermediate_size=20,
  num_experts=5,
  num_experts_per_tok=3,
  norm_topk_prob=False,
)
PROMPT_LENGTHS = (7, 4, 1)
RESPONSE_LENGTHS = ((9, 5), (1, 9), (9, 3))


def build(config: transformers.PreTrainedConfig, seed: int) -> transformers.PreTrainedModel:
  """A model whose every parameter matters: large kernels and biases, norm scales far from 1."""
  torch.manual_seed(seed)
  model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      noise = torch.randn(parameter.shape)
      if 'norm' in name or 'ln_' in name:
        parameter.copy_(1 + 0.3 * noise)
      else:
        inputs = parameter.shape[0 if '.c_' in name else -1]  # GPT-2 stores kernels as [in, out]
        parameter.copy_(noise if name.endswith('bias') else 1.5 * noise / inputs**0.5)
  return model


def tokens(seed: int) -> dict[str, np.ndarray]:
  """Right-padded prompts and responses; the padding is random too, as nothing may depend on it."""
  generator = np.random.default_rng(seed)
  return {
    'prompt': generator.integers(0, VOCAB, (len(PROMPT_LENGTHS), max(PROMPT_LENGTHS) + 1), dtype=np.int32),
    'prompt_length': np.array(PROMPT_LENGTHS, np.int32),
    'response': generator.integers(0, VOCAB, (len(PROMPT_LENGTHS), 2, 9), dtype=np.int32),
    'response_length': np.array(RESPONSE_LENGTHS, np.int32),
  }


@torch.no_grad()
def predict(
  model: transformers.PreTrainedModel, batch: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """[B, N, R, V] and [B, N, R, D]: the logits that predict each response token, and the states that they come from.

  Both are from an unpadded forward for each pair, and 0 at padding.
  """
  shape, width = batch['response'].shape, model.config.get_text_config().hidden_size
  logits, hidden = np.zeros((*shape, VOCAB), np.float32), np.zeros((*shape, width), np.float32)
  for row, length in enumerate(batch['prompt_length']):
    for sample, response_length in enumerate(batch['response_length'][row]):
      prompt, response = batch['prompt'][row, :length], batch['response'][row, sample, :response_length]
      sequence = torch.tensor(np.concatenate([prompt, response]))[None].long()
      out = model(sequence, output_hidden_states=True)
      logits[row, sample, :response_length] = out.logits[0, length - 1 : -1].numpy()
      hidden[row, sample, :response_length] = out.hidden_states[-1][0, length - 1 : -1].numpy()
  return {'logits': logits}, {'hidden': hidden}


def write(name: str) -> None:
  """Writes the checkpoint of this name, its logits and its states."""
  seed = list(MODELS).index(name)
  model, batch = build(MODELS[name], seed), tokens(seed)
  folder = HERE / name
  model.save_pretrained(folder)
  (folder / 'generation_config.json').unlink()
  logits, hidden = predict(model, batch)
  safetensors_numpy.save_file(batch | logits, folder / 'golden.safetensors')
  safetensors_numpy.save_file(hidden, folder / 'hidden.safetensors')
  versions = {module.__name__: module.__version__ for module in (torch, transformers)}
  (folder / 'versions.json').write_text(json.dumps(versions, indent=2) + '\n')


def check(name: str, folder: str) -> None:
  """Prints the largest difference between the logits of an exported model and those of the checkpoint."""
  golden = safetensors_numpy.load_file(HERE / name / 'golden.safetensors')
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
  logits, _ = predict(model, golden)
  print(f'{name}: {type(model).__name__}, {np.abs(logits["logits"] - golden["logits"]).max():.1e}')


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('names', nargs='*', help='Checkpoints; none for all.')
  parser.add_argument('--check', help='Folder of an exported model to compare with the checkpoint.')
  options = parser.parse_args()
  for name in options.names or MODELS:
    check(name, options.check) if options.check else write(name)


if __name__ == '__main__':
  main()
