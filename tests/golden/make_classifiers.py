"""Writes the golden reward models: score heads for golden models, and the rewards that transformers computes with them.

Run by hand, where torch and transformers are installed, after make.py; the library itself needs neither:

  python tests/golden/make_classifiers.py smollm3 mixtral

Without names, it writes all of them.

classifiers/<name>.json holds config.json as transformers writes it and the names of the tensors; classifiers/<name>.
safetensors the score head and the rewards. The other weights are those of the golden model.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
from safetensors import numpy as safetensors_numpy
import torch
import transformers

HERE = pathlib.Path(__file__).parent
NAMES = (
  'gemma',
  'gemma2',
  'gemma3',
  'gpt2',
  'gpt_neox',
  'llama_tied',
  'llama_untied',
  'mistral',
  'mixtral',
  'phi3',
  'qwen2',
  'qwen3',
  'qwen3_moe',
  'smollm3',
  'stablelm',
)


def build(name: str) -> transformers.PreTrainedModel:
  """A golden model with a random score head."""
  config = transformers.AutoConfig.from_pretrained(HERE / name, num_labels=1, pad_token_id=None)
  model = transformers.AutoModelForSequenceClassification.from_pretrained(
    HERE / name, config=config, dtype=torch.float32
  ).eval()
  torch.manual_seed(0)
  with torch.no_grad():
    model.score.weight.copy_(torch.randn(model.score.weight.shape))
  return model


@torch.no_grad()
def rewards(model: transformers.PreTrainedModel, name: str) -> np.ndarray:
  """[B, N]: of the golden prompts with their responses, each sequence on its own and unpadded."""
  golden = safetensors_numpy.load_file(HERE / name / 'golden.safetensors')
  values = np.zeros(golden['response_length'].shape, np.float32)
  for row, sample in np.ndindex(*values.shape):
    prompt = golden['prompt'][row, : golden['prompt_length'][row]]
    response = golden['response'][row, sample, : golden['response_length'][row, sample]]
    sequence = torch.tensor(np.concatenate([prompt, response]))[None].long()
    values[row, sample] = model(sequence).logits[0, 0].item()
  return values


def stored_names(model: transformers.PreTrainedModel) -> list[str]:
  """The names of the tensors in the file of a model, which for mixtures of experts are not those of its parameters."""
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    return sorted(safetensors_numpy.load_file(pathlib.Path(folder) / 'model.safetensors'))


def main() -> None:
  folder = HERE / 'classifiers'
  folder.mkdir(exist_ok=True)
  for name in sys.argv[1:] or NAMES:
    model = build(name)
    config = model.config.to_diff_dict() | {'architectures': [type(model).__name__]}
    contents = {'config': config, 'tensors': stored_names(model), 'transformers': transformers.__version__}
    (folder / f'{name}.json').write_text(json.dumps(contents, indent=1) + '\n')
    arrays = {'score.weight': model.score.weight.detach().numpy(), 'rewards': rewards(model, name)}
    safetensors_numpy.save_file(arrays, folder / f'{name}.safetensors')


if __name__ == '__main__':
  main()
