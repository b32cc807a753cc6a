"""TPU slices that libtpu describes and compiles for, without a TPU.

`make pods` installs libtpu beside the environment, and runs the tests of this folder. Without libtpu they are skipped.
"""

import os

import pytest

pytest.importorskip('libtpu', reason='needs libtpu: make pods')

# Otherwise libtpu looks for a TPU, and for the metadata server of a TPU VM.
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-16')
os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')

from jax.experimental import topologies


def devices(name, slices=1):
  """The devices of `slices` slices, such as 'v5e:4x4'."""
  options = {} if slices == 1 else {'num_slices': slices}
  return topologies.get_topology_desc(platform='tpu', topology_name=name, **options).devices
