"""Risk-aware DPO for film reviews with positive sentiment, against TDPO (2505.20359).

  alignjax train --config='experiments/configs/ra_dpo_imdb.py:ra1,risk=cvar(0.98)' --model=path/to/gpt2-large-imdb \
      --data=imdb_pairs.jsonl --workdir=runs/ra1
The pairs: continuations of the first words of a review, drawn from the fine-tuned model and labelled by a sentiment
classifier; `--data=tfds:imdb_preferences` builds them, and `alignjax label --reward='vader()'` draws others.

Sources. The paper: GPT-2 large fine-tuned on IMDb, variant 1, the level mu in {0.99, 0.98, 0.97, 0.95}, against TDPO_1.
The rest is that of the released code for HH; see ra_dpo_hh.py.

Published results: figures only.

Miniature: python -m experiments.toy.token_risk
"""

import ml_collections

from alignjax.run import variants

VARIANTS = {
  'ra1': lambda risk='cvar(0.97)', beta=0.1: {'objective': f'ra_dpo(risk={risk}, beta={beta}, variant=1)'},
  'released': lambda confidence=0.97, beta=0.1: {'objective': f'ra_dpo_released(confidence={confidence}, beta={beta})'},
  'tdpo1': lambda beta=0.1: {'objective': f'tdpo(beta={beta}, variant=1)'},
  'dpo': lambda beta=0.1: {'objective': f'dpo(beta={beta})'},
}


def get_config(argument: str = 'ra1') -> ml_collections.ConfigDict:
  return variants.config_dict(
    argument,
    VARIANTS,
    optimizer='adamw(5e-6, weight_decay=0.01)',
    schedule='cosine',
    warmup=150,
    gradient_clip=5.0,
    batch_size=16,
    microbatches=4,
    epochs=1,
    eval_every=63,
    max_prompt=256,
    max_response=256,
    compute_dtype='bfloat16',
    seed=1,
  )
