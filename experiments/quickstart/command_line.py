"""The settings of the quickstart: one command-line flag for each."""

import dataclasses
from typing import Any

from absl import flags


def _setting(default: Any, text: str) -> Any:
  return dataclasses.field(default=default, metadata={'text': text})


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the flags set."""

  objective: str = _setting('dpo(beta=0.1)', 'Expression of objectives.')
  workdir: str = _setting('runs/quickstart', 'Output folder.')
  model: str = _setting('', 'Folder of another model to align, in Hugging Face layout. Empty: SmolLM2-135M-Instruct.')
  seed: int = _setting(0, 'Seed of samples and batches.')
  train_prompts: int = _setting(96, 'Number of prompts from which preference pairs are made.')
  held_out_prompts: int = _setting(64, 'Number of prompts on which the model is evaluated.')
  group: int = _setting(32, 'Number of prompts that are answered together.')
  samples: int = _setting(4, 'Number of responses to a prompt that are sampled together.')
  draws: int = _setting(2, 'Number of times that each training prompt is sampled.')
  max_new_tokens: int = _setting(32, 'Longest response, in tokens.')
  pairs_per_prompt: int = _setting(2, 'Most preference pairs per prompt.')
  batch_size: int = _setting(8, 'Pairs per update.')
  optimizer: str = _setting('adamw(2e-5)', 'Expression of the optimizer.')
  gradient_clip: float = _setting(1.0, 'Largest global norm of a gradient.')
  evaluations: int = _setting(3, 'Number of evaluations during training, the final one included.')
  compute_dtype: str = _setting('auto', 'float32, bfloat16, or auto: the faster of the two on this machine.')


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines one flag for each setting."""
  define = {str: flags.DEFINE_string, int: flags.DEFINE_integer, float: flags.DEFINE_float}
  for field in dataclasses.fields(Settings):
    define[field.type](field.name, field.default, field.metadata['text'], flag_values=values)


def from_flags(values: flags.FlagValues = flags.FLAGS) -> Settings:
  """Returns the settings that the flags give."""
  return Settings(**{field.name: values[field.name].value for field in dataclasses.fields(Settings)})
