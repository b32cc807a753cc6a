"""Registers factories by name, so that expressions can use them."""

from collections.abc import Callable, Mapping, Sequence
import inspect
from typing import Any


def add[F: Callable[..., Any]](registry: dict[str, Callable[..., Any]], build: F, noun: str) -> F:
  """Registers a function under its own name.

  Registering the same function again replaces it, for example when a notebook cell runs twice.

  Args:
    registry: factories by name.
    build: the function.
    noun: plural noun for the contents of the registry in messages: 'objectives'.

  Returns:
    The function.

  Raises:
    ValueError: another function is registered under this name.
  """
  other = registry.get(build.__name__)
  if other is not None and _origin(other) != _origin(build):
    raise ValueError(
      f'two {noun} are called {build.__name__}: one in {_place(other)}, one in {_place(build)}. Rename one of them'
    )
  registry[build.__name__] = build
  return build


def expression(build: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
  """Formats the call of a factory, including defaults: 'ties(density=0.5, scale=1.0)'."""
  bound = inspect.signature(build).bind(*args, **kwargs)
  bound.apply_defaults()
  arguments = ', '.join(f'{name}={value!r}' for name, value in bound.arguments.items())
  return f'{build.__name__}({arguments})'


def _origin(build: Callable[..., Any]) -> tuple[str, str]:
  return build.__module__, build.__qualname__


def _place(build: Callable[..., Any]) -> str:
  code = getattr(inspect.unwrap(build), '__code__', None)
  return build.__module__ if code is None else f'{code.co_filename}:{code.co_firstlineno}'
