"""Model FLOPs utilisation of a run."""

import dataclasses
import types

import pytest

from alignjax.planning import compute, hardware, program, utilisation
from alignjax.run import preparation
from tests import runs


@pytest.mark.parametrize(
  ('kind', 'name'),
  [
    ('TPU v5 lite', 'v5e'),
    ('TPU v5', 'v5p'),
    ('NVIDIA H100 80GB HBM3', 'h100'),
    ('NVIDIA H200', 'h200'),
    ('NVIDIA A100-SXM4-80GB', 'a100-80'),
    ('NVIDIA GH200 480GB', None),
    ('cpu', None),
  ],
)
def test_devices_are_known_by_their_kind(kind, name):
  found = hardware.of_device(kind)
  assert (found and found.name) == name


def test_a_run_reports_the_share_of_the_peak_that_it_reaches(tiny_run, tmp_path, monkeypatch):
  chip = dataclasses.replace(hardware.chip('tpu7x'), peak=1e9)  # two devices a chip
  monkeypatch.setattr(hardware, 'of_device', lambda kind: chip)
  config = runs.make_config(tiny_run, tmp_path / 'run', eval_data=())
  prepared = preparation.prepare(config, lambda text: None)
  expected = compute.of_step(program.build(config, prepared.mesh, 2)).useful / 4e9  # 8 devices are 4 chips
  batch = next(iter(prepared.training.batches)).data
  assert utilisation.of_run(config, prepared)(batch, 2.0) == {'time/mfu': pytest.approx(expected / 2, rel=1e-6)}


def test_nothing_is_reported_on_devices_that_are_not_known(tiny_run, tmp_path):
  config = runs.make_config(tiny_run, tmp_path / 'run')
  prepared = preparation.prepare(config, lambda text: None)
  assert utilisation.of_run(config, prepared)(types.SimpleNamespace(), 1.0) == {}
