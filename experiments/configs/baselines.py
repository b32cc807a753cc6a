"""Plain baselines on UltraFeedback's binarised pairs, with the values that are usual for each method.

  alignjax train --config=experiments/configs/baselines.py:dpo --model=path/to/sft/model --workdir=runs/dpo
  alignjax train --config=experiments/configs/baselines.py:simpo,beta=10,rate=1e-6 --model=... --workdir=runs/simpo

Sources. One epoch, batches of 128, cosine, 10 % of warm-up, 2048 tokens and a rate of 5e-7: the common protocol of
SimPO's release (2405.14734). The values of DPO, IPO, CPO, KTO, ORPO, R-DPO and SimPO are from its search grids, the
others are the defaults of docs/objectives.md. Each is a place to start a search and not a tuned value, so a comparison
needs an equal search for every method.

Published results: those of each method's paper, on other data and models.
"""

import ml_collections

from alignjax.run import variants


def _with_beta(name: str, beta: float, rate: float = 5e-7):
  def build(beta=beta, rate=rate):
    return {'objective': f'{name}(beta={beta})', 'optimizer': f'adamw({rate})'}

  return build


def simpo(beta=2.0, gamma=1.0, rate=5e-7):
  return {'objective': f'simpo(beta={beta}, gamma={gamma})', 'optimizer': f'adamw({rate})'}


def orpo(weight=0.1, rate=5e-7):
  return {'objective': f'orpo(weight={weight})', 'optimizer': f'adamw({rate})'}


def r_dpo(beta=0.05, alpha=0.1, rate=5e-7):
  return {'objective': f'r_dpo(beta={beta}, alpha={alpha})', 'optimizer': f'adamw({rate})'}


VARIANTS = {
  'sft': lambda rate=2e-5: {'objective': 'sft()', 'optimizer': f'adamw({rate})'},
  'dpo': _with_beta('dpo', 0.01),
  'ipo': lambda tau=0.1, rate=5e-7: {'objective': f'ipo(tau={tau})', 'optimizer': f'adamw({rate})'},
  'hinge': _with_beta('hinge', 0.05),
  'cpo': _with_beta('cpo', 0.05),
  'kto': _with_beta('kto', 0.1),
  'bco': _with_beta('bco', 0.1),
  'orpo': orpo,
  'simpo': simpo,
  'r_dpo': r_dpo,
  'exo': _with_beta('exo', 0.1),
  'nca': _with_beta('nca', 0.01),
  'sppo': _with_beta('sppo', 0.001),
  'chi_po': _with_beta('chi_po', 0.1),
  'tdpo': _with_beta('tdpo', 0.1),
  'dpo_norm': _with_beta('dpo_norm', 5.0),
}


def get_config(argument: str = 'dpo') -> ml_collections.ConfigDict:
  return variants.config_dict(
    argument,
    VARIANTS,
    data=('binarised:HuggingFaceH4/ultrafeedback_binarized:train_prefs',),
    eval_data=('binarised:HuggingFaceH4/ultrafeedback_binarized:test_prefs',),
    unknown_columns='note',
    schedule='cosine',
    warmup=0.1,
    batch_size=128,
    epochs=1,
    max_prompt=1024,
    max_response=1024,
    compute_dtype='bfloat16',
  )
