"""Entry point of the quickstart: python -m experiments.quickstart."""

from experiments.quickstart import run

if __name__ == '__main__':
  run.start()
