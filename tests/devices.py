"""Stand-ins for devices that this machine lacks, with the attributes that code for meshes reads."""

from collections.abc import Sequence
import dataclasses
import itertools

KINDS = {'v4': 'TPU v4', 'v5e': 'TPU v5 lite', 'v5p': 'TPU v5', 'v6e': 'TPU v6 lite'}
HOST = (2, 2, 1)  # chips of a host along x, y and z


@dataclasses.dataclass(frozen=True)
class Chip:
  """A chip of a TPU slice."""

  id: int
  process_index: int
  coords: tuple[int, int, int]
  slice_index: int
  device_kind: str
  core_on_chip: int = 0
  platform: str = 'tpu'


@dataclasses.dataclass(frozen=True)
class Processor:
  """A device without a place in a torus and without a slice."""

  id: int
  process_index: int
  platform: str = 'cpu'
  device_kind: str = 'processor'


@dataclasses.dataclass(frozen=True)
class Gpu(Processor):
  """A GPU, whose slice is its node."""

  slice_index: int = 0
  platform: str = 'gpu'


def tpu_slices(name: str, slices: int = 1) -> list[Chip]:
  """The devices of one or several slices such as 'v5e:4x8' as `jax.devices()` lists them: host by host.

  The chips of a slice are numbered along x, then y, then z, and so are its hosts of 2 x 2 chips.
  """
  family, _, topology = name.partition(':')
  sizes = [*map(int, topology.split('x')), 1][:3]

  def in_order(bounds: Sequence[int]) -> list[tuple[int, ...]]:
    return [place[::-1] for place in itertools.product(*(range(bound) for bound in bounds[::-1]))]

  chips, hosts = in_order(sizes), in_order([size // edge for size, edge in zip(sizes, HOST, strict=True)])
  devices = [
    Chip(
      id=index * len(chips) + number,
      process_index=index * len(hosts) + hosts.index(tuple(at // edge for at, edge in zip(place, HOST, strict=True))),
      coords=place,
      slice_index=index,
      device_kind=KINDS[family],
    )
    for index in range(slices)
    for number, place in enumerate(chips)
  ]
  return sorted(devices, key=lambda chip: (chip.process_index, chip.id))
