"""The requirements of a factory on its arguments, read from the error messages in its source."""

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import inspect
import textwrap
from types import FunctionType
from typing import Any, NamedTuple

from alignjax.objectives import base


def of(build: Callable[..., Any]) -> list[str]:
  """The requirements on the arguments, such as 'beta must be positive', in the order of the source.

  They come from calls of `base.require` and from messages of ValueErrors, in the factory and in the functions that it
  calls. One argument has one requirement: the factory's own goes before that of a function that it shares with others.
  """
  arguments = list(inspect.signature(build).parameters)
  found: dict[str, str] = {}
  for requirement in _requirements(inspect.unwrap(build), frozenset()):
    if requirement.argument in arguments and requirement.argument not in found:
      found[requirement.argument] = requirement.text()
  return list(found.values())


class _Requirement(NamedTuple):
  argument: str
  message: ast.expr
  names: Mapping[str, Any]  # the values of the names in the message

  def text(self) -> str:
    expression = ast.fix_missing_locations(ast.Expression(self.message))
    return eval(compile(expression, '<message>', 'eval'), dict(self.names))


def _requirements(function: FunctionType, seen: frozenset[FunctionType]) -> Iterator[_Requirement]:
  """First the requirements of the function itself, then those of the functions that it calls."""
  tree, names = _tree(function), function.__globals__
  calls = [(node, _called(node, names)) for node in ast.walk(tree) if isinstance(node, ast.Call)]
  for call, called in calls:
    if called is base.require:
      yield _Requirement(ast.unparse(call.args[3]), call.args[2], names)
  for node in ast.walk(tree):
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.args[0], ast.JoinedStr):
      # The message reads f'name: requirement, got {argument!r}'.
      *message, got = node.exc.args[0].values
      if isinstance(got, ast.FormattedValue):
        yield _Requirement(ast.unparse(got.value), _without_frame(message), names)
  for _, called in calls:
    own = isinstance(called, FunctionType) and (called.__module__ or '').startswith(('alignjax.', function.__module__))
    if own and called not in {*seen, base.require}:
      yield from _requirements(called, seen | {function})


def _without_frame(message: Sequence[ast.expr]) -> ast.expr:
  """The message without the name of the factory before the colon, and without `, got ` at the end."""
  constants = [part.value for part in message if isinstance(part, ast.Constant)]
  return ast.Constant(''.join(constants).partition(': ')[2].removesuffix(', got '))


@functools.cache
def _tree(function: FunctionType) -> ast.FunctionDef:
  (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
  return definition


def _called(call: ast.Call, names: Mapping[str, Any]) -> Any:
  """The function that a call names, if it is one of a module: `require` or `base.require`."""
  target = call.func
  if isinstance(target, ast.Name):
    return inspect.unwrap(names[target.id]) if callable(names.get(target.id)) else None
  if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
    value = getattr(names.get(target.value.id), target.attr, None)
    return inspect.unwrap(value) if callable(value) else None
  return None
