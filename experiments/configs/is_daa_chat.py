"""Importance-sampled direct alignment for chat on Anthropic's HH (2506.08681).

  alignjax train --config=experiments/configs/is_daa_chat.py:sft --model=meta-llama/Llama-3.2-3B \
      --data=conversation:HuggingFaceH4/ultrachat_200k:train_sft --workdir=runs/sft
  alignjax train --config=experiments/configs/is_daa_chat.py:is_dpo,beta=0.01 --model=runs/sft/model \
      --data=hh:Anthropic/hh-rlhf/harmless-base,hh:Anthropic/hh-rlhf/helpful-base --workdir=runs/is_dpo

Sources. Released code: the SFT stage has rate 1e-5, 150 updates of warm-up, batches of 128 and one epoch; the others
are those of is_daa_tldr.py. beta in {0.01, 0.05, 0.1}, seeds 1 to 3.

Differences. The pairs are those of the dataset and not samples of the reference, so the weights are not those of an
on-policy expectation; with pairs from `alignjax label --behaviour_logp` they are. The released code uses the dataset
full-hh-rlhf, which has the same pairs.

Published results: claims only; see is_daa_tldr.py.

Miniature: python -m experiments.toy.over_optimisation
"""

import ml_collections

from alignjax.run import variants


def _direct(objective: str, warmup: int = 150) -> dict:
  return {'objective': objective, 'warmup': warmup}


VARIANTS = {
  'sft': lambda: {'objective': 'sft()', 'optimizer': 'adamw(1e-5, epsilon=1e-5)', 'warmup': 150},
  'dpo': lambda beta=0.05: _direct(f'dpo(beta={beta})'),
  'ipo': lambda beta=0.05: _direct(f'ipo(tau={beta})'),
  'slic': lambda beta=0.05: _direct(f'hinge(beta={beta})'),
  'is_dpo': lambda beta=0.05, clip=1.0: _direct(f'importance_weighted(dpo(beta={beta}), clip={clip})', 50),
  'is_ipo': lambda beta=0.05, clip=1.0: _direct(f'importance_weighted(ipo(tau={beta}), clip={clip})', 50),
  'is_slic': lambda beta=0.05, clip=1.0: _direct(f'importance_weighted(hinge(beta={beta}), clip={clip})', 50),
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
    save_every=150,
    keep=1000,
    seed=1,
  )
