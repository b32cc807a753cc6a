"""The same program as `alignjax evaluate`: python -m experiments.evaluate."""

from alignjax.commands import evaluate, program

if __name__ == '__main__':
  program.start(evaluate.PROGRAM)
