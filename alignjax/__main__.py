"""The command `alignjax` as a module: python -m alignjax."""

from alignjax.commands import main

if __name__ == '__main__':
  main.main()
