"""Deletes the files of old rounds, but none that a checkpoint needs."""

import collections
import dataclasses
import pathlib

from alignjax.training import processes, rollout_files, step_folders


@dataclasses.dataclass(frozen=True)
class Keeping:
  """Which rounds stay on disk: the newest, and all from the first one that a checkpoint is within.

  Args:
    newest: number of rounds that stay.
    updates: updates on each round.
    checkpoints: the folder of the checkpoints. A checkpoint within a round is resumed with its file.
  """

  newest: int
  updates: int
  checkpoints: pathlib.Path
  # Rounds of the last checkpoints, of which one may still be written and is not in the folder yet.
  _saving: collections.deque[int] = dataclasses.field(default_factory=lambda: collections.deque(maxlen=2))

  def saving(self, number: int) -> None:
    """Notes that a checkpoint within a round is about to be written."""
    self._saving.append(number)

  def delete(self, folder: pathlib.Path, number: int) -> None:
    """Deletes what is older than the rounds that stay. All processes call it.

    Args:
      folder: the folder of the rounds.
      number: the newest round.
    """

    def delete() -> None:
      within = {step // self.updates for step in step_folders.steps(self.checkpoints) if step % self.updates}
      first = min(number - self.newest + 1, *within, *self._saving, number)
      for old, file in rollout_files.numbered(folder).items():
        if old < first:
          file.unlink()  # first, because a round with this file is complete
          file.with_suffix('.jsonl').unlink(missing_ok=True)

    processes.on_first(delete)
