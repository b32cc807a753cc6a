"""Risk-aware DPO on Anthropic's HH dialogues, with the baselines of its figures (2505.20359).

  alignjax train --config=experiments/configs/ra_dpo_hh.py:sft --model=EleutherAI/pythia-2.8b --workdir=runs/sft
  alignjax train --config=experiments/configs/ra_dpo_hh.py:ra2,alpha=0.7 --model=runs/sft/model --workdir=runs/ra2
  alignjax train --config='experiments/configs/ra_dpo_hh.py:ra2,risk=entropic(5.0)' --model=runs/sft/model \
      --workdir=runs/ra2_entropic

Sources. The paper: Pythia 1.4B and 2.8B fine-tuned on HH, the CVaR level mu in {0.99, 0.98, 0.97, 0.95}, alpha in
{0.3, 0.5, 0.7, 0.9}; v2 adds the entropic measure with {5, 7, 9}; beta 0.1; plots of the sequential KL of both
responses and of the accuracy. The released code: AdamW, rate 5e-6, 150 updates of warm-up, 16 pairs per
update (4 times 4),
256 + 256 tokens, one epoch, clipping at 5, evaluation every 1,000 examples on 256 pairs, seed 1.

Forms. `ra1` and `ra2` are the equations with the risk measure of the paper; `released` is the code, whose risk depends
on the order of the vocabulary and is no CVaR. `nested` is the recursion over tokens with a share below 1 of later risk.
Differences: the cosine here ends with the training, where the code's covers the number of pairs and so falls by 15 %
only; `schedule=constant` is nearer to it. Offline PPO with a value head is left out.

Published results: figures only; no per-method number of the final version was available to us.

Miniatures: python -m experiments.toy.token_risk, and experiments.toy.nested_risk for risk in the reward
"""

import ml_collections

from alignjax.run import variants

VARIANTS = {
  'sft': lambda: {'objective': 'sft()'},
  'ra1': lambda risk='cvar(0.97)', beta=0.1: {'objective': f'ra_dpo(risk={risk}, beta={beta}, variant=1)'},
  'ra2': lambda risk='cvar(0.97)', beta=0.1, alpha=0.5: {
    'objective': f'ra_dpo(risk={risk}, beta={beta}, alpha={alpha}, variant=2)'
  },
  'nested': lambda risk='cvar(0.97)', beta=0.1, alpha=0.5, off_path=0.9: {
    'objective': f'ra_dpo(risk={risk}, beta={beta}, alpha={alpha}, off_path={off_path})'
  },
  'released': lambda confidence=0.97, beta=0.1, alpha=0.5, variant=2: {
    'objective': f'ra_dpo_released(confidence={confidence}, beta={beta}, alpha={alpha}, variant={variant})'
  },
  'tdpo1': lambda beta=0.1: {'objective': f'tdpo(beta={beta}, variant=1)'},
  'tdpo2': lambda beta=0.1, alpha=0.5: {'objective': f'tdpo(beta={beta}, alpha={alpha}, variant=2)'},
  'dpo': lambda beta=0.1: {'objective': f'dpo(beta={beta})'},
  'kto': lambda beta=0.1: {'objective': f'kto(beta={beta})'},
}


def get_config(argument: str = 'ra2') -> ml_collections.ConfigDict:
  return variants.config_dict(
    argument,
    VARIANTS,
    data=('hh:Anthropic/hh-rlhf/helpful-base', 'hh:Anthropic/hh-rlhf/harmless-base'),
    eval_data=('hh:Anthropic/hh-rlhf/helpful-base:test[:256]',),
    optimizer='adamw(5e-6, weight_decay=0.01)',
    schedule='cosine',
    warmup=150,
    gradient_clip=5.0,
    batch_size=16,
    microbatches=4,
    epochs=1,
    eval_every=63,  # 1,000 examples
    max_prompt=256,
    max_response=256,
    compute_dtype='bfloat16',
    seed=1,
  )
