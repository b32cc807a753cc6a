"""Keeps compiled programs on disk, so that the second start of the same run does not compile again."""

import hashlib
import os
import pathlib

import jax

from alignjax.run import arithmetic

OFF = 'off'
LARGEST = 4 << 30  # bytes; the programs that were not used for longest are deleted
SHORTEST = 0.5  # seconds of compiling; programs that compile faster are not kept


def keep(folder: str = '') -> str:
  """Makes JAX keep compiled programs in a folder, which it creates, readable for this user alone.

  A program is found again only by the same versions, flags and devices, and on CPUs with the same instructions. If a
  cache is configured already, such as by JAX_COMPILATION_CACHE_DIR, nothing changes.

  Args:
    folder: the folder; empty: alignjax/compiled in the user's cache folder; 'off': none.

  Returns:
    The folder in use; '' if programs are not kept.
  """
  if jax.config.jax_compilation_cache_dir:
    return jax.config.jax_compilation_cache_dir
  if folder == OFF:
    return ''
  # A home folder may be shared by machines whose CPUs lack the instructions of the programs of others.
  machine = hashlib.sha256(' '.join(sorted(arithmetic.cpu_features())).encode()).hexdigest()[:8]
  path = (pathlib.Path(folder) if folder else user_cache() / 'alignjax' / 'compiled') / machine
  try:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
  except OSError:
    return ''  # a home folder may be missing or read-only
  jax.config.update('jax_compilation_cache_dir', str(path))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', SHORTEST)
  jax.config.update('jax_compilation_cache_max_size', LARGEST)
  return str(path)


def user_cache() -> pathlib.Path:
  """The folder of the user's caches: XDG_CACHE_HOME, or ~/.cache."""
  return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache')
