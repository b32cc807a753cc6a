"""Docstrings of objectives and risk measures, taken apart and set in Markdown."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import inspect
import re
from types import ModuleType
from typing import Any

_REFERENCE = re.compile(r'(?P<who>.+? \d{4}), (?P<title>.+?),? (?P<url>https://[^\s,]*[^\s,.])(?P<rest>.*)')


class DocstringError(ValueError):
  """A docstring that lacks a piece of the page."""


@dataclasses.dataclass(frozen=True)
class Docstring:
  """The pieces of a docstring in the form that `alignjax/objectives` keeps."""

  name: str
  summary: str
  paragraphs: Sequence[str]
  sections: Mapping[str, str]  # by heading, such as `Defaults`

  @classmethod
  def of(cls, build: Callable[..., Any]) -> 'Docstring':
    summary, *others = paragraphs(build)
    if '\n' in summary or not summary.endswith('.'):
      raise DocstringError(f'{build.__name__}: the docstring must begin with one line that ends in a full stop')
    sections = dict(match.groups() for text in others if (match := re.fullmatch(r'(\w+):\n(.*)', text, re.DOTALL)))
    return cls(build.__name__, summary, others, sections)

  def equation(self, left: str) -> str:
    for text in self.paragraphs:
      if text.startswith(f'{left} ='):
        return text
    raise DocstringError(f'{self.name}: no paragraph of the docstring begins with "{left} ="')

  def section(self, heading: str) -> str:
    if heading not in self.sections:
      raise DocstringError(f'{self.name}: the docstring has no section "{heading}:"')
    return joined(self.sections[heading])

  def references(self) -> list[str]:
    """One string for each entry; an entry begins, after a full stop, on a line with authors and a year."""
    lines = inspect.cleandoc(self.sections.get('References', '')).split('\n')
    entries = [lines[0]]
    for line in lines[1:]:
      if entries[-1].endswith('.') and re.match(r'.+? \d{4}, ', line):
        entries.append(line)
      else:
        entries[-1] += f' {line.strip()}'
    return entries

  def paper(self) -> re.Match[str]:
    self.section('References')
    match = _REFERENCE.fullmatch(self.references()[0])
    if not match:
      raise DocstringError(f'{self.name}: the first reference must read "Authors year, title, https://..."')
    return match


def paragraphs(documented: Any) -> list[str]:
  return re.split(r'\n\s*\n', inspect.getdoc(documented) or '')


def joined(text: str) -> str:
  return ' '.join(text.split())


def escaped(text: str) -> str:
  """Keeps Markdown from reading formulas as its own; `code` and *words* stay."""
  return re.sub(r'(`[^`]*`|(?<!\w)\*\w+\*(?!\w))|([*<\[\]|])', lambda match: match[1] or f'\\{match[2]}', text)


def code(names: Iterable[str]) -> str:
  return ', '.join(f'`{name}`' for name in names)


def fenced(text: str) -> str:
  return f'```text\n{text}\n```'


def prose(module: ModuleType) -> list[str]:
  """What a module's docstring says after its first line; indented paragraphs are formulas."""
  indented = [(text, text.startswith('  ')) for text in paragraphs(module)[1:]]
  return [fenced(inspect.cleandoc(text)) if formula else escaped(joined(text)) for text, formula in indented]


def cited(reference: str) -> str:
  match = _REFERENCE.fullmatch(reference)
  return '[{1}]({2}), {0}{3}'.format(*map(escaped, match.groups())) if match else escaped(reference)
