"""A model folder that holds config.json alone, and plans of runs with it."""

import json

import jax
import numpy as np

from alignjax.parallel import mesh as parallel_mesh
from alignjax.run import settings

LLAMA_8B = {
  'architectures': ['LlamaForCausalLM'],
  'model_type': 'llama',
  'vocab_size': 128256,
  'hidden_size': 4096,
  'num_hidden_layers': 32,
  'num_attention_heads': 32,
  'num_key_value_heads': 8,
  'intermediate_size': 14336,
  'hidden_act': 'silu',
  'rms_norm_eps': 1e-5,
  'rope_theta': 5e5,
  'max_position_embeddings': 8192,
  'tie_word_embeddings': False,
  'torch_dtype': 'bfloat16',
}
TINY = {
  'vocab_size': 64,
  'hidden_size': 32,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'intermediate_size': 64,
}


def write(folder, **entries):
  """Writes config.json of Llama-3-8B with other entries, and returns the folder."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(LLAMA_8B | entries))
  return str(folder)


def configure(folder, **values):
  """A run on 8 prompts of 16 tokens with responses of 24."""
  small = {'batch_size': 8, 'max_prompt': 16, 'max_response': 24, 'compute_dtype': 'float32'}
  return settings.Config(**{'model': str(folder), **small, **values})


def mesh_of(data, fsdp, tensor):
  """A mesh of virtual CPU devices."""
  return parallel_mesh.make_mesh(data, fsdp, tensor, devices=jax.devices()[: int(np.prod((data, fsdp, tensor)))])
