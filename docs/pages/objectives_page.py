"""Writes docs/objectives.md: every objective with its equation, defaults and paper, as its docstring gives them.

  python -m docs.pages.objectives_page            writes the page
  python -m docs.pages.objectives_page --check    fails if the page is not what would be written

What an objective needs is asked of the objective itself. A docstring that lacks a piece is an error which names the
objective, so that writing the page is also the lint of the docstrings.
"""

from collections.abc import Callable, Iterable, Sequence
import inspect
import itertools
import pathlib
import re
import sys
from types import ModuleType
from typing import Any

from absl import app, flags
import jax
import jax.numpy as jnp

from alignjax import objectives, risk, stats
from alignjax.objectives import preference
from alignjax.types import PreferenceBatch
from docs.pages import docstrings, texts

PAGE = pathlib.Path(__file__).parents[1] / 'objectives.md'
_CHECK = flags.DEFINE_bool('check', False, 'Write nothing, and fail if docs/objectives.md is out of date.')
_LOG_RATIO = {stats.logp, stats.reference_logp}


def _signature(build: Callable[..., Any]) -> str:
  parameters = inspect.signature(build).parameters.values()
  return build.__name__ + str(inspect.Signature([p.replace(annotation=inspect.Parameter.empty) for p in parameters]))


def _wraps(build: Callable[..., Any]) -> bool:
  """Does the factory take an objective?"""
  return next(iter(inspect.signature(build).parameters), '') == 'objective'


def _built(build: Callable[..., Any]) -> objectives.Objective:
  return build(objectives.dpo()) if _wraps(build) else build()


def _accepts(objective: objectives.Objective, responses: int, score: bool = True) -> bool:
  """Can a batch with so many responses to a prompt, with or without scores, be given to the objective?"""

  def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)

  pair = (2, responses)
  batch = PreferenceBatch(
    prompt=array(2, 3, dtype=jnp.int32),
    prompt_length=array(2, dtype=jnp.int32),
    response=array(*pair, 3, dtype=jnp.int32),
    response_length=array(*pair, dtype=jnp.int32),
    label=array(2),
    weight=array(2),
    score=array(*pair) if score else None,
  )
  table = stats.StatTable({stat.name: array(*pair, 3) for stat in objective.needs}, batch.response_length)
  try:
    jax.eval_shape(objective.apply, table, batch)
  except ValueError:  # the objectives' own, at trace time
    return False
  return True


def _responses(objective: objectives.Objective) -> tuple[int, ...]:
  accepted = tuple(n for n in (1, 2, 3) if _accepts(objective, n))
  if not accepted:
    raise ValueError(f'{objective.name}: no batch of 1, 2 or 3 responses to a prompt is accepted')
  return accepted


def overview_row(build: Callable[..., Any]) -> str:
  """The line of an objective in the table at the top."""
  objective, paper = _built(build), docstrings.Docstring.of(build).paper()
  couples = ('yes, and remembers' if objective.memory.initial else 'yes') if objective.couples_rows else ''
  cells = (
    f'[`{build.__name__}`](#{build.__name__})' + (' of `dpo()`' if _wraps(build) else ''),
    f'[{docstrings.escaped(paper["who"])}]({paper["url"]})',
    'yes' if any(stat.reference for stat in objective.needs) else '',
    couples,
    '' if _accepts(objective, _responses(objective)[-1], score=False) else 'yes',
    docstrings.code(sorted(stat.name for stat in objective.needs - _LOG_RATIO)),
  )
  return f'| {" | ".join(cells)} |'


