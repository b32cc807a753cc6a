"""The settings of the quickstart: one command-line flag for each."""

import dataclasses

from alignjax.run import fields, user_code


@dataclasses.dataclass(frozen=True)
class Settings(user_code.UserCode):
  """Quickstart."""

  objective: str = fields.field('dpo(beta=0.1)', 'Expression of objectives.')
  workdir: str = fields.field('runs/quickstart', 'Output folder.')
  model: str = fields.field(
    '', 'Folder of another model to align, in Hugging Face layout. Empty: SmolLM2-135M-Instruct.'
  )
  seed: int = fields.field(0, 'Seed of samples and batches.')
  train_prompts: int = fields.field(96, 'Number of prompts from which preference pairs are made.')
  held_out_prompts: int = fields.field(64, 'Number of prompts on which the model is evaluated.')
  group: int = fields.field(32, 'Number of prompts that are answered together.')
  samples: int = fields.field(4, 'Number of responses to a prompt that are sampled together.')
  draws: int = fields.field(2, 'Number of times that each training prompt is sampled.')
  max_new_tokens: int = fields.field(32, 'Longest response, in tokens.')
  pairs_per_prompt: int = fields.field(2, 'Most preference pairs per prompt.')
  batch_size: int = fields.field(8, 'Pairs per update.')
  optimizer: str = fields.field('adamw(2e-5)', 'Expression of the optimizer.')
  gradient_clip: float = fields.field(1.0, 'Largest global norm of a gradient.')
  evaluations: int = fields.field(3, 'Number of evaluations during training, the final one included.')
  compute_dtype: str = fields.field('auto', 'float32, bfloat16, or auto: the faster of the two on this machine.')
