"""Writes a generated page, or checks that it is up to date."""

from collections.abc import Callable, Sequence
import pathlib
import sys

from absl import app, flags

CHECK = flags.DEFINE_bool('check', False, 'Write nothing; fail if the page is out of date.')


def write(argv: Sequence[str], page: pathlib.Path, build: Callable[[], str], module: str) -> None:
  """The main function of a page: writes it, or with --check exits with an error if it is out of date."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
  text = build()
  if not CHECK.value:
    page.write_text(text, encoding='utf-8')
  elif not page.exists() or page.read_text(encoding='utf-8') != text:
    sys.exit(f'docs/{page.name} is out of date: run python -m docs.pages.{module}')
