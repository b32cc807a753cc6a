"""The same program as `alignjax merge`: python -m experiments.merge."""

from alignjax.commands import merge, program

if __name__ == '__main__':
  program.start(merge.PROGRAM)
