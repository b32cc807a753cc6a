"""What the reports of the studies share: numbers with errors, tables, and the style of figures."""

from collections.abc import Sequence
import pathlib

import numpy as np
from rich import box
from rich import console as rich_console
from rich import table as rich_table

from experiments.toy import descent

RC = {'axes.spines.top': False, 'axes.spines.right': False, 'font.size': 9, 'legend.frameon': False}
Rows = Sequence[Sequence[str]]


def shown(values: np.ndarray, sign: str = '') -> str:
  """The mean over seeds with its standard error."""
  mean, error = descent.estimate(values)
  return f'{mean:{sign}.3f} ± {error:.3f}'


def above(values: np.ndarray) -> bool:
  """Whether the mean over seeds is above two standard errors."""
  mean, error = descent.estimate(values)
  return mean > 2 * error


def show(console: rich_console.Console, title: str, columns: Sequence[str], rows: Rows) -> None:
  """Prints a table."""
  grid = rich_table.Table(title=title, box=box.SIMPLE, title_justify='left')
  for place, column in enumerate(columns):
    grid.add_column(column, justify='right' if place else 'left')
  for row in rows:
    grid.add_row(*row)
  console.print(grid)


def markdown(title: str, columns: Sequence[str], rows: Rows) -> list[str]:
  """The lines of a table in Markdown, with a heading before and an empty line after it."""
  table = ['| ' + ' | '.join(row) + ' |' for row in (columns, ['---'] * len(columns), *rows)]
  return [f'# {title}', '', *table, '']


def write(workdir: pathlib.Path, console: rich_console.Console, lines: Sequence[str], findings: Sequence[str]) -> None:
  """Prints the findings, and writes table.md: the lines of its tables, then the findings."""
  for line in findings:
    console.print(line, highlight=False, soft_wrap=True)
  text = '\n'.join([*lines, *(f'- {line}' for line in findings), ''])
  (workdir / 'table.md').write_text(text, encoding='utf-8')
