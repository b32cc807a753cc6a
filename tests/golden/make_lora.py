"""Writes the golden adapters: what PEFT has made for some of the golden models, and the logits of both together.

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
PROJECTIONS = {
  'llama_tied': ['q_proj', 'v_proj', 'o_proj', 'up_proj', 'down_proj'],
  # Kernels that are stored together: one after another, head by head, and with inputs first.
  'phi3': ['qkv_proj', 'gate_up_proj'],
  'gpt_neox': ['query_key_value', 'dense_4h_to_h'],
  'gpt2': ['c_attn', 'mlp.c_proj'],
}


def build(name: str) -> peft.PeftModel:
  """An adapter with neither factor 0, whose effect cannot be overlooked."""
  base = transformers.AutoModelForCausalLM.from_pretrained(HERE / name, dtype=torch.float32).eval()
  settings = peft.LoraConfig(
    r=3,
    lora_alpha=5,
    lora_dropout=0.1,
    target_modules=PROJECTIONS[name],
    fan_in_fan_out=name == 'gpt2',
    task_type='CAUSAL_LM',
  )
  model = peft.get_peft_model(base, settings).eval()
  torch.manual_seed(0)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if 'lora_' in name:
        parameter.copy_(0.3 * torch.randn_like(parameter))
  return model


def logits(model: torch.nn.Module, name: str) -> np.ndarray:
  """Of the golden prompts of the base with their responses, [B, N, R, V], each sequence on its own."""
  golden = safetensors_numpy.load_file(HERE / name / 'golden.safetensors')
  responses = golden['response']
  found = np.zeros((*responses.shape, model.config.vocab_size), np.float32)
  for row, length in enumerate(golden['prompt_length']):
    for index, response in enumerate(responses[row]):
      sequence = np.concatenate([golden['prompt'][row, :length], response])
      with torch.no_grad():
        found[row, index] = model(torch.tensor(sequence[None]).long()).logits[0, length - 1 : -1].numpy()
  return found


def main() -> None:
  versions = {module.__name__: module.__version__ for module in (peft, torch, transformers)}
  for name in PROJECTIONS:
    folder = HERE / f'peft_{name}'
    model = build(name)
    adapted = logits(model, name)
    with model.disable_adapter():
      change = np.abs(adapted - logits(model, name)).max()
    model.peft_config['default'].base_model_name_or_path = name
    model.save_pretrained(folder)
    (folder / 'README.md').unlink()
    safetensors_numpy.save_file({'logits': adapted}, folder / 'logits.safetensors')
    (folder / 'versions.json').write_text(json.dumps(versions, indent=2) + '\n')
    print(f'{folder.name}: the adapter changes logits by up to {change:.2f}')


if __name__ == '__main__':
  main()
