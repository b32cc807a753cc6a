"""Alignment as distribution learning on TL;DR summaries: eight methods (2506.01523 v2, section 5).

  alignjax train --config=experiments/configs/distribution_tldr.py:sft --model=EleutherAI/pythia-2.8b \
      --data=tldr_sft.jsonl --workdir=runs/sft
  alignjax train --config=experiments/configs/distribution_tldr.py:rm --model=runs/sft/model \
      --data=tldr:openai/summarize_from_feedback --workdir=runs/rm
  alignjax train --config=experiments/configs/distribution_tldr.py:pd --model=runs/sft/model \
      --prompts=tldr_prompts.jsonl --reward='reward_model("runs/rm/model")' --workdir=runs/pd
  alignjax train --config=experiments/configs/distribution_tldr.py:pmle --model=runs/sft/model \
      --data=tldr:openai/summarize_from_feedback --prompts=tldr_prompts.jsonl --workdir=runs/pmle
  alignjax evaluate --models=runs/pd/model,runs/pmle/model --reference=runs/sft/model --prompts=test.jsonl \
      --reward='reward_model("runs/rm/model")' --temperature=0.7 --out=runs/eval

Sources (the paper): Pythia 2.8B and 6.9B, LoRA of rank 1024 and alpha 2048, 512 tokens of context, 53 new tokens. SFT
and reward model: batches of 64, rate 3e-6, cosine, one epoch. DPO: 64, 3e-6, linear, beta 0.05. PMLE: 512, 1e-6,
linear, beta 1e-5, gamma 1e-2. REBEL and PD: batches of 512 episodes, 3e-6, 1e6 episodes, 4 inner epochs, KL 0.05; eta 1
and gamma 0.1. RLHF and RKL: the same budget, KL 0.05, entropy 0.01. Temperature 0.1 for DPO and PMLE, 0.7 elsewhere.
Three seeds.

Differences. RLHF and RKL use the leave-one-out policy gradient (RLOO), where the paper uses PPO with a critic; they
draw at temperature 1, because the gradient is that of the distribution that is sampled. The paper does not state
whether REBEL and PD add the KL to the loss or the reward. Here it is part of the reward, as in the REBEL code base.
A batch of 512 episodes is 256 prompts with two responses each, for RLHF and RKL 128 prompts with four.

Published (v2, 2.8B, mean of 3 seeds; win rate against the human summary by GPT-4 | reward | KL to the SFT model):
DPO 47.3 | 2.66 | 64.4, PMLE 49.1 | 2.38 | 31.4, REBEL 71.0 | 2.86 | 25.7, PD 73.8 | 2.91 | 28.4, RLHF 72.0 | 2.95 |
24.9, RKL 73.0 | 3.03 | 25.9. Cost there: DPO 3 hours, PMLE 6 hours, the others 2.5 days on four A100 of 40 GB.

Miniature: python -m experiments.toy.frontier
"""

import ml_collections

from alignjax.run import variants

EPISODES = 1_000_000


def _online(objective: str, samples: int, inner_epochs: int = 1, **others) -> dict:
  prompts = 512 // samples
  return {
    'objective': objective,
    'samples': samples,
    'prompts_per_round': prompts,
    'inner_epochs': inner_epochs,
    'max_new_tokens': 53,
    'steps': EPISODES // 512 * inner_epochs,
  } | others


def _pairs(objective: str, kl: float, **others) -> dict:
  return _online(objective, 2, inner_epochs=4, pairing='two', kl_in_score=kl, temperature=0.7, **others)


def pmle(gamma=0.01, beta=1e-5):
  """Needs --data and --prompts: the KL penalty is estimated on samples of the policy."""
  return {
    'objective': f'pmle(gamma={gamma})',
    'rollout_objective': f'kl_penalty(beta={beta})',
    'optimizer': 'adamw(1e-6)',
    'schedule': 'linear',
    'batch_size': 512,
    'prompts_per_round': 512,
    'samples': 1,
    'max_new_tokens': 53,
    'epochs': 1,
  }


VARIANTS = {
  'sft': lambda: {'objective': 'sft()', 'batch_size': 64, 'epochs': 1},
  'rm': lambda: {'objective': 'bradley_terry()', 'batch_size': 64, 'epochs': 1, 'adapter': ''},
  'dpo': lambda beta=0.05: {'objective': f'dpo(beta={beta})', 'schedule': 'linear', 'batch_size': 64, 'epochs': 1},
  'pmle': pmle,
  'rebel': lambda eta=1.0, kl=0.05: _pairs(f'rebel(eta={eta})', kl, ratio_reference='round'),
  'pd': lambda gamma=0.1, kl=0.05: _pairs(f'preference_distillation(gamma={gamma})', kl),
  'rlhf': lambda beta=0.05: _online(f'rlhf(beta={beta})', 4),
  'rkl': lambda gamma=0.01, beta=0.05: _online(f'reverse_kl(gamma={gamma}, beta={beta})', 4),
}


def get_config(argument: str = 'pd') -> ml_collections.ConfigDict:
  return variants.config_dict(
    argument,
    VARIANTS,
    adapter='lora(rank=1024, alpha=2048)',
    optimizer='adamw(3e-6)',
    schedule='cosine',
    max_prompt=459,  # of 512 tokens, 53 are the summary's
    max_response=53,
    compute_dtype='bfloat16',
  )
