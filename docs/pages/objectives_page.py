"""Writes docs/objectives.md: every objective and risk measure, from its docstring, source and declarations.

  python -m docs.pages.objectives_page            writes the page
  python -m docs.pages.objectives_page --check    fails if the page is out of date

Every part of a docstring reaches the page. A docstring that lacks a piece is an error that names the objective, so
writing the page also lints the docstrings.
"""

from collections.abc import Callable, Iterable, Sequence
import inspect
import itertools
import pathlib
import sys
from types import ModuleType
from typing import Any

from absl import app

from alignjax import objectives, risk, stats
from alignjax.objectives import declarations, preference
from docs.pages import docstrings, requirements, texts, writing

PAGE = pathlib.Path(__file__).parents[1] / 'objectives.md'
_LOG_RATIO = {stats.logp, stats.reference_logp}


def _parameters(build: Callable[..., Any]) -> list[inspect.Parameter]:
  return list(inspect.signature(build).parameters.values())


def _wraps(build: Callable[..., Any]) -> bool:
  """Whether the factory takes an objective."""
  return [parameter.name for parameter in _parameters(build)][:1] == ['objective']


def _built(build: Callable[..., Any]) -> objectives.Objective:
  return build(objectives.dpo()) if _wraps(build) else build()


def _has_reference(objective: objectives.Objective) -> bool:
  return any(stat.reference for stat in objective.needs)


def _code(names: Iterable[str]) -> str:
  return ', '.join(f'`{name}`' for name in sorted(names))


def overview_row(build: Callable[..., Any]) -> str:
  """The row of an objective in the table at the top."""
  objective, paper = _built(build), docstrings.Docstring.of(build, 'loss').paper()
  couples = ('yes, with memory' if objective.memory.initial else 'yes') if objective.couples_rows else ''
  cells = (
    f'[`{build.__name__}`](#{build.__name__})' + (' of `dpo()`' if _wraps(build) else ''),
    f'[{docstrings.escaped(paper["who"])}]({paper["url"]})',
    'yes' if _has_reference(objective) else '',
    couples,
    'yes' if 'score' in objective.reads else '',
    _code(stat.name for stat in objective.needs - _LOG_RATIO),
  )
  return f'| {" | ".join(cells)} |'


def section(build: Callable[..., Any]) -> str:
  """The section of an objective, or a DocstringError that names it."""
  doc = docstrings.Docstring.of(build, 'loss')
  doc.paper()
  return '\n\n'.join((*_described(doc, build), '\n'.join(f'- {item}' for item in (_facts(build), *_items(doc, build)))))


def measure_section(build: Callable[..., Any]) -> str:
  """The section of a risk measure, or a DocstringError that names it."""
  doc = docstrings.Docstring.of(build, 'value')
  if 'gradient in the values is' not in doc.section('Returns'):
    raise docstrings.DocstringError(f'{doc.name}: "Returns:" must contain "its gradient in the values is ..."')
  return '\n\n'.join((*_described(doc, build), '\n'.join(f'- {item}' for item in _items(doc, build))))


def _described(doc: docstrings.Docstring, build: Callable[..., Any]) -> list[str]:
  """The heading, what it computes, when to use it, and its arguments."""
  blocks = [
    f'### [`{doc.name}`]({_link(build)})',
    docstrings.escaped(doc.summary),
    doc.equations(),
    *map(docstrings.escaped, doc.body),
    f'**Use it when** {docstrings.escaped(doc.section("Use it when"))}',
  ]
  parameters = _parameters(build)
  described = doc.arguments([parameter.name for parameter in parameters])
  if parameters:
    rows = zip(map(_argument, parameters), map(docstrings.escaped, described), strict=True)
    blocks.append('\n'.join((texts.ARGUMENTS_HEADER, *(f'| {argument} | {text} |' for argument, text in rows))))
  if any(parameter.default is not parameter.empty for parameter in parameters):
    blocks.append(f'**Defaults:** {docstrings.escaped(doc.section("Defaults"))}')
  return blocks


def _argument(parameter: inspect.Parameter) -> str:
  default = 'required' if parameter.default is parameter.empty else f'`{parameter.default!r}`'
  return f'`{parameter.name}` | {default}'


