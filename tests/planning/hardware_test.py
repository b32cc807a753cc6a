"""Names of machines, and the table of chips."""

import math
import re

import pytest

from alignjax.planning import hardware


@pytest.mark.parametrize(
  ('text', 'chips', 'devices', 'slices', 'shown'),
  [
    ('v5e:4x4', 16, 16, 1, 'v5e:4x4, 16 chips'),
    ('v5e:4x4,slices=2', 32, 32, 2, '2 slices of v5e:4x4, 32 chips'),
    ('v5p:2x2x4', 16, 16, 1, 'v5p:2x2x4, 16 chips'),
    ('tpu7x:2x2x1', 4, 8, 1, 'tpu7x:2x2x1, 4 chips'),
    ('h100:8', 8, 8, 1, '8 x h100'),
    ('h200:4x8', 32, 32, 1, '32 x h200'),
    ('v5e:16', 16, 16, 1, '16 x v5e'),
  ],
)
def test_machines_are_read(text, chips, devices, slices, shown):
  machine = hardware.parse(text)
  assert (machine.chips, machine.devices, machine.slices, str(machine)) == (chips, devices, slices, shown)
  assert hardware.parse(machine.flag) == machine


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('v5e', "'v5e' is not a machine: write it as v5e:4x4, v5e:4x4,slices=2 or h100:8"),
    ('v5e:4x', "'v5e:4x' is not a machine"),
    ('v9:4', "the chip 'v9' is unknown"),
    ('h10:8', "the chip 'h10' is unknown; did you mean h100?"),
    ('v5e:4x4x4', "'v5e:4x4x4': a slice of v5e has 2 dimensions, such as v5e:4x4"),
    ('v5p:4x4', "'v5p:4x4': a slice of v5p has 3 dimensions, such as v5p:4x4x4"),
    ('v5e:32x32', "'v5e:32x32': a slice of v5e has at most 256 chips, and this one has 1,024"),
    ('v5e:0x4', "'v5e:0x4': every number must be at least 1"),
  ],
)
def test_other_texts_are_refused(text, message):
  with pytest.raises(ValueError, match=f'^{re.escape(message)}'):
    hardware.parse(text)


@pytest.mark.parametrize('chip', hardware.CHIPS.values(), ids=lambda chip: chip.name)
def test_the_table_is_plausible_and_has_sources(chip):
  assert chip.source.startswith('https://')
  assert bool(re.fullmatch(r'20\d\d-\d\d-\d\d', chip.date)) != chip.source.endswith('not verified')
  assert 4 < chip.device_memory / 2**30 < 256
  assert 100 < chip.peak / chip.memory_bandwidth < 1000  # FLOPs for each byte that moves
  sizes = [machine.chips for machine in hardware.sizes(chip)]
  assert sizes == sorted(sizes)
  assert len(sizes) > 5
  assert all(
    machine.chips == math.prod(map(int, machine.topology.split('x')))
    for machine in hardware.sizes(chip)
    if machine.topology
  )
