"""The same program as `alignjax train`: python -m experiments.train."""

from alignjax.commands import program, train

if __name__ == '__main__':
  program.start(train.PROGRAM)
