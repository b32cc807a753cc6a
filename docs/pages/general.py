"""Docstrings of functions other than objectives and risk measures, in Markdown: any Google docstring is accepted."""

from collections.abc import Callable, Sequence
import inspect
import re
import textwrap
from typing import Any

from docs.pages import docstrings, texts

_HEADING = re.compile(r'([A-Z][a-z]+(?: [a-z]+)*):\n')
_EQUATION = re.compile(r'\S.{0,60}? (?:=|<-) ')
_NOT_TEX = re.compile(r'<-|\w~|\^[ )]|\(\+\)|sqrt|rms|, where|[A-Za-z]{6}|\.\.\.')  # stays in plain notation


def section(name: str, build: Callable[..., Any], heading: str = '##') -> str:
  """The section of a function: its call, summary, formula, arguments, result, errors and references."""
  summary, *others = docstrings.paragraphs(build)
  blocks = [f'{heading} `{name}`', f'```python\n{call(name, build)}\n```', _text(summary)]
  for text in others:
    begins = _HEADING.match(text)
    if begins:
      blocks += _section(begins[1], textwrap.dedent(text[begins.end() :]), build)
    else:
      blocks.append(_paragraph(text))
  return '\n\n'.join(blocks)


def call(name: str, build: Callable[..., Any]) -> str:
  """The call with its defaults, without types: 'ties(density=0.2, normalize=True)'."""
  parameters = [
    each.replace(annotation=inspect.Parameter.empty) for each in inspect.signature(build).parameters.values()
  ]
  plain = inspect.Signature(parameters)
  return f'{name}{re.sub(r"(?<=[a-z]) = (?=.)", "=", str(plain))}'


def _text(text: str) -> str:
  return docstrings.escaped(docstrings.joined(text))


def is_formula(text: str) -> bool:
  """Whether a paragraph of a docstring consists of equations, or of indented lines, which keep their layout."""
  statements = [statement for line in text.splitlines() for statement in re.split(r'\s{2,}', line.strip())]
  return text.startswith(('  ', '@')) or all(map(_EQUATION.match, statements))


def prose(documented: Any) -> list[str]:
  """The paragraphs of a docstring without sections, such as that of a module."""
  return [_paragraph(text) for text in docstrings.paragraphs(documented)]


def _paragraph(text: str) -> str:
  """A paragraph of text, of items, or of formulas."""
  if text.startswith('- '):
    return '\n'.join(f'- {_text(item)}' for item in text[2:].split('\n- '))
  if is_formula(text):
    plain = text.startswith('  ') or _NOT_TEX.search(text)
    return f'```text\n{textwrap.dedent(text)}\n```' if plain else docstrings.equations(text)
  return _text(text)


def _section(heading: str, content: str, build: Callable[..., Any]) -> Sequence[str]:
  """A section of the docstring."""
  if heading == 'Args':
    parameters = inspect.signature(build).parameters
    rows = [entry.partition(': ')[::2] for entry in re.split(r'\n(?=\S)', content)]
    return ['\n'.join((texts.ARGUMENTS_HEADER, *(_row(names, text, parameters) for names, text in rows)))]
  if heading == 'References':
    return [_references(content)]
  if heading == 'Raises':
    entries = [entry.partition(': ')[::2] for entry in re.split(r'\n(?=\S)', content)]
    return ['\n'.join(f'- **Raises** `{error}`: {_text(text)}' for error, text in entries)]
  return [f'**{heading}** {_text(content)}' if heading == 'Returns' else f'**{heading}:** {_text(content)}']


def references(text: str) -> str:
  """The list of the references in a paragraph that begins with `References:`."""
  return _references(textwrap.dedent(text.partition(':\n')[2]))


def _references(content: str) -> str:
  entries = re.split(r'(?<=[.)])\n(?=[A-Z])', content)
  return '\n'.join(f'- {docstrings.cited(docstrings.joined(entry))}' for entry in entries)


def _row(names: str, text: str, parameters: dict[str, inspect.Parameter]) -> str:
  """The row of an argument, or of several that share a description."""
  each = [name.strip('*') for name in names.split(', ')]
  defaults = [
    'required' if parameters[name].default is inspect.Parameter.empty else f'`{parameters[name].default!r}`'
    for name in each
  ]
  return f'| {", ".join(f"`{name}`" for name in each)} | {", ".join(dict.fromkeys(defaults))} | {_text(text)} |'
