"""docs/risk.md: the risk measures, from their docstrings, and the functions for nested values."""

from collections.abc import Callable, Mapping
import inspect
from typing import Any

from alignjax import risk
from alignjax.risk import measures, nested
from docs.pages import docstrings, general, objectives_page, texts

NESTED = (nested.path_value, nested.markov_value, nested.advantage, nested.raise_one)


def section(build: Callable[..., Any]) -> str:
  """The section of a risk measure, or a DocstringError that names it."""
  doc = docstrings.Docstring.of(build, 'value')
  if 'gradient in the values is' not in doc.section('Returns'):
    raise docstrings.DocstringError(f'{doc.name}: "Returns:" must contain "its gradient in the values is ..."')
  items = '\n'.join(f'- {item}' for item in objectives_page.items(doc, build, '../'))
  return '\n\n'.join((*objectives_page.described(doc, build), items))


def pages() -> Mapping[str, str]:
  """The page: its path in the folder docs, and its text."""
  ordered = sorted(risk.MEASURES.values(), key=lambda build: inspect.unwrap(build).__code__.co_firstlineno)
  about, references = docstrings.paragraphs(nested)[1:]
  blocks = (
    texts.risk(),
    *objectives_page.module_prose(measures),
    '<!-- figure: risk -->',
    *map(section, ordered),
    texts.NESTED,
    docstrings.escaped(docstrings.joined(about)),
    '<!-- figure: nested -->',
    *(general.section(build.__name__, build, '###') for build in NESTED),
    general.references(references),
  )
  return {'risk.md': docstrings.page(blocks)}