def section(build: Callable[..., Any]) -> str:
  """The section of an objective, or a DocstringError that names it."""
  doc, objective = docstrings.Docstring.of(build), _built(build)
  doc.paper()
  responses = _responses(objective)
  facts = [
    f'**Needs** {docstrings.code(sorted(stat.name for stat in objective.needs))}',
    f'reference: {"yes" if any(stat.reference for stat in objective.needs) else "no"}',
    f'couples rows: {"yes" if objective.couples_rows else "no"}',
    'any N' if len(responses) == 3 else f'N = {" or ".join(map(str, responses))}',
    *(['remembers batches'] if objective.memory.initial else []),
    *([] if _accepts(objective, responses[-1], score=False) else ['reads scores']),
    *(['all this with `dpo()` inside'] if _wraps(build) else []),
  ]
  tunable = any(p.default is not p.empty for p in inspect.signature(build).parameters.values())
  source = f': {docstrings.escaped(doc.section("Defaults"))}' if tunable else ' has no hyper-parameters.'
  items = [f'`{_signature(build)}`{source}', ' · '.join(facts), *map(docstrings.cited, doc.references())]
  return '\n\n'.join(
    (
      f'### [`{doc.name}`]({_link(build)})',
      docstrings.escaped(doc.summary),
      docstrings.fenced(doc.equation('loss')),
      '\n'.join(f'- {item}' for item in items),
    )
  )


def measure_section(build: Callable[..., Any]) -> str:
  """The section of a risk measure, or a DocstringError that names it."""
  doc = docstrings.Docstring.of(build)
  gradient = re.search(r'gradient in the values is (.+)\.$', doc.section('Returns'))
  if not gradient:
    raise docstrings.DocstringError(f'{doc.name}: "Returns:" must end in "its gradient in the values is ..."')
  formula = f'{doc.equation("value")}\n\ngradient in the values: {gradient[1]}'
  sources = [docstrings.cited(reference) for reference in doc.references() if reference]
  return '\n\n'.join(
    (
      f'### [`{doc.name}`]({_link(build)})',
      docstrings.escaped(doc.summary),
      docstrings.fenced(formula),
      '\n'.join(f'- {item}' for item in (f'`{_signature(build)}`', *sources)),
    )
  )


def _link(build: Callable[..., Any]) -> str:
  return f'../{build.__module__.replace(".", "/")}.py'


def _families(builds: Iterable[Callable[..., Any]]) -> list[tuple[ModuleType, list[Callable[..., Any]]]]:
  """Factories by their file, in the order of the file; first the pairwise ones, whose notation others share."""

  def key(build: Callable[..., Any]) -> tuple[bool, str, int]:
    return not build.__module__.endswith('.pairwise'), build.__module__, inspect.unwrap(build).__code__.co_firstlineno

  grouped = itertools.groupby(sorted(builds, key=key), key=lambda build: build.__module__)
  return [(sys.modules[name], list(group)) for name, group in grouped]


def page() -> str:
  """The whole of docs/objectives.md."""
  families = _families(objectives.OBJECTIVES.values())
  table, parts = [texts.OVERVIEW_HEADER], []
  for module, builds in families:
    family = module.__name__.rpartition('.')[2]
    table += [f'| **[{family}](#{family})** | | | | | |', *map(overview_row, builds)]
    parts += [
      f'## {family}',
      docstrings.escaped(docstrings.paragraphs(module)[0]),
      *docstrings.prose(module),
      *map(section, builds),
    ]
  measures = [build for _, builds in _families(risk.MEASURES.values()) for build in builds]
  notation = [text for text in docstrings.paragraphs(risk.measures) if text.startswith('Notation')]
  parts += [
    '## Risk measures',
    texts.RISK,
    *map(docstrings.escaped, map(docstrings.joined, notation)),
    *map(measure_section, measures),
  ]
  blocks = (
    texts.HEAD,
    '\n'.join(table),
    texts.NAMES,
    texts.compositions(),
    '## Notation',
    *docstrings.prose(preference),
    *parts,
  )
  return '\n\n'.join(block.strip() for block in blocks) + '\n'


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'no arguments are taken: {argv[1:]}')
  text = page()
  if not _CHECK.value:
    PAGE.write_text(text, encoding='utf-8')
  elif not PAGE.exists() or PAGE.read_text(encoding='utf-8') != text:
    sys.exit('docs/objectives.md is out of date; write it anew: python -m docs.pages.objectives_page')


if __name__ == '__main__':
  app.run(main)
