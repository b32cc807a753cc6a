"""The settings of the quickstarts: one command-line flag for each."""

import dataclasses

from alignjax.run import arithmetic, fields, user_code


@dataclasses.dataclass(frozen=True)
class Shared(user_code.UserCode):
  """The settings of both quickstarts."""

  objective: str = fields.field('dpo(beta=0.1)', 'Expression of objectives.')
  workdir: str = fields.field('runs/quickstart', 'Output folder.')
  model: str = fields.field(
    '', 'Folder of another model to align, in Hugging Face layout. Empty: SmolLM2-135M-Instruct.'
  )
  seed: int = fields.field(0, 'Seed of samples and batches.')
  train_prompts: int = fields.field(96, 'Number of prompts to train on.')
  held_out_prompts: int = fields.field(64, 'Number of prompts on which the model is evaluated.')
  group: int = fields.field(32, 'Number of prompts that are answered together.')
  samples: int = fields.field(4, 'Number of responses to a prompt that are sampled together.')
  max_new_tokens: int = fields.field(32, 'Longest response, in tokens.')
  optimizer: str = fields.field('adamw(2e-5)', 'Expression of the optimizer.')
  gradient_clip: float = fields.field(1.0, 'Largest global norm of a gradient.')
  compute_dtype: str = fields.field(
    arithmetic.AUTO, 'Type of activations. auto: the faster of the two on this machine.', choices=arithmetic.CHOICES
  )


@dataclasses.dataclass(frozen=True)
class Settings(Shared):
  """Quickstart."""

  draws: int = fields.field(2, 'Number of times that each training prompt is sampled.')
  pairs_per_prompt: int = fields.field(2, 'Most preference pairs per prompt.')
  batch_size: int = fields.field(8, 'Pairs per update.')
  evaluations: int = fields.field(3, 'Number of evaluations during training, the final one included.')


@dataclasses.dataclass(frozen=True)
class OnlineSettings(Shared):
  """On-policy quickstart."""

  objective: str = fields.field('rlhf(beta=0.05)', 'Expression of objectives.')
  workdir: str = fields.field('runs/quickstart_online', 'Output folder.')
  optimizer: str = fields.field('adamw(5e-4)', 'Expression of the optimizer.')
  max_new_tokens: int = fields.field(24, 'Longest response, in tokens.')
  held_out_prompts: int = fields.field(48, 'Number of prompts on which the model is evaluated.')
  group: int = fields.field(24, 'Number of prompts that are answered together in an evaluation.')
  # Sampling merges the adapter into kernels of this type, so bfloat16 would round what the adapter adds.
  compute_dtype: str = fields.field(
    'float32',
    'Type of activations. auto: the faster of the two on this machine. Adapters need float32.',
    choices=arithmetic.CHOICES,
  )
  adapter: str = fields.field(
    'lora(rank=16, alpha=32)', 'Expression of the adapter to train. Empty: train the whole model.'
  )
  pairing: str = fields.field('all', 'Responses of a row, as for `alignjax train`.')
  rounds: int = fields.field(16, 'Number of rounds: responses are drawn, scored and trained on once.')
  prompts_per_round: int = fields.field(12, 'Number of prompts per round.')
