"""Online merging of tensors with more entries than an int32 counts. No array of this size is made."""

import jax
import pytest

from alignjax import optim
from alignjax.optim import top_fraction
from tests.optim import runs


@pytest.mark.parametrize('merge', [optim.online_dare(0.1, 0.1), optim.online_ties(0.1, 0.1)], ids=['dare', 'ties'])
def test_stacks_of_more_than_2_31_entries_are_merged_layer_by_layer(merge):
  leaf = jax.ShapeDtypeStruct((80, 28672, 8192), 'float32')  # of Llama 70B
  params = {'layers': {'mlp': {'down': {'kernel': leaf}}}}
  state = jax.eval_shape(merge.init, params)
  updates, _ = jax.eval_shape(lambda *args: merge.update(*args, reference_delta=params), params, state, params)
  assert updates['layers']['mlp']['down']['kernel'].shape == leaf.shape


def test_a_layer_of_more_than_2_31_entries_is_refused_by_name():
  params = {'layers': {'up': jax.ShapeDtypeStruct((2, 2**16, 2**15), 'float32')}}
  merge = optim.online_dare(0.1, 0.1)
  state = jax.eval_shape(merge.init, params)
  with pytest.raises(ValueError, match=r'a tensor of layers/up, \(2, 65536, 32768\), has 2147483648 entries'):
    jax.eval_shape(lambda *args: merge.update(*args, reference_delta=params), params, state, params)


def test_metrics_counted_layer_by_layer_are_those_of_the_whole_stack(monkeypatch):
  def metrics():
    tx = optim.online_dare(0.5, 0.25)
    _, state = runs.run(
      tx, runs.only('layers', runs.STREAM), runs.only('layers', runs.PARAMS), runs.only('layers', runs.TAU)
    )
    return {name: float(value) for name, value in optim.merge_metrics(state).items()}

  whole = metrics()
  monkeypatch.setattr(top_fraction, 'COUNTED', 1 + runs.PARAMS['layers']['up']['kernel'][0].size)
  assert metrics() == pytest.approx(whole, rel=1e-6)
