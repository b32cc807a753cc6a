"""Importance-sampled direct alignment on TL;DR summaries, with the baselines that it is compared with (2506.08681).

Pipeline, one command per stage (the pairs are relabelled by the gold model, as in the controlled setting):
  alignjax train --config=experiments/configs/is_daa_tldr.py:sft --model=meta-llama/Llama-3.2-3B --data=tldr_sft.jsonl \
      --workdir=runs/sft
  alignjax train --config=experiments/configs/is_daa_tldr.py:rm --model=meta-llama/Llama-3.1-8B \
      --data=tldr:openai/summarize_from_feedback --workdir=runs/gold
  alignjax label --model=runs/sft/model --prompts=tldr_prompts.jsonl --reward='reward_model("runs/gold/model")' \
      --samples=2 --pairing=two --temperature=0.9 --max_new_tokens=128 --behaviour_logp --out=pairs.jsonl
  alignjax train --config=experiments/configs/is_daa_tldr.py:is_dpo,beta=0.01 --model=runs/sft/model \
      --data=pairs.jsonl --workdir=runs/is_dpo
  alignjax evaluate --models=runs/is_dpo/checkpoints --reference=runs/sft/model --prompts=test_prompts.jsonl \
      --reward='reward_model("runs/gold/model")' --temperature=0.7 --top_p=0.95 --out=runs/eval

Sources. Released code: AdamW with epsilon 1e-5 and no weight decay, rate 1e-6, cosine to a tenth, one epoch, batches of
128 (64 for RPO and R-DPO), 512 + 128 tokens, warm-up of 50 updates for importance weights, 150 for DPO and R-DPO, 100
for RPO; eta = 0.005 of RPO and alpha = 0.01 of R-DPO; clip 0.25 in the configuration, 1.0 in the launch script. The
abstract: beta in {0.01, 0.05, 0.1}, and online DPO with beta from 0.05 to 0.1. The reward model: rate 1e-6, batches of
32, head N(0, 1 / (D + 1)). The SFT stage is that of the released UltraChat recipe (rate 1e-5, warm-up 150, batch 128).

Differences. IPO here has the margin 1 / (2 tau), as in the released code. RPO adds beta eta times the *summed*
log-probability, as released. The values of SLiC and chi-PO are not published; they share those of DPO. Seeds 1 to 3.

Published results: claims only (importance weights reduce over-optimisation, most at small beta). The tables were not
available to us, so no number is quoted.

Miniature: python -m experiments.toy.over_optimisation
"""

import ml_collections

from alignjax.run import variants


def _direct(objective: str, warmup: int = 150, batch_size: int = 128) -> dict:
  return {'objective': objective, 'warmup': warmup, 'batch_size': batch_size}


def _weighted(objective: str, clip: float) -> dict:
  return _direct(f'importance_weighted({objective}, clip={clip})', warmup=50)


def rpo(beta=0.05, eta=0.005):
  return _direct(f'dpo(beta={beta}) + {beta * eta:.6g} * sft(mean=False)', warmup=100, batch_size=64)


def online_dpo(beta=0.05):
  """Needs --prompts and --reward='reward_model("runs/gold/model") - missing_end(1.0)' in place of --data."""
  return _direct(f'dpo(beta={beta})') | {
    'samples': 2,
    'pairing': 'best_worst',
    'temperature': 0.9,
    'max_new_tokens': 128,
    'prompts_per_round': 128,
  }


VARIANTS = {
  'sft': lambda: {'objective': 'sft()', 'optimizer': 'adamw(1e-5, epsilon=1e-5)', 'warmup': 150},
  'rm': lambda: {'objective': 'bradley_terry()', 'batch_size': 32},
  'dpo': lambda beta=0.05: _direct(f'dpo(beta={beta})'),
  'ipo': lambda beta=0.05: _direct(f'ipo(tau={beta})'),
  'slic': lambda beta=0.05: _direct(f'hinge(beta={beta})'),
  'rpo': rpo,
  'chi_po': lambda beta=0.05: _direct(f'chi_po(beta={beta})'),
  'r_dpo': lambda beta=0.05, alpha=0.01: _direct(f'r_dpo(beta={beta}, alpha={alpha})', batch_size=64),
  'is_dpo': lambda beta=0.05, clip=1.0: _weighted(f'dpo(beta={beta})', clip),
  'is_ipo': lambda beta=0.05, clip=1.0: _weighted(f'ipo(tau={beta})', clip),
  'is_slic': lambda beta=0.05, clip=1.0: _weighted(f'hinge(beta={beta})', clip),
  'online_dpo': online_dpo,
}


def get_config(argument: str = 'is_dpo') -> ml_collections.ConfigDict:
  return variants.config_dict(
    argument,
    VARIANTS,
    optimizer='adamw(1e-6, epsilon=1e-5)',
    schedule='cosine(to=0.1)',
    batch_size=128,
    epochs=1,
    max_prompt=512,
    max_response=128,
    compute_dtype='bfloat16',
    save_every=150,  # 19,200 examples, as the released evaluation
    keep=1000,
    seed=1,
  )
