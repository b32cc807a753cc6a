"""The pages of the API: the public names of each package, from their docstrings, by Sphinx's autodoc."""

import ast
from collections.abc import Iterable, Mapping, Sequence
import functools
import importlib
import inspect
import itertools
import pathlib
import pkgutil
import re
from types import ModuleType
from typing import Any

from alignjax import judges, merging, objectives, rewards, risk
from alignjax.optim import recipes
from alignjax.sampling import strategies
from docs.pages import docstrings, general
from docs.site import staging

# Packages, and what of them has a page of its own elsewhere.
ELSEWHERE: Mapping[str, tuple[Mapping[str, Any], str]] = {
  'alignjax.objectives': (objectives.OBJECTIVES, 'All objectives are in [Objectives](../objectives.md).'),
  'alignjax.risk': (risk.MEASURES, 'All risk measures are in [Risk measures](../risk.md).'),
  'alignjax.optim': (recipes.TRANSFORMS, 'All transforms are in [Optimizers](../reference/optimizers.md).'),
  'alignjax.merging': (merging.METHODS, 'All merge methods are in [Merge methods](../reference/merge_methods.md).'),
  'alignjax.rewards': (rewards.REWARDS, 'All rewards are in [Rewards and judges](../reference/rewards.md).'),
  'alignjax.judges': (judges.JUDGES, 'All judges are in [Rewards and judges](../reference/rewards.md).'),
  'alignjax.sampling.strategies': (
    strategies.STRATEGIES,
    'All strategies are in [Decoding strategies](../reference/strategies.md).',
  ),
}
PACKAGES = (
  'alignjax',
  'alignjax.objectives',
  'alignjax.stats',
  'alignjax.risk',
  'alignjax.optim',
  'alignjax.merging',
  'alignjax.sampling',
  'alignjax.rewards',
  'alignjax.judges',
  'alignjax.evaluation',
  'alignjax.testing',
)
INDEX = """\
# API

The public names, from their docstrings. `import alignjax` is enough in a notebook: its names are imported when they are
first used. Objectives, risk measures, optimizers, merge methods, rewards, judges and decoding strategies have
[pages of their own](../index.md)."""

_SECTIONS = ('Args', 'Attributes', 'Defaults', 'Raises', 'References', 'Returns', 'Use it when', 'Yields')
_HEADING = re.compile(rf'({"|".join(_SECTIONS)}):$')


def public(name: str) -> list[tuple[str, list[str]]]:
  """The modules of a package to document, each with its public names.

  A package with `__all__` is one module. Of any other, each of its modules counts, with the names that it defines.
  """
  module = importlib.import_module(name)
  if hasattr(module, '__all__'):
    return [(name, [each for each in module.__all__ if not inspect.ismodule(getattr(module, each))])]
  found = []
  for info in pkgutil.iter_modules(module.__path__, f'{name}.'):
    if not info.ispkg:
      inner = importlib.import_module(info.name)
      own = [
        each
        for each, value in vars(inner).items()
        if not each.startswith('_') and getattr(value, '__module__', None) == info.name
      ]
      found.append((info.name, own))
  return [(name, own) for name, own in found if own]


def page(name: str) -> str:
  """The page of a package."""
  summary, *others = general.prose(importlib.import_module(name))
  blocks = [f'# `{name}`', summary, *others]
  for module, names in public(name):
    about = importlib.import_module(module)
    if module != name:
      blocks += [f'## `{module}`', *general.prose(about)]
    elsewhere, pointer = ELSEWHERE.get(module, ({}, ''))
    shared = {each: _home(name, getattr(about, each)) for each in names}
    pointers = [f'- `{each}`: see [`{home}`]({home}.md)' for each, home in shared.items() if home]
    blocks += [pointer, '\n'.join(pointers)]
    entries = '\n\n'.join(_entry(about, each) for each in names if each not in elsewhere and not shared[each])
    blocks.append(f'```{{eval-rst}}\n{entries}\n```')
  return docstrings.page(filter(None, blocks))


def _home(package: str, value: Any) -> str:
  """Another package whose page documents a name; '' for none."""
  defined = getattr(value, '__module__', None) or ''
  return next((name for name in PACKAGES[1:] if name != package and defined.startswith(f'{name}.')), '')


