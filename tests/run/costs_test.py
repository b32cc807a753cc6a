"""What a run costs."""

import numpy as np

from alignjax.run import costs
from alignjax.training import instrumentation


def test_stages_within_stages_are_counted_once(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(costs.time, 'monotonic', lambda: now[0])

  def work(seconds: float) -> None:
    now[0] += seconds

  clock = costs.Clock()
  work(1)
  with clock('outer'):
    work(2)
    for _ in range(3):
      with clock('inner'):
        work(4)
    work(8)
  with clock('inner'):
    work(16)
  assert clock.seconds() == {'inner': 28, 'outer': 10, 'total': 39}


def test_peak_memory_is_in_gibibytes():
  held = np.ones(2**25)  # 1/4 GiB
  assert held.sum() > 0
  assert 0.25 < instrumentation.peak_memory_gib() < 64
