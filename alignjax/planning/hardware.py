"""Accelerators and machines: what a device has, as its vendor states it, and how many there are."""

import dataclasses
import difflib
import math
import re

GIB = 2**30
GB = 1e9


@dataclasses.dataclass(frozen=True)
class Chip:
  """An accelerator.

  Attributes:
    name: the name in `--topology` and `--devices`.
    devices: JAX devices per chip.
    memory: bytes of device memory per chip that a program can use.
    peak: bfloat16 FLOP/s per chip, without sparsity.
    memory_bandwidth: bytes/s between chip and device memory.
    inside: bytes/s between a chip and the others of its slice or node, both directions together.
    outside: bytes/s between a chip and other slices or nodes, one direction; None: not stated per chip.
    host: chips per host.
    dimensions: dimensions of a slice; 0 for chips without topology.
    pod: chips of the largest slice; 0 for chips without topology.
    source: where the numbers are stated; for GPUs, the vendor's published peak numbers without verification.
    date: when they were read there; '' if they were not.
  """

  name: str
  devices: int
  memory: float
  peak: float
  memory_bandwidth: float
  inside: float
  outside: float | None
  host: int
  dimensions: int
  pod: int
  source: str
  date: str

  @property
  def device_memory(self) -> float:
    """Bytes of memory that a program can use on a JAX device."""
    return self.memory / self.devices


# The memory of TPUs is the limit of libtpu 0.0.50's compiler, in its error E1000 for a program that is too large. That
# of GPUs is the vendor's, times the share of it that launch/env.sh gives to JAX (XLA_PYTHON_CLIENT_MEM_FRACTION).
_GPU_SHARE = 0.9
_TPU_PAGES = 'https://docs.cloud.google.com/tpu/docs/'
_GPU_PAGES = 'https://www.nvidia.com/en-us/data-center/'


def _tpu(name: str, numbers: tuple[float, ...], shape: tuple[int, int, int, int], page: str) -> Chip:
  memory, peak, bandwidth, inside, outside = numbers
  devices, host, dimensions, pod = shape
  return Chip(
    name,
    devices,
    memory * GIB,
    peak * 1e12,
    bandwidth * GB,
    inside * GB,
    outside * GB or None,
    host,
    dimensions,
    pod,
    _TPU_PAGES + page,
    '2026-11-30',
  )


def _gpu(name: str, memory: float, peak: float, bandwidth: float, inside: float, page: str) -> Chip:
  usable = memory * GB * _GPU_SHARE
  # 400 Gbit/s for each GPU, as in NVIDIA's own DGX nodes; 200 Gbit/s in those of the A100.
  outside = (25 if name.startswith('a100') else 50) * GB
  source = f"{_GPU_PAGES}{page}: the vendor's published peak numbers, not verified"
  return Chip(name, 1, usable, peak * 1e12, bandwidth * GB, inside * GB, outside, 8, 0, 0, source, '')


CHIPS = {
  chip.name: chip
  for chip in (
    # name, (memory GiB, peak TFLOP/s, memory GB/s, inside GB/s, outside GB/s), (devices, host, dimensions, pod), page
    _tpu('v4', (30.5, 275, 1200, 600, 0), (1, 4, 3, 4096), 'v4'),
    _tpu('v5e', (15.75, 197, 819, 400, 3.1), (1, 4, 2, 256), 'v5e'),
    _tpu('v5p', (95.73, 459, 2765, 1200, 6.2), (1, 4, 3, 6144), 'v5p'),
    _tpu('v6e', (31.24, 918, 1638, 800, 12.5), (1, 4, 2, 256), 'v6e'),
    _tpu('tpu7x', (2 * 94.74, 2307, 7380, 1200, 12.5), (2, 4, 3, 9216), 'tpu7x'),
    _gpu('a100-40', 40, 312, 1555, 600, 'a100'),
    _gpu('a100-80', 80, 312, 2039, 600, 'a100'),
    _gpu('h100', 80, 989, 3350, 900, 'h100'),
    _gpu('h200', 141, 989, 4800, 900, 'h200'),
    _gpu('b200', 180, 2250, 8000, 1800, 'dgx-b200'),
  )
}


