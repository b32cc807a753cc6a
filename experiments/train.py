"""The same program as `alignjax train`: python -m experiments.train."""

import importlib

from alignjax import stopping


def main() -> None:
  """Runs the program. See `alignjax.__main__`."""
  commands = importlib.import_module('alignjax.commands.program')
  commands.start(commands.lazy('train'))


if __name__ == '__main__':
  stopping.run(main)
