"""The same program as `alignjax label`: python -m experiments.label."""

from alignjax.commands import label, program

if __name__ == '__main__':
  program.start(label.PROGRAM)