@dataclasses.dataclass(frozen=True)
class Machine:
  """The accelerators of a run.

  Attributes:
    chip: the kind of accelerator.
    chips: their number, over all slices.
    slices: TPU slices, joined by a slower network.
    topology: the shape of one slice, such as '4x4'; '' if it is unknown or the chips have none.
  """

  chip: Chip
  chips: int
  slices: int = 1
  topology: str = ''

  @property
  def devices(self) -> int:
    """The number of JAX devices."""
    return self.chips * self.chip.devices

  def __str__(self) -> str:
    if not self.topology:
      return f'{self.chips} x {self.chip.name}'
    slices = f'{self.slices} slices of ' if self.slices > 1 else ''
    return f'{slices}{self.chip.name}:{self.topology}, {self.chips} chips'

  @property
  def flag(self) -> str:
    """The machine as `parse` reads it."""
    if not self.topology:
      return f'{self.chip.name}:{self.chips}'
    return f'{self.chip.name}:{self.topology}' + (f',slices={self.slices}' if self.slices > 1 else '')


def chip(name: str) -> Chip:
  """The chip with this name.

  Raises:
    ValueError: the name is unknown; the message lists the known names.
  """
  if name not in CHIPS:
    close = difflib.get_close_matches(name, CHIPS, n=1)
    hint = f'; did you mean {close[0]}?' if close else '.'
    raise ValueError(f'the chip {name!r} is unknown{hint} The planner knows {", ".join(CHIPS)}')
  return CHIPS[name]


# What JAX calls a device. Those of TPUs are as libtpu 0.0.50 describes them; the others are parts of names.
_DEVICE_KINDS = {
  'TPU v4': 'v4',
  'TPU v5 lite': 'v5e',
  'TPU v5': 'v5p',
  'TPU v6 lite': 'v6e',
  'TPU7x': 'tpu7x',
}
_GPU_NAMES = {'H100': 'h100', 'H200': 'h200', 'B200': 'b200', 'A100-SXM4-80GB': 'a100-80', 'A100-SXM4-40GB': 'a100-40'}


def of_device(kind: str) -> Chip | None:
  """The chip of a JAX device; None if it is not in the table.

  Args:
    kind: the `device_kind` of the device, such as 'TPU v5 lite' or 'NVIDIA H100 80GB HBM3'.
  """
  name = _DEVICE_KINDS.get(kind) or next((name for part, name in _GPU_NAMES.items() if part in kind.split()), '')
  return CHIPS.get(name)


_FORM = re.compile(r'([\w-]+):(\d+(?:x\d+)*)(?:,slices=(\d+))?')


def parse(text: str) -> Machine:
  """Reads a machine: v5e:4x4, v5p:4x4x8,slices=2 (a TPU topology), h100:8 or h100:4x8 (numbers that are multiplied).

  Raises:
    ValueError: the text has another form, the chip is unknown, or a slice does not have this shape.
  """
  match = _FORM.fullmatch(text)
  if match is None:
    raise ValueError(f'{text!r} is not a machine: write it as v5e:4x4, v5e:4x4,slices=2 or h100:8')
  name, shape, slices = match.groups()
  found = chip(name)
  sizes = [int(size) for size in shape.split('x')]
  count, slices = math.prod(sizes), int(slices or 1)
  if not count or not slices:
    raise ValueError(f'{text!r}: every number must be at least 1')
  if len(sizes) == 1 or not found.dimensions:
    return Machine(found, count * slices, slices)
  if len(sizes) != found.dimensions:
    example = 'x'.join(['4'] * found.dimensions)
    raise ValueError(f'{text!r}: a slice of {name} has {found.dimensions} dimensions, such as {name}:{example}')
  if count > found.pod:
    raise ValueError(f'{text!r}: a slice of {name} has at most {found.pod:,} chips, and this one has {count:,}')
  return Machine(found, count * slices, slices, shape)


_PLANES = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBES = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8', '8x8x16', '8x16x16', '16x16x16')


def sizes(kind: Chip) -> list[Machine]:
  """The machines of one chip kind that a search tries, the smallest first: slices, or GPUs up to 128 nodes."""
  if kind.dimensions:
    shapes = _PLANES if kind.dimensions == 2 else _CUBES
    return [parse(f'{kind.name}:{shape}') for shape in shapes]
  return [Machine(kind, count) for count in (2**power for power in range(11))]
