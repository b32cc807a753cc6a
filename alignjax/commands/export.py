"""Writes the model of a checkpoint, as the run that saved it would: the same files, byte for byte.

  alignjax export --workdir=runs/first
  alignjax export --workdir=runs/first --step=400 --to=at_400

Writes model/, model_average/ if the optimizer keeps an average, and adapter/ if an adapter is trained. It runs on the
CPU of one machine, however many devices the run had, and reads neither the data nor the state of the optimizer. It
holds the weights of all layers that are stored under one name, such as mlp.up_proj, and no others. If an accelerator
has trained an adapter, its merged weights may differ in their last bits.

Exit codes: 0 done, 1 an error in flags or folders, 43 a folder cannot be written.
"""

import dataclasses

import jax

from alignjax import exit_codes, paths
from alignjax.commands import program
from alignjax.run import checkpoint_export, exports, fields


@dataclasses.dataclass(frozen=True)
class Settings:
  """Export."""

  workdir: str = fields.field('', 'Work directory of the run.', required=True, path=paths.RUN)
  to: str = fields.field(
    '', 'Folder in which to write model/ and so on; empty: the work directory.', path=paths.IN_PLACE
  )
  step: int = fields.field(-1, 'Step of the checkpoint; -1: the newest.', at_least=-1)
  model: str = fields.field('', 'Folder of the model that the run started from, if it has been moved.', path=paths.READ)

  def __post_init__(self):
    fields.check(self)


def run(settings: Settings) -> None:
  """Exports from a checkpoint.

  Raises:
    ValueError: the settings, the checkpoint or the model cannot be used, or a run owns the work directory.
    ExportError: a folder cannot be written.
  """
  jax.config.update('jax_platforms', 'cpu')  # an accelerator of a slice would wait for the other hosts
  checkpoint_export.export(
    settings.workdir, settings.to or settings.workdir, None if settings.step < 0 else settings.step, settings.model
  )


CODES = dict.fromkeys((*program.EXPECTED, MemoryError), exit_codes.REFUSED)
PROGRAM = program.Program(
  'export', __doc__, Settings, run, codes=CODES | {exports.ExportError: exit_codes.NOT_EXPORTED}
)
