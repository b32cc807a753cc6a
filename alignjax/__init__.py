"""alignjax: aligning language models with preferences by pure, composable, jit-compiled objectives."""

from alignjax import objectives, stats
from alignjax.types import PreferenceBatch, Term, WeightedSum

__version__ = '0.1.0'

__all__ = [
  'PreferenceBatch',
  'Term',
  'WeightedSum',
  'objectives',
  'stats',
]
