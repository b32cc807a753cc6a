"""alpha-DPO and the baselines of its tables, in its four settings (2410.10148).

  alignjax train --config=experiments/configs/alpha_dpo.py:llama3 --workdir=runs/alpha_dpo
  alignjax train --config=experiments/configs/alpha_dpo.py:llama3,method=simpo --workdir=runs/simpo
The data recipe, for other models: five responses at temperature 0.8, scored by a reward model, best against worst:
  alignjax label --model=... --prompts=ultrafeedback_prompts.jsonl --reward='reward_model("...")' --samples=5 \
      --temperature=0.8 --pairing=best_worst --out=pairs.jsonl

Sources (released configuration files): the table below for beta, gamma / beta, alpha and the rate; one epoch, batches
of 128, AdamW, cosine, 10 % of warm-up, 1800 + 248 tokens of 2048, log-probabilities averaged over tokens, seed 42. The
baselines have the values that SimPO's release tuned where they are known (beta 0.01 and rates 3e-7 to 7e-7 for DPO),
and a value from the middle of its search grid where they are not.

Forms. `alpha_dpo` is the paper's equation with statistics of the batch; `method=alpha_dpo_released` is the code: moving
averages over microbatches of 8 pairs, without correction of their start. The alpha of the code is alpha beta of the
paper, so the first has gamma = (gamma / beta) beta and alpha = (alpha of the code) x beta.

Published (re-reported by a later release; AlpacaEval 2 LC | win rate | Arena-Hard):
  Mistral   SimPO 32.1 | 34.8 | 21.0   alpha-DPO 32.3 | 32.6 | 21.7
  Llama 3   SimPO 44.7 | 40.5 | 33.8   alpha-DPO 46.6 | 38.1 | 33.3
  Gemma 2   SimPO 72.4 | 65.0 | 57.8   alpha-DPO 73.4 | 66.1 | 60.8
The abstract's best: 58.7 LC and 35.7 on Arena-Hard. Hardware there: 4 H100 or 8 A100.

Miniature: python -m experiments.toy.adaptive_margin
"""

from typing import NamedTuple

import ml_collections

from alignjax.run import variants


class Setting(NamedTuple):
  model: str
  data: str
  beta: float
  ratio: float  # gamma / beta
  alpha: float  # of the released code
  rate: float
  simpo: tuple[float, float, float]  # beta, gamma / beta and rate of SimPO's release


SETTINGS = {
  'llama3': Setting(
    'meta-llama/Meta-Llama-3-8B-Instruct',
    'princeton-nlp/llama3-ultrafeedback',
    2.5, 0.6, 0.2, 1e-6, (2.5, 0.55, 1e-6),
  ),
  'llama3_v2': Setting(
    'meta-llama/Meta-Llama-3-8B-Instruct',
    'princeton-nlp/llama3-ultrafeedback-armorm',
    10.0, 0.4, 0.2, 1e-6, (10.0, 0.3, 1e-6),
  ),
  'mistral': Setting(
    'mistralai/Mistral-7B-Instruct-v0.2',
    'princeton-nlp/mistral-instruct-ultrafeedback',
    2.5, 0.15, 0.05, 6e-7, (2.5, 0.1, 5e-7),
  ),
  'gemma2': Setting(
    'google/gemma-2-9b-it',
    'princeton-nlp/gemma2-ultrafeedback-armorm',
    10.0, 0.4, 0.05, 8e-7, (10.0, 0.5, 8e-7),
  ),
}  # fmt: skip

BASELINES = {  # objective and rate
  'dpo': ('dpo(beta=0.01)', 5e-7),
  'ipo': ('ipo(tau=0.1)', 5e-7),
  'cpo': ('cpo(beta=0.05, weight=1.0)', 5e-7),
  'kto': ('kto(beta=0.05)', 5e-7),
  'orpo': ('orpo(weight=0.5)', 5e-7),
  'r_dpo': ('r_dpo(beta=0.05, alpha=0.1)', 5e-7),
  'rrhf': ('rrhf(weight=0.5)', 5e-7),
  'slic_hf': ('slic_hf(margin=1.0, weight=0.5)', 5e-7),
}


def _variant(setting: Setting):
  def build(
    method='alpha_dpo', beta=setting.beta, ratio=setting.ratio, alpha=setting.alpha, rate=setting.rate
  ):  # numbers of alpha-DPO; the baselines have their own
    if method == 'alpha_dpo':
      objective = f'alpha_dpo(beta={beta}, gamma={ratio * beta:.6g}, alpha={alpha * beta:.6g})'
    elif method == 'alpha_dpo_released':
      objective = f'alpha_dpo_released(beta={beta}, gamma_beta_ratio={ratio}, alpha={alpha}, statistics_rows=8)'
    elif method == 'simpo':
      simpo_beta, simpo_ratio, rate = setting.simpo
      objective = f'simpo(beta={simpo_beta}, gamma={simpo_ratio * simpo_beta:.6g})'
    elif method in BASELINES:
      objective, rate = BASELINES[method]
    else:
      known = ('alpha_dpo', 'alpha_dpo_released', 'simpo', *BASELINES)
      raise ValueError(f'unknown method {method!r}: must be one of {", ".join(known)}')
    return {
      'model': setting.model,
      'data': (f'binarised:{setting.data}',),
      'objective': objective,
      'optimizer': f'adamw({rate})',
    }

  return build


VARIANTS = {name: _variant(setting) for name, setting in SETTINGS.items()}


def get_config(argument: str = 'llama3') -> ml_collections.ConfigDict:
  return variants.config_dict(
    argument,
    VARIANTS,
    unknown_columns='note',
    schedule='cosine',
    warmup=0.1,
    batch_size=128,
    epochs=1,
    max_prompt=1800,
    max_response=248,
    long_responses='cut',
    compute_dtype='bfloat16',
    seed=42,
  )
