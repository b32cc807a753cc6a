"""The same program as `alignjax sample`: python -m experiments.sample."""

from alignjax.commands import sample

if __name__ == '__main__':
  sample.start()
