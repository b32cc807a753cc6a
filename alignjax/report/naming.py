"""Names and numbers as a report shows them."""

from collections.abc import Sequence
import math
import re

from alignjax.evaluation import evaluator

ALONE = 3  # digits after the point of an estimate


def short(names: Sequence[str]) -> list[str]:
  """Short names of folders that stay different: the last parts of their paths, without `model` and `checkpoints`."""
  bases, ends = zip(*map(_base, names), strict=True) if names else ((), ())
  for count in range(1, max(map(len, bases), default=0) + 1):
    found = ['/'.join(base[-count:]) + end for base, end in zip(bases, ends, strict=True)]
    if len(set(found)) == len(found):
      return found
  return list(names)


def _base(name: str) -> tuple[list[str], str]:
  *parts, last = name.rstrip('/').split('/')
  if len(parts) > 1 and parts[-1] == 'checkpoints' and last.isdecimal():
    return parts[:-1], f' at {last}'
  return (parts, '') if parts and last == 'model' else ([*parts, last], '')


def estimate(value: evaluator.Estimate | None) -> str:
  """A mean with its standard error; a dash if there is none."""
  if value is None or not math.isfinite(value.mean):
    return '–'
  if not math.isfinite(value.error):
    return number(value.mean)
  digits = ALONE if value.error == 0 else min(6, max(ALONE - 1, 1 - math.floor(math.log10(value.error))))
  return f'{minus(f"{value.mean:.{digits}f}")} ± {value.error:.{digits}f}'


def number(value: float) -> str:
  """A number with four significant digits."""
  if not math.isfinite(value):
    return '–'
  return minus(f'{value:,.0f}' if abs(value) >= 10_000 else f'{value:.4g}')


def minus(text: str) -> str:
  """A number with a typographic minus sign."""
  return text.replace('-', '−')


def size(count: int) -> str:
  """A number of bytes."""
  value, unit = float(count), 'B'
  for larger in ('KiB', 'MiB', 'GiB', 'TiB'):
    if value < 1024:
      break
    value, unit = value / 1024, larger
  return f'{value:.0f} {unit}' if unit == 'B' else f'{value:.1f} {unit}'


def duration(seconds: float) -> str:
  """A time in two units."""
  if seconds < 60:
    return f'{seconds:.1f} s'
  minutes = round(seconds / 60)
  if minutes < 60:
    return f'{int(seconds) // 60} min {int(seconds) % 60} s'
  return f'{minutes // 60} h {minutes % 60} min'


def words(command: str) -> list[str]:
  """The words of a command line as typed: a space in quotes ends no word."""
  return re.findall(r"""(?:[^\s'"]|'[^']*'|"[^"]*")+""", command)
