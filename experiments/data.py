"""The same program as `alignjax data`: python -m experiments.data."""

from alignjax.commands import data, program

if __name__ == '__main__':
  program.start(data.PROGRAM)
