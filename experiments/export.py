"""The same program as `alignjax export`: python -m experiments.export."""

from alignjax.commands import export, program

if __name__ == '__main__':
  program.start(export.PROGRAM)
