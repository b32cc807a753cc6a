"""The position of a source in its data, as an item of a checkpoint: one JSON file per process."""

import dataclasses
import json
from typing import Any
import zlib

import jax
import orbax.checkpoint as ocp


def crc(position: Any) -> int:
  """A checksum of a position."""
  return zlib.crc32(json.dumps(position, sort_keys=True).encode())


def file_of(process: int, count: int) -> str:
  """The name of the file with the position of a process, one of `count`."""
  return f'process_{process}-of-{count}.json'


class _Handler(ocp.CheckpointHandler):
  """Writes one JSON file per process. `Checkpoints` reads them without Orbax."""

  def save(self, directory: Any, args: 'Save') -> None:
    (directory / file_of(jax.process_index(), jax.process_count())).write_text(args.text)

  def restore(self, directory: Any, args: Any = None) -> None:
    raise NotImplementedError('Checkpoints.restore reads these files')


@ocp.args.register_with_handler(_Handler, for_save=True, for_restore=True)
@dataclasses.dataclass
class Save(ocp.args.CheckpointArgs):
  """The position of this process as an item of a checkpoint."""

  text: str