def _facts(build: Callable[..., Any]) -> str:
  """The line of declarations of an objective."""
  objective = _built(build)
  required, optional = _code(objective.reads - objective.optional), _code(objective.optional)
  reads = ', '.join(filter(None, (required, f'and if present {optional}' if optional else '')))
  facts = (
    f'**Needs** {_code(stat.name for stat in objective.needs)}',
    f'reference: {"yes" if _has_reference(objective) else "no"}',
    f'batch fields: {reads or "none"}',
    declarations.describe_responses(objective.responses),
    f'couples rows: {"yes" if objective.couples_rows else "no"}',
    f'memory: {"yes" if objective.memory.initial else "no"}',
    *(['responses: the policy’s own'] if objective.on_policy else []),
    *(['all this with `dpo()` inside'] if _wraps(build) else []),
  )
  return ' · '.join(facts)


def _items(doc: docstrings.Docstring, build: Callable[..., Any]) -> list[str]:
  required = requirements.of(build)
  if bool(required) != ('Raises' in doc.sections):
    raise docstrings.DocstringError(f'{doc.name}: "Raises:" and the requirements in its source differ: {required}')
  raises = [f'**Requirements**, or else a `ValueError`: {docstrings.escaped("; ".join(required))}.'] if required else []
  returns = f'**Returns** {docstrings.escaped(doc.section("Returns"))}'
  return [returns, *raises, *map(docstrings.cited, doc.references())]


def _link(build: Callable[..., Any]) -> str:
  return f'../{build.__module__.replace(".", "/")}.py'


def module_prose(module: ModuleType) -> list[str]:
  """A module's docstring after its first line; indented paragraphs are formulas, `- ` paragraphs stay lists."""
  blocks = []
  for text in docstrings.paragraphs(module)[1:]:
    if text.startswith('  ') and not text.lstrip().startswith('- '):
      blocks.append(docstrings.equations(text))
    elif text.startswith('- '):
      blocks.append('\n'.join(f'- {docstrings.escaped(docstrings.joined(item))}' for item in text[2:].split('\n- ')))
    else:
      blocks.append(docstrings.escaped(docstrings.joined(text)))
  return blocks


def _families(builds: Iterable[Callable[..., Any]]) -> list[tuple[ModuleType, list[Callable[..., Any]]]]:
  """Factories by file, in the order of the file; first the pairwise ones, whose notation the others share."""

  def key(build: Callable[..., Any]) -> tuple[bool, str, int]:
    return not build.__module__.endswith('.pairwise'), build.__module__, inspect.unwrap(build).__code__.co_firstlineno

  grouped = itertools.groupby(sorted(builds, key=key), key=lambda build: build.__module__)
  return [(sys.modules[name], list(group)) for name, group in grouped]


def _own(builds: Iterable[Callable[..., Any]]) -> list[Callable[..., Any]]:
  """Those of the library, without objectives that a user has registered."""
  return [build for build in builds if build.__module__.startswith('alignjax.')]


def page() -> str:
  """The whole of docs/objectives.md."""
  table, parts = [texts.OVERVIEW_HEADER], []
  for module, builds in _families(_own(objectives.OBJECTIVES.values())):
    family = module.__name__.rpartition('.')[2]
    table += [f'| **[{family}](#{family})** | | | | | |', *map(overview_row, builds)]
    summary = docstrings.escaped(docstrings.paragraphs(module)[0])
    parts += [f'## {family}', summary, *module_prose(module), *map(section, builds)]
  ((module, measures),) = _families(risk.MEASURES.values())
  parts += ['## Risk measures', texts.RISK, *module_prose(module), *map(measure_section, measures)]
  blocks = (
    texts.HEAD,
    '\n'.join(table),
    texts.NAMES,
    texts.compositions(),
    '## Notation',
    *module_prose(preference),
    texts.NOTATION,
    *parts,
  )
  return '\n\n'.join(block.strip() for block in blocks) + '\n'


def main(argv: Sequence[str]) -> None:
  writing.write(argv, PAGE, page, 'objectives_page')


if __name__ == '__main__':
  app.run(main)
