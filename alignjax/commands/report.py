"""Writes one HTML page of runs, evaluations, comparisons and sweeps.

  alignjax report runs/dpo
  alignjax report runs/dpo,runs/simpo,runs/eval --out=report.html
  alignjax report runs/sweep

The page shows the settings, with those that differ first, the objective, the curves, evaluations, samples side by side,
the findings of the doctor, costs and files. It finds evaluations in and beside the folders of runs. It is one file
that needs no network and no JavaScript. Runs may be unfinished: the page reports what is missing.

Exit codes: 0 done, 1 an error in flags or folders.
"""

import dataclasses
import pathlib

from alignjax import files, paths
from alignjax.commands import program
from alignjax.report import page, reading
from alignjax.run import fields

MOST_NOTES = 8  # that are printed


@dataclasses.dataclass(frozen=True)
class Settings:
  """Report."""

  folders: tuple[str, ...] = fields.field(
    (),
    'Folders of runs, evaluations, comparisons and sweeps, also given without --folders.',
    required=True,
    path=paths.DISK,
    positional=True,
  )
  out: str = fields.field('report.html', 'The page.', path=paths.WRITTEN)

  def __post_init__(self):
    fields.check(self)


def run(settings: Settings) -> None:
  """Writes the page.

  Raises:
    ValueError: a folder does not exist, or is none of what a report shows.
  """
  found = reading.read(settings.folders)
  out = pathlib.Path(settings.out)
  out.parent.mkdir(parents=True, exist_ok=True)
  files.replace(out, page.render(found).encode('utf-8', 'backslashreplace'))
  for note in found.notes[:MOST_NOTES]:
    print(note)
  if more := found.notes[MOST_NOTES:]:
    print(f'{len(more)} more notes in the page')
  print(f'wrote {out}')


PROGRAM = program.Program('report', __doc__, Settings, run)
