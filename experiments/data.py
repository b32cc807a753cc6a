"""The same program as `alignjax data`: python -m experiments.data."""

from alignjax.commands import data

if __name__ == '__main__':
  data.start()
