"""What an objective is: the first sentence, the equation and the papers of each of its parts, from the docstrings."""

from collections.abc import Sequence
import inspect
import re
import textwrap
from typing import NamedTuple

from alignjax import objectives, risk

_SECTION = re.compile(r'^[A-Z][a-z]*(?: [a-z]+)*:$', re.MULTILINE)
_LINK = re.compile(r'(https://[^\s,]*[^\s,.])')


class Description(NamedTuple):
  """One part of an objective."""

  name: str
  summary: str
  equation: str  # a few lines of plain notation
  text: Sequence[str]  # paragraphs
  references: Sequence[Sequence[str]]  # each in pieces: text, address, text, ...


def of(expression: str) -> tuple[Sequence[Description], Sequence[str]]:
  """Describes the objectives that an expression names.

  Returns:
    The descriptions, and the names of objectives that are not part of alignjax, such as those of --import.
  """
  names = list(dict.fromkeys(re.findall(r'[A-Za-z_]\w*(?=\()', expression)))
  described = [_describe(name) for name in names if name in objectives.OBJECTIVES]
  known = {*objectives.OBJECTIVES, *dir(objectives), *dir(risk)}
  return described, [name for name in names if name not in known]


def _describe(name: str) -> Description:
  documented = inspect.getdoc(objectives.OBJECTIVES[name]) or ''
  heading = _SECTION.search(documented)
  body = documented[: heading.start()] if heading else documented
  summary, *paragraphs = re.split(r'\n\s*\n', body.strip())
  equation, *text = paragraphs if paragraphs and ' = ' in paragraphs[0] else ['', *paragraphs]
  references = re.search(r'References:\n(.*?)(?=\n\s*\n|\Z)', documented, re.DOTALL)
  lines = textwrap.dedent(references[1]).splitlines() if references else []
  return Description(name, _joined(summary), equation, list(map(_joined, text)), _references(lines))


def _references(lines: Sequence[str]) -> list[list[str]]:
  """The entries, each in pieces: an entry begins, after a full stop, on a line with authors and a year."""
  entries: list[str] = []
  for line in lines:
    if not entries or (entries[-1].endswith('.') and re.match(r'.+? \d{4}, ', line)):
      entries.append(line.strip())
    else:
      entries[-1] += f' {line.strip()}'
  return [_LINK.split(entry) for entry in entries]


def _joined(text: str) -> str:
  return ' '.join(text.split())