def _entry(module: ModuleType, name: str) -> str:
  """The directive for one name."""
  value = getattr(module, name)
  path = f'{module.__name__}.{name}'
  if inspect.isclass(value):
    return f'.. autoclass:: {path}\n   :members:'
  if inspect.isroutine(value) or hasattr(value, '__wrapped__'):
    return f'.. autofunction:: {path}'
  lines = [f'   {line}'.rstrip() for line in rst(_documentation(module, name).splitlines())]
  shown = [f'   :value: {value!r}'] if isinstance(value, str) else []
  return '\n'.join((f'.. py:data:: {path}', *shown, '', *lines))


def _documentation(module: ModuleType, name: str) -> str:
  """The string below the assignment of a name, in the module or in one of its package."""
  inner = [importlib.import_module(f'{module.__name__}.{info.name}') for info in pkgutil.iter_modules(_path(module))]
  for place in (module, *inner):
    body = _body(place)
    for node, after in itertools.pairwise(body):
      targets = (
        node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
      )
      if any(getattr(target, 'id', '') == name for target in targets):
        text = getattr(after, 'value', None)
        if isinstance(after, ast.Expr) and isinstance(text, ast.Constant):
          return inspect.cleandoc(text.value)
  return ''


@functools.cache
def _body(module: ModuleType) -> Sequence[ast.stmt]:
  return ast.parse(inspect.getsource(module)).body


def _path(module: ModuleType) -> Iterable[str]:
  return getattr(module, '__path__', ())


def stage(folder: pathlib.Path) -> None:
  """Writes the pages into a folder."""
  rows = '\n'.join(f'- [`{name}`]({name}.md): {general.prose(importlib.import_module(name))[0]}' for name in PACKAGES)
  contents = '```{toctree}\n:hidden:\n\n' + '\n'.join(PACKAGES) + '\n```'
  staging.write(folder / 'index.md', docstrings.page((INDEX, rows, contents)))
  for name in PACKAGES:
    staging.write(folder / f'{name}.md', page(name))


def process_docstring(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
  """Sphinx's event `autodoc-process-docstring`: makes reStructuredText of a docstring in plain notation."""
  del app, what, name, value, options
  lines[:] = rst(lines)


def skip_member(app: Any, what: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
  """Sphinx's event `autodoc-skip-member`: leaves out fields of named tuples, which have no text of their own."""
  del app, what, name, options
  return True if (inspect.getdoc(value) or '').startswith('Alias for field number') else (skip or None)


def rst(lines: Iterable[str]) -> list[str]:
  """A docstring in reStructuredText: formulas are literal blocks, and in text nothing is markup but `code`."""
  out: list[str] = []
  heading = ''
  for text in re.split(r'\n\s*\n', '\n'.join(lines)):
    text = text.strip('\n')
    start = _HEADING.match(text.partition('\n')[0])
    if start or (text and not text.startswith(' ')):
      heading = start[1] if start else ''
    if heading == 'References':
      body = [line.strip() for line in text.splitlines() if not _HEADING.match(line)]
      out += ['References:', *(f'  {line}' for line in _listed(body)), '']
    elif not heading and general.is_formula(text) and text:
      out += ['::', '', *(f'    {line}' for line in text.splitlines()), '']
    else:
      out += [_HEADING.sub(r'\1:', line) if _HEADING.match(line) else _plain(line) for line in text.splitlines()] + ['']
  return out


def _listed(lines: Iterable[str]) -> list[str]:
  """References as items: one begins with a capital letter after a line that ends with a full stop."""
  items: list[str] = []
  for line in lines:
    if not items or (items[-1].endswith(('.', ')')) and line[:1].isupper()):
      items.append(line)
    else:
      items[-1] += f' {line}'
  return [f'- {_plain(item)}' for item in items]


def _plain(text: str) -> str:
  """Escapes what reStructuredText would read as markup, and makes `code` of code."""
  pieces = re.split(r'(`[^`]+`)', text)
  return ''.join(
    f'`{piece}`' if re.fullmatch(r'`[^`]+`', piece) else re.sub(r'([\\*|`])|(?<=\w)(_)(?!\w)', r'\\\1\2', piece)
    for piece in pieces
  )


def source_link(name: str, module: str) -> str | None:
  """The address of the source of a name on GitHub.

  Args:
    name: a name of the module, such as 'Objective.apply'.
    module: the module that documents it.
  """
  value: Any = importlib.import_module(module)
  for part in name.split('.'):
    value = getattr(value, part, None)
  try:
    file, line = inspect.getsourcefile(inspect.unwrap(value)), inspect.getsourcelines(inspect.unwrap(value))[1]
  except TypeError:
    return None
  return f'{staging.REPOSITORY}/blob/{staging.BRANCH}/{pathlib.Path(file).relative_to(staging.ROOT)}#L{line}'
