"""The same program as `alignjax merge`: python -m experiments.merge."""

from alignjax.commands import merge

if __name__ == '__main__':
  merge.start()
