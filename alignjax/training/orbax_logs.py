"""Keeps tracebacks of Orbax out of the log. A failed save logs several, and `Checkpoints` reports it in one line."""

import logging
import os
from typing import NamedTuple

from absl import logging as absl_logging


class _Filter(logging.Filter):
  def filter(self, record: logging.LogRecord) -> bool:
    """Drops records with a traceback that come from Orbax, unless --verbosity=1 asks for details."""
    of_orbax = bool(record.exc_info) and f'{os.sep}orbax{os.sep}' in record.pathname
    return not of_orbax or absl_logging.level_debug()


class Quiet(NamedTuple):
  """A filter that is in place until `remove` is called."""

  filter: logging.Filter

  def remove(self) -> None:
    absl_logging.get_absl_logger().removeFilter(self.filter)


def without_tracebacks() -> Quiet:
  """Filters the log of absl, which Orbax writes to."""
  quiet = Quiet(_Filter())
  absl_logging.get_absl_logger().addFilter(quiet.filter)
  return quiet
