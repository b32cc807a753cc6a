"""What the configuration of a decoder refuses."""

import dataclasses

import pytest

from tests.models import token_batches

CONFIG = token_batches.CONFIG


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'kv_heads': 3}, 'heads=4 is not a multiple of kv_heads=3'),
    ({'remat': 'some'}, "remat='some' is not one of 'none', 'dots', 'full'"),
    ({'attention': 'flash'}, "attention='flash' is not one of 'xla', 'cudnn'"),
    ({'compute_dtype': 'float16'}, "compute_dtype='float16' is not one of 'float32', 'bfloat16'"),
    ({'attention': 'cudnn'}, "attention='cudnn' needs compute_dtype='bfloat16'"),
    ({'head_width': 5}, 'head_width=5 must be even'),
    ({'layers': 0}, 'layers=0 must be positive'),
    ({'sliding_window': 0}, 'sliding_window=0 must be positive, or None'),
    ({'score_cap': -1.0}, 'score_cap=-1.0 must be positive, or None'),
    ({'activation': 'relu'}, "activation='relu' is not one of 'silu', 'gelu', 'gelu_tanh'"),
    ({'attention': 'cudnn', 'compute_dtype': 'bfloat16', 'score_cap': 1.0}, "'cudnn' does not support score_cap=1.0"),
    ({'rope_theta': -1.0}, 'rope_theta=-1.0 must be positive'),
    ({'norm': 'batch'}, "norm='batch' is not one of 'rms', 'layer'"),
    ({'norm': 'layer', 'zero_centred_norms': True}, "zero_centred_norms=True needs norm='rms'"),
    ({'qk_norm': True, 'joint_qk_norm': True}, 'mutually exclusive'),
    (
      {'rotary_fraction': 0.5},
      r'rotary_fraction=0.5 must be in \(0, 1\] and select an even number of the head_width=6',
    ),
    ({'rotary_fraction': 1.4}, 'rotary_fraction=1.4 must be in'),
    ({'norm_epsilon': float('nan')}, 'norm_epsilon=nan must be positive'),
  ],
)
def test_a_wrong_field_is_named(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CONFIG, **changes)
