"""The command `alignjax`, also as a module: python -m alignjax."""

import importlib

from alignjax import stopping


def main() -> None:
  """Runs the command. It hears SIGTERM and Ctrl-C before it imports anything else, which takes seconds."""
  stopping.run(lambda: importlib.import_module('alignjax.commands.main').main())


if __name__ == '__main__':
  main()
