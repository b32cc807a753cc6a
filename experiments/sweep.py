"""The same program as `alignjax sweep`: python -m experiments.sweep."""

from alignjax.commands import program, sweep

if __name__ == '__main__':
  program.start(sweep.PROGRAM)
