"""The folders of checkpoints, one for each step, as Orbax writes them.

On a disk, an unfinished checkpoint has another name, and is renamed when it is complete. In an object store, which has
no rename, it has no commit_success.txt, which is written last.
"""

import pathlib
import shutil

from alignjax import paths
from alignjax.training import processes, views

COMMITTED = 'commit_success.txt'


def steps(folder: pathlib.Path) -> list[int]:
  """The steps with a complete checkpoint in a folder, as this process sees it, the newest last."""
  in_store = bool(paths.scheme(folder))
  found = [path for path in _numbered(folder) if not in_store or (path / COMMITTED).exists()]
  return sorted(int(path.name) for path in found)


def remove_unfinished(folder: pathlib.Path) -> None:
  """Removes what a killed run did not commit. Orbax would do so in a thread that outlives a short run.

  All processes must call it.
  """

  def remove() -> None:
    if paths.scheme(folder):
      for unfinished in [path for path in _numbered(folder) if not (path / COMMITTED).exists()]:
        unfinished.rmtree()
    else:
      for unfinished in folder.glob('*.orbax-checkpoint-tmp*'):
        shutil.rmtree(unfinished)

  processes.on_first(remove)


def agree(folder: pathlib.Path) -> None:
  """Waits until all processes see the same checkpoints, because Orbax lists them on each process.

  All processes must call it.

  Raises:
    ValueError: they do not.
  """
  views.agreed(folder, lambda: [str(step) for step in steps(folder)])


def _numbered(folder: pathlib.Path) -> list[pathlib.Path]:
  return [path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()] if folder.exists() else []
