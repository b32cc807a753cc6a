"""Every test runs on 8 virtual CPU devices, with implicit rank promotion refused."""

import gc
import itertools
import os
import tempfile

# Compiling takes most of the time of these tests, so the backend does not optimise, unless it is told to.
os.environ['XLA_FLAGS'] = ' '.join(
  [
    '--xla_force_host_platform_device_count=8',
    '--xla_backend_optimization_level=0',
    '--xla_allow_excess_precision=false',  # as programs set it; flags are part of the names in the compilation cache
    os.environ.get('XLA_FLAGS', ''),
  ]
)
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax
import pytest

from alignjax import objectives, risk, stats
from tests import runs
from tests.oracles import tally

jax.config.update('jax_numpy_rank_promotion', 'raise')

# Workers, and the programs that tests start, share one compilation cache. It lives as long as the run.
COMPILED = None
if 'PYTEST_XDIST_WORKER' not in os.environ:
  COMPILED = tempfile.TemporaryDirectory(prefix='alignjax_tests_')
  for option, value in {
    'jax_compilation_cache_dir': COMPILED.name,
    'jax_persistent_cache_min_compile_time_secs': 0,
    'jax_persistent_cache_min_entry_size_bytes': -1,
  }.items():
    jax.config.update(option, value)
    os.environ[option.upper()] = str(value)


def pytest_addoption(parser):
  parser.addoption('--slow', action='store_true', help='run the tests that are marked slow, too')


def pytest_collection_modifyitems(config, items):
  if not config.getoption('slow'):
    marked = [item.get_closest_marker('slow') is not None for item in items]
    config.hook.pytest_deselected(items=list(itertools.compress(items, marked)))
    items[:] = [item for item, slow in zip(items, marked, strict=True) if not slow]


def pytest_collection_finish():
  """Keeps the garbage collector from walking through all modules and tests again and again.

  Tracing allocates many objects that live as long as their program, so a collection rarely frees anything.
  """
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 20, 50)


def pytest_unconfigure():
  if COMPILED:
    COMPILED.cleanup()


def pytest_sessionfinish(session):
  """In a worker of pytest-xdist: hands over what it has recorded."""
  if hasattr(session.config, 'workeroutput'):
    session.config.workeroutput['tally'] = tally.recorded()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
  tally.merge(getattr(node, 'workeroutput', {}).get('tally', {}))


def pytest_terminal_summary(terminalreporter):
  """Says how many names there are, and how far the objectives are from their oracles."""
  if tally.summary():
    names = {'objectives': len(objectives.OBJECTIVES), 'risk': len(risk.__all__), 'stats': len(stats.__all__)}
    terminalreporter.section('oracles')
    terminalreporter.write_line('names: ' + ', '.join(f'{count} in {package}' for package, count in names.items()))
    for line in tally.summary():
      terminalreporter.write_line(line)


@pytest.fixture(scope='session')
def tiny_run(tmp_path_factory):
  """A folder with a tiny model and pairs, written once per worker. Tests read it and write elsewhere."""
  return runs.write_folder(tmp_path_factory.mktemp('tiny_run'))
