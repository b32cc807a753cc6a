"""The same program as `alignjax train`: python -m experiments.train."""

from alignjax.commands import train

if __name__ == '__main__':
  train.start()
