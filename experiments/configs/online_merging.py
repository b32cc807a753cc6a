"""Online merging optimizers against the alignment tax: seven ways to train, and both forms of each merge (2405.17931).

  alignjax train --config=experiments/configs/online_merging.py:on_dare --model=Qwen/Qwen1.5-7B-Chat \
      --base_model=Qwen/Qwen1.5-7B --data=ultrafeedback_pair:openbmb/UltraFeedback --workdir=runs/on_dare
  alignjax train --config=experiments/configs/online_merging.py:on_ties_released,reserve=0.01 ... --workdir=runs/on_ties
  alignjax merge --method='dare(0.5)' --base=Qwen/Qwen1.5-7B --models=runs/adamw/model,Qwen/Qwen1.5-7B-Chat \
      --out=runs/dare
The last command is an offline baseline; the others are linear(), ties(...) and dare(...) with other densities.

Sources. The paper: batches of 128, beta 0.1, the reserve share p in [1e-5, 1], alpha in [1e-7, 1e-4] to be searched
from 1e-7, K in {5, 10, 50, 100, 200}, the moving average's rate 1e-3, the KL penalty as beta in [1e-5, 1]; the rate of
AdamW from {1e-7, 5e-7, 1e-6, 5e-6, 1e-5, 5e-5}. The released script: rate 1e-6, p 0.01, alpha 1e-7, cosine, 100 updates
of warm-up, 2 epochs, 2048 tokens.

Forms. `on_dare` and `on_ties` follow the algorithms of the paper: fresh masks, no rescaling, the sign elected after
weighting. The `_released` forms follow the code: one fixed mask of the task vector, division by p, values clipped to
[-1, 1], the sign elected before weighting. They are different algorithms; the rates of one do not suit the other.
Differences: the paper's reference models are fine-tuned for the study and not published; the released chat models
replace them. The chosen (p, alpha), the beta of the KL baseline and the LoRA rank are not published.

Published (Qwen1.5-7B; benchmark average | MT-Bench | AlpacaEval 2 LC):
  reference 57.3 | 6.97 | 10.71   AdamW 58.4 | 7.18 | 11.66   KL 58.5 | 6.95 | 11.74   EMA 58.2 | 6.86 | 12.92
  LoRA 58.6 | 7.04 | 11.33   ChildTuning 58.3 | 7.07 | 11.55   OnTIES 58.9 | 7.10 | 12.57   OnDARE 59.5 | 7.30 | 11.94

Miniature: python -m experiments.toy.alignment_tax
"""

import ml_collections

from alignjax.run import variants


def _after_adam(link: str, rate: float) -> dict:
  return {'optimizer': f'chain(adamw({rate}), {link})'}


def on_dare(rate=1e-6, reserve=0.01, alpha=1e-7, every=1):
  return _after_adam(f'online_dare({reserve}, {alpha}, every={every})', rate)


def on_dare_released(rate=1e-6, reserve=0.01, alpha=1e-7):
  merge = f"online_dare({reserve}, {alpha}, mask='fixed', rescale='inverse', clip=1.0)"
  return _after_adam(merge, rate)


def on_ties(rate=1e-6, reserve=0.01, alpha=1e-7, every=1):
  return _after_adam(f'online_ties({reserve}, {alpha}, every={every})', rate)


def on_ties_released(rate=1e-6, reserve=0.01, alpha=1e-7):
  return _after_adam(f"online_ties({reserve}, {alpha}, elect='raw')", rate)


VARIANTS = {
  'adamw': lambda rate=1e-6: {'optimizer': f'adamw({rate})'},
  'kl': lambda rate=1e-6, beta=0.01: {'optimizer': f'adamw({rate})', 'objective': f'dpo(beta={beta})'},
  'ema': lambda rate=1e-6, history=1e-3: _after_adam(f'moving_average({history})', rate),
  'child_tuning': lambda rate=1e-6, reserve=0.01: {'optimizer': f'chain(child_tuning({reserve}), adamw({rate}))'},
  'lora': lambda rate=1e-5, rank=64: {'optimizer': f'adamw({rate})', 'adapter': f'lora(rank={rank}, alpha={2 * rank})'},
  'on_dare': on_dare,
  'on_ties': on_ties,
  'on_dare_released': on_dare_released,
  'on_ties_released': on_ties_released,
}


def get_config(argument: str = 'on_dare') -> ml_collections.ConfigDict:
  return variants.config_dict(
    argument,
    VARIANTS,
    objective='dpo(beta=0.1)',
    schedule='cosine',
    warmup=100,
    batch_size=128,
    epochs=2,
    max_prompt=1024,
    max_response=1024,
    compute_dtype='bfloat16',
  )
