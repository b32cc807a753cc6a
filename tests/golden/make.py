"""Writes the golden checkpoints: tiny random models with the logits that Hugging Face transformers computes for them.

Run by hand, where torch and transformers are installed; the library itself needs neither:

  python tests/golden/make.py
"""

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
SMALL = {'hidden_size': 24, 'intermediate_size': 32, 'num_hidden_layers': 2}
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
}
PROMPT_LENGTHS = (7, 4, 1)
RESPONSE_LENGTHS = ((9, 5), (1, 9), (9, 3))


def build(config: transformers.PreTrainedConfig, seed: int) -> transformers.PreTrainedModel:
  """A model whose every parameter matters: large kernels and biases, norm scales far from 1."""
  torch.manual_seed(seed)
  model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      noise = torch.randn(parameter.shape)
      if 'norm' in name:
        parameter.copy_(1 + 0.3 * noise)
      else:
        parameter.copy_(noise if name.endswith('bias') else 1.5 * noise / parameter.shape[1] ** 0.5)
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
def logits(model: transformers.PreTrainedModel, batch: dict[str, np.ndarray]) -> np.ndarray:
  """[B, N, R, V]: the logits that predict each response token, from an unpadded forward for each pair; 0 at padding."""
  result = np.zeros((*batch['response'].shape, VOCAB), np.float32)
  for row, length in enumerate(batch['prompt_length']):
    for sample, response_length in enumerate(batch['response_length'][row]):
      prompt, response = batch['prompt'][row, :length], batch['response'][row, sample, :response_length]
      sequence = torch.tensor(np.concatenate([prompt, response]))[None].long()
      result[row, sample, :response_length] = model(sequence).logits[0, length - 1 : -1].numpy()
  return result


def main() -> None:
  for seed, (name, config) in enumerate(MODELS.items()):
    model, batch = build(config, seed), tokens(seed)
    folder = HERE / name
    model.save_pretrained(folder)
    (folder / 'generation_config.json').unlink()
    golden = batch | {'logits': logits(model, batch)}
    safetensors_numpy.save_file(golden, folder / 'golden.safetensors')
    versions = {module.__name__: module.__version__ for module in (torch, transformers)}
    (folder / 'versions.json').write_text(json.dumps(versions, indent=2) + '\n')


if __name__ == '__main__':
  main()
