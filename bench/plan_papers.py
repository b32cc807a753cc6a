"""The smallest machines for the papers' runs, and the largest batch on each: the table of docs/planning.md.

  python -m bench.plan_papers

The settings are those of experiments/configs, with bfloat16 activations and full rematerialisation; the models are the
papers', of which only the configuration is needed.
"""

import dataclasses
import json
import pathlib
import tempfile

from absl import app, logging
import jax

from alignjax.optim import recipes
from alignjax.planning import hardware, plan
from alignjax.run import config_file, settings

CONFIGS = pathlib.Path(__file__).parents[1] / 'experiments' / 'configs'
CHIPS = ('v5e', 'v5p', 'h100')
_LLAMA = {
  'architectures': ['LlamaForCausalLM'],
  'model_type': 'llama',
  'vocab_size': 128256,
  'hidden_act': 'silu',
  'rms_norm_eps': 1e-5,
  'rope_theta': 5e5,
  'torch_dtype': 'bfloat16',
}
MODELS = {
  'Llama-3-8B': _LLAMA
  | {
    'hidden_size': 4096,
    'num_hidden_layers': 32,
    'num_attention_heads': 32,
    'num_key_value_heads': 8,
    'intermediate_size': 14336,
    'max_position_embeddings': 8192,
    'tie_word_embeddings': False,
  },
  'Llama-3.2-3B': _LLAMA
  | {
    'hidden_size': 3072,
    'num_hidden_layers': 28,
    'num_attention_heads': 24,
    'num_key_value_heads': 8,
    'head_dim': 128,
    'intermediate_size': 8192,
    'max_position_embeddings': 131072,
    'tie_word_embeddings': True,
  },
  'Qwen1.5-7B': {
    'architectures': ['Qwen2ForCausalLM'],
    'model_type': 'qwen2',
    'vocab_size': 151936,
    'hidden_size': 4096,
    'num_hidden_layers': 32,
    'num_attention_heads': 32,
    'num_key_value_heads': 32,
    'intermediate_size': 11008,
    'hidden_act': 'silu',
    'rms_norm_eps': 1e-6,
    'rope_theta': 1e6,
    'max_position_embeddings': 32768,
    'tie_word_embeddings': False,
    'torch_dtype': 'bfloat16',
  },
  'pythia-2.8b': {
    'architectures': ['GPTNeoXForCausalLM'],
    'model_type': 'gpt_neox',
    'vocab_size': 50304,
    'hidden_size': 2560,
    'num_hidden_layers': 32,
    'num_attention_heads': 32,
    'intermediate_size': 10240,
    'hidden_act': 'gelu',
    'layer_norm_eps': 1e-5,
    'rotary_pct': 0.25,
    'rotary_emb_base': 10000,
    'use_parallel_residual': True,
    'max_position_embeddings': 2048,
    'tie_word_embeddings': False,
    'torch_dtype': 'float16',
  },
}
RUNS = {  # a variant of a configuration, and the model of its paper
  'ra_dpo_hh.py:ra2': 'pythia-2.8b',
  'is_daa_tldr.py:is_dpo': 'Llama-3.2-3B',
  'alpha_dpo.py:llama3_v2': 'Llama-3-8B',
  'distribution_chat.py:pmle': 'Llama-3-8B',
  'online_merging.py:on_dare': 'Qwen1.5-7B',
}


def config_of(run: str, folder: pathlib.Path) -> settings.Config:
  """The settings of a run, with a folder for its model's config.json."""
  model = folder / RUNS[run]
  model.mkdir(parents=True, exist_ok=True)
  (model / 'config.json').write_text(json.dumps(MODELS[RUNS[run]]))
  config = config_file.load(str(CONFIGS / run)).config
  base = {'base_model': str(model)} if recipes.parse_optimizer(config.optimizer).needs_delta else {}
  return dataclasses.replace(config, model=str(model), compute_dtype='bfloat16', remat='full', **base)


def row(run: str, config: settings.Config) -> str:
  """A row of the table."""
  cells = []
  for chip in CHIPS:
    found = plan.smallest_machine(config, hardware.chip(chip))
    most = plan.largest_batch(found.config, found.machine)
    tensor = found.config.mesh.tensor
    shown = found.machine.topology or str(found.machine.chips)
    cells.append(f'{shown}{f", tensor={tensor}" if tensor > 1 else ""} ({most.config.batch_size:,})')
  return f'| {run} | {RUNS[run]} | {config.batch_size} | {" | ".join(cells)} |'


def main(argv: list[str]) -> None:
  """Prints the table."""
  del argv
  logging.set_verbosity(logging.WARNING)
  jax.config.update('jax_platforms', 'cpu')
  print(f'| run | model | batch | {" | ".join(CHIPS)} |')
  print('|---' * (3 + len(CHIPS)) + '|')
  with tempfile.TemporaryDirectory() as folder:
    for run in RUNS:
      print(row(run, config_of(run, pathlib.Path(folder))), flush=True)


if __name__ == '__main__':
  app.run(main)
