"""alignjax: aligning language models with preferences by pure, composable, jit-compiled objectives.

`import alignjax` is enough in a notebook: its names are imported when they are first used.
"""

import importlib
from typing import Any

__version__ = '0.1.0'

_PACKAGES = ('merging', 'objectives', 'optim', 'risk', 'stats')
_NAMES = {
  'Memory': 'objectives.base',
  'Objective': 'objectives.base',
  'PreferenceBatch': 'types',
  'Term': 'types',
  'WeightedSum': 'types',
  'factory': 'objectives.base',
  'fit': 'run.notebook',
  'load': 'run.notebook',
  'one_batch': 'run.notebook',
  'read': 'run.notebook',
  'table': 'run.notebook',
}

__all__ = [*_NAMES, *_PACKAGES]


def __getattr__(name: str) -> Any:
  if name in _PACKAGES:
    return importlib.import_module(f'{__name__}.{name}')
  if name in _NAMES:
    value = getattr(importlib.import_module(f'{__name__}.{_NAMES[name]}'), name)
    globals()[name] = value
    return value
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
