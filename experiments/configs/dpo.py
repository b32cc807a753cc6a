"""The usual DPO run: one pass over the data, a small learning rate that rises and then falls.

These are the defaults; a copy of this file is a place to start from.
"""

import ml_collections

from alignjax.run import settings


def get_config() -> ml_collections.ConfigDict:
  return settings.config_dict(
    objective='dpo(beta=0.1)',
    batch_size=32,
    optimizer='adamw(1e-6)',
    schedule='linear',
    warmup=0.1,
  )
