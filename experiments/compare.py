"""The same program as `alignjax compare`: python -m experiments.compare."""

from alignjax.commands import compare, program

if __name__ == '__main__':
  program.start(compare.PROGRAM)
