"""The pages about objectives: docs/objectives.md, with one row per objective, and docs/objectives/, a page per family.

Every part of a docstring reaches its page. A docstring that lacks a piece is an error that names the objective, so
writing the pages also lints the docstrings.
"""

from collections.abc import Callable, Iterable, Mapping
import inspect
import itertools
import re
import sys
from types import ModuleType
from typing import Any

from alignjax import objectives, stats
from alignjax.objectives import declarations, preference
from docs.pages import docstrings, requirements, texts

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


def place(build: Callable[..., Any]) -> str:
  """Where an objective is described, seen from the folder docs: 'objectives/pairwise.md#dpo'."""
  return f'objectives/{_name(build.__module__)}.md#{build.__name__}'


def _name(module: str) -> str:
  return module.rpartition('.')[2]


def title(name: str) -> str:
  """The title of the page of a module: 'on_policy' becomes 'On policy'."""
  return name.replace('_', ' ').capitalize()


def overview_row(build: Callable[..., Any]) -> str:
  """The row of an objective in the table of declarations."""
  objective, paper = _built(build), docstrings.Docstring.of(build, 'loss').paper()
  couples = ('yes, with memory' if objective.memory.initial else 'yes') if objective.couples_rows else ''
  cells = (
    f'[`{build.__name__}`]({place(build)})' + (' of `dpo()`' if _wraps(build) else ''),
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
  return '\n\n'.join(
    (*described(doc, build), '\n'.join(f'- {item}' for item in (_facts(build), *items(doc, build, '../../'))))
  )


def choice_row(build: Callable[..., Any]) -> str:
  """The row of an objective in the table of reasons: the first sentence of its `Use it when`."""
  reason = docstrings.Docstring.of(build, 'loss').section('Use it when')
  first = re.split(r'(?<=[a-z)]\.) (?=[A-Z])', reason)[0].removesuffix('.')
  return f'| {docstrings.escaped(first)} | [`{build.__name__}`]({place(build)}) |'


def described(doc: docstrings.Docstring, build: Callable[..., Any]) -> list[str]:
  """The heading, what it computes, when to use it, and its arguments."""
  blocks = [
    f'## `{doc.name}`',
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


def items(doc: docstrings.Docstring, build: Callable[..., Any], up: str) -> list[str]:
  """The result, the requirements, the references and the source of a factory.

  Args:
    doc: its docstring.
    build: the factory.
    up: the path from the folder of the page to that of the repository: '../../'.
  """
  required = requirements.of(build)
  if bool(required) != ('Raises' in doc.sections):
    raise docstrings.DocstringError(f'{doc.name}: "Raises:" and the requirements in its source differ: {required}')
  raises = [f'**Requirements**, or else a `ValueError`: {docstrings.escaped("; ".join(required))}.'] if required else []
  later = re.search(r'at trace time, (.+)', docstrings.joined(doc.sections.get('Raises', '')))
  if later:
    raises[0] += f' At trace time, a `ValueError` is also raised {docstrings.escaped(later[1])}'
  returns = f'**Returns** {docstrings.escaped(doc.section("Returns"))}'
  return [
    returns,
    *raises,
    *map(docstrings.cited, doc.references()),
    f'[Source]({up}{build.__module__.replace(".", "/")}.py)',
  ]


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


def overview() -> str:
  """The whole of docs/objectives.md."""
  reasons, declared = [texts.CHOICE_HEADER], [texts.OVERVIEW_HEADER]
  for module, builds in _families(_own(objectives.OBJECTIVES.values())):
    name = _name(module.__name__)
    reasons += [f'| **[{title(name)}](objectives/{name}.md)** | |', *map(choice_row, builds)]
    declared += [f'| **[{title(name)}](objectives/{name}.md)** | | | | | |', *map(overview_row, builds)]
  blocks = (
    texts.HEAD,
    texts.CHOICE,
    '\n'.join(reasons),
    texts.OVERVIEW,
    '\n'.join(declared),
    texts.names(),
    texts.compositions(),
    '## Notation',
    *module_prose(preference),
    texts.NOTATION,
    '<!-- toctree: objectives/* -->',
  )
  return docstrings.page(blocks)


def family(module: ModuleType, builds: Iterable[Callable[..., Any]]) -> str:
  """The whole page of a family."""
  name = _name(module.__name__)
  blocks = (
    f'# {title(name)}',
    docstrings.escaped(docstrings.paragraphs(module)[0]),
    *module_prose(module),
    texts.FAMILY,
    f'<!-- figure: {name} -->',
    *map(section, builds),
  )
  return docstrings.page(blocks)


def pages() -> Mapping[str, str]:
  """All pages about objectives: paths in the folder docs, and their texts."""
  families = _families(_own(objectives.OBJECTIVES.values()))
  return {
    'objectives.md': overview(),
    **{f'objectives/{_name(module.__name__)}.md': family(module, builds) for module, builds in families},
  }
