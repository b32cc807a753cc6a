"""Writes the golden adapter: one that PEFT has made for the golden model llama_tied, and the logits of both together.

Run by hand, where torch, transformers and peft are installed, after make.py; the library itself needs none of them:

  python tests/golden/make_lora.py
"""

import json
import pathlib

import numpy as np
import peft
from safetensors import numpy as safetensors_numpy
import torch
import transformers

HERE = pathlib.Path(__file__).parent
BASE, FOLDER = HERE / 'llama_tied', HERE / 'peft_llama_tied'
PROJECTIONS = ['q_proj', 'v_proj', 'o_proj', 'up_proj', 'down_proj']


def build() -> peft.PeftModel:
  """An adapter with neither factor 0, whose effect cannot be overlooked."""
  base = transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
  settings = peft.LoraConfig(r=3, lora_alpha=5, lora_dropout=0.1, target_modules=PROJECTIONS, task_type='CAUSAL_LM')
  model = peft.get_peft_model(base, settings).eval()
  torch.manual_seed(0)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if 'lora_' in name:
        parameter.copy_(0.3 * torch.randn_like(parameter))
  return model


def logits(model: torch.nn.Module) -> np.ndarray:
  """Of the golden prompts of the base with their responses, [B, N, R, V], each sequence on its own."""
  golden = safetensors_numpy.load_file(BASE / 'golden.safetensors')
  responses = golden['response']
  found = np.zeros((*responses.shape, model.config.vocab_size), np.float32)
  for row, length in enumerate(golden['prompt_length']):
    for index, response in enumerate(responses[row]):
      sequence = np.concatenate([golden['prompt'][row, :length], response])
      with torch.no_grad():
        found[row, index] = model(torch.tensor(sequence[None]).long()).logits[0, length - 1 : -1].numpy()
  return found


def main() -> None:
  model = build()
  adapted = logits(model)
  with model.disable_adapter():
    change = np.abs(adapted - logits(model)).max()
  model.peft_config['default'].base_model_name_or_path = BASE.name
  model.save_pretrained(FOLDER)
  (FOLDER / 'README.md').unlink()
  safetensors_numpy.save_file({'logits': adapted}, FOLDER / 'logits.safetensors')
  versions = {module.__name__: module.__version__ for module in (peft, torch, transformers)}
  (FOLDER / 'versions.json').write_text(json.dumps(versions, indent=2) + '\n')
  print(f'{FOLDER.name}: the adapter changes logits by up to {change:.2f}')


if __name__ == '__main__':
  main()
