"""The same program as `alignjax sample`: python -m experiments.sample."""

from alignjax.commands import program, sample

if __name__ == '__main__':
  program.start(sample.PROGRAM)
