"""Docstrings of objectives and risk measures, taken apart."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import inspect
import re
from typing import Any

from docs.pages import tex

_HEADINGS = ('Use it when', 'Args', 'Returns', 'Raises', 'Defaults', 'References')
_REFERENCE = re.compile(r'(?P<who>.+? \d{4}), (?P<title>.+?),? (?P<url>https://[^\s,]*[^\s,.])(?P<rest>.*)')
_EQUATION = re.compile(r'\S.{0,40}? = |[a-z]+ [a-z0-9]+: ')
_ALONE = re.compile(r'(?:loss|value) = |[a-z]+ [a-z0-9]+: ')  # displayed on a line of its own
_LONGEST_LINE = 80  # characters of plain notation that are set side by side


class DocstringError(ValueError):
  """A docstring that lacks a piece of the page."""


@dataclasses.dataclass(frozen=True)
class Docstring:
  """The pieces of a docstring in the form that `alignjax/objectives` keeps."""

  name: str
  summary: str
  formula: str
  body: Sequence[str]  # paragraphs between the formula and the first section
  sections: Mapping[str, str]  # heading, such as `Defaults`, to content

  @classmethod
  def of(cls, build: Callable[..., Any], left: str) -> 'Docstring':
    """Takes a factory's docstring apart.

    Args:
      build: the factory.
      left: the left side of its equation, 'loss' or 'value'.

    Raises:
      DocstringError: if a piece is missing. The message begins with the name of the factory.
    """
    name = build.__name__
    summary, *others = paragraphs(build)
    if '\n' in summary or not summary.endswith('.'):
      raise DocstringError(f'{name}: the docstring must begin with one line that ends in a full stop')
    if not others or not others[0].startswith(f'{left} ='):
      raise DocstringError(f'{name}: the second paragraph of the docstring must begin with "{left} ="')
    formula, *others = others
    body, sections = [], {}
    for text in others:
      heading = re.match(r'([A-Z][a-z]*(?: [a-z]+)*):\n', text)
      if heading and heading[1] not in _HEADINGS:
        raise DocstringError(f'{name}: unknown section "{heading[1]}:"; the page knows {", ".join(_HEADINGS)}')
      if heading:
        sections[heading[1]] = inspect.cleandoc(text[heading.end() :])
      elif sections:
        raise DocstringError(
          f'{name}: the paragraph "{joined(text)[:40]}..." comes after the first section; move it up'
        )
      else:
        body.append(joined(text))
    return cls(name, summary, formula, body, sections)

  def section(self, heading: str) -> str:
    if heading not in self.sections:
      raise DocstringError(f'{self.name}: the docstring has no section "{heading}:"')
    return joined(self.sections[heading])

  def arguments(self, names: Sequence[str]) -> list[str]:
    """The descriptions of the arguments, in the order of the signature."""
    entries = re.split(r'\n(?=\w+: )', self.sections['Args']) if 'Args' in self.sections else []
    described = [tuple(entry.partition(': ')[::2]) for entry in entries]
    if [name for name, _ in described] != list(names):
      documented = ', '.join(name for name, _ in described) or 'none'
      raise DocstringError(
        f'{self.name}: "Args:" describes {documented}; the arguments are {", ".join(names) or "none"}'
      )
    return [joined(description) for _, description in described]

  def references(self) -> list[str]:
    """One string for each entry; an entry begins, after a full stop, on a line with authors and a year."""
    entries: list[str] = []
    for line in self.sections.get('References', '').splitlines():
      if not entries or (entries[-1].endswith('.') and re.match(r'.+? \d{4}, ', line)):
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

  def equations(self) -> str:
    """The formula in Markdown."""
    try:
      return equations(self.formula)
    except tex.TexError as error:
      raise DocstringError(f'{self.name}: {error}') from error


def paragraphs(documented: Any) -> list[str]:
  return re.split(r'\n\s*\n', inspect.getdoc(documented) or '')


def page(blocks: Iterable[str]) -> str:
  """The text of a page: a blank line between two blocks."""
  return '\n\n'.join(block.strip() for block in blocks) + '\n'


def joined(text: str) -> str:
  return ' '.join(text.split())


def escaped(text: str) -> str:
  """Keeps Markdown from reading formulas as its own; `code` and *words* stay."""
  return re.sub(r'(`[^`]*`|(?<!\w)\*\w+\*(?!\w))|([*<\[\]|])', lambda match: match[1] or f'\\{match[2]}', text)


def equations(formula: str) -> str:
  """A paragraph of formulas in Markdown: displayed equations, and lines of text for what is said about them.

  Statements end with the line, or with three spaces. One of the form `left = right`, or `variant 1: right`, is an
  equation; any other, such as `where l is the length`, is text.
  """
  blocks: list[str] = []
  row: list[str] = []
  for line in formula.splitlines():
    for statement in re.split(r'\s{3,}', line.strip()):
      plain = statement.rstrip(',;')
      if plain.startswith('where ') or not _EQUATION.match(plain):
        blocks += [*_displayed(row), _described(plain)]
        row = []
      elif row and (_ALONE.match(row[0]) or _ALONE.match(plain) or len('   '.join([*row, plain])) > _LONGEST_LINE):
        blocks += _displayed(row)
        row = [plain]
      else:
        row.append(plain)
  return '\n\n'.join([*blocks, *_displayed(row)])


def _displayed(row: Sequence[str]) -> list[str]:
  return [f'$$\n{", \\qquad ".join(map(_equation, row))}\n$$'] if row else []


def _equation(statement: str) -> str:
  labelled = re.match(r'([a-z]+ [a-z0-9]+): (.*)', statement)
  return f'\\text{{{labelled[1]}: }} {tex.tex(labelled[2])}' if labelled else tex.tex(statement)


def _described(statement: str) -> str:
  """A remark on an equation; the symbols of `where l and r are ...` are set as formulas."""
  match = re.match(r'where (\S+(?:(?:, | and )\S+)*) (is|are) ', statement)
  if not match:
    return escaped(statement)
  symbols = re.sub(r'(?!and )(?<!\S)[^\s,]+', lambda symbol: f'${tex.tex(symbol[0])}$', match[1])
  return f'where {symbols} {match[2]} {escaped(statement[match.end() :])}'


def cited(reference: str) -> str:
  match = _REFERENCE.fullmatch(reference)
  return '[{1}]({2}), {0}{3}'.format(*map(escaped, match.groups())) if match else escaped(reference)
