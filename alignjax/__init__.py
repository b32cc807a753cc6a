"""alignjax: aligning language models with preferences by pure, composable, jit-compiled objectives."""

import importlib
from typing import Any

__version__ = '0.1.0'

__all__ = [
  'PreferenceBatch',
  'Term',
  'WeightedSum',
  'objectives',
  'stats',
]

_SUBPACKAGES = ('objectives', 'stats')


def __getattr__(name: str) -> Any:
  """Imports what is asked for when it is asked for: the command prints its help without JAX."""
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  if name in _SUBPACKAGES:
    return importlib.import_module(f'{__name__}.{name}')
  return getattr(importlib.import_module(f'{__name__}.types'), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
