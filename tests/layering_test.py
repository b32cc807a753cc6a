"""A module imports only from lower layers, and those of L1 never from each other: docs/architecture.md, by machine."""

import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
LEVEL = {
  'types': 0,
  'causes': 0,
  'exit_codes': 0,
  'refusals': 0,
  'stopping': 0,
  'numerics': 0,
  'expressions': 0,
  'files': 0,
  'hub': 0,
  'paths': 0,
  'registry': 0,
  'storage': 0,
  'transfers': 0,
  'models': 1,
  'merging': 1,
  'risk': 1,
  'data': 1,
  'parallel': 1,
  'optim': 1,
  'stats': 2,
  'objectives': 3,
  'pretrained': 4,
  'sampling': 4,
  'rewards': 4,
  'judges': 4,
  'evaluation': 4,
  'training': 5,
  'doctor': 6,
  'report': 6,
  'planning': 6,
  'run': 6,
  'testing': 6,
  'commands': 7,
  '__main__': 7,
}
ISOLATED = 1  # packages of this level do not import each other
# Within a package: a folder imports only from the ones that it names. Files beside the folders import nothing of them.
WINGS = {
  'data': {'reading': set(), 'builders': {'reading'}, 'tokens': {'reading'}, 'batches': {'tokens', 'reading'}},
}
FLOORS = {'data': 9}  # modules in the longest chain of imports within a package
FORBIDDEN = {
  # A notebook that composes objectives needs no model, no data and no optimizer.
  'objectives': {'models', 'data', 'parallel', 'optax'},
  'stats': {'models', 'data', 'parallel', 'optax'},
  # A run assembles the examinations; none of them knows a run.
  'doctor': {'run', 'testing'},
}


def imports(path):
  """Full names of all modules that a file imports, `from package import module` included."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}:{node.lineno}: a relative import'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def unit(name):
  """The package or top module of alignjax that a full module name belongs to, or None."""
  parts = name.split('.')
  return parts[1] if parts[0] == 'alignjax' and len(parts) > 1 and parts[1] in LEVEL else None


def violations(source, importer):
  """What is wrong with the imports of one file of the package `importer`."""
  found = []
  for name in imports(source):
    imported = unit(name)
    if name.split('.')[0] == 'experiments':
      found.append(f'{source.name}: the library imports {name}')
    elif name.split('.')[0] in FORBIDDEN.get(importer, ()) or imported in FORBIDDEN.get(importer, ()):
      found.append(f'{source.name}: {importer} imports {name}')
    elif imported is not None and imported != importer:
      higher = LEVEL[imported] > LEVEL[importer]
      sideways = LEVEL[imported] == LEVEL[importer] == ISOLATED
      if higher or sideways:
        found.append(f'{source.name}: {importer} (L{LEVEL[importer]}) imports {name} (L{LEVEL[imported]})')
  return found


def test_every_module_of_the_library_has_a_layer():
  units = {
    path.stem if path.is_file() else path.name for path in (ROOT / 'alignjax').iterdir() if path.name != 'py.typed'
  }
  assert units - {'__init__', '__pycache__'} == set(LEVEL)


def test_imports_point_downwards():
  found = []
  for path in sorted((ROOT / 'alignjax').rglob('*.py')):
    importer = path.relative_to(ROOT / 'alignjax').parts[0].removesuffix('.py')
    if importer != '__init__':
      found += violations(path, importer)
  assert found == []


def wing_violations(source, package, wing):
  """Imports of one file of a wing from wings of its package that it may not use."""
  allowed = {wing} | WINGS[package][wing]
  imported = [name.split('.') for name in imports(source)]
  names = [parts for parts in imported if parts[:2] == ['alignjax', package] and parts[2] in WINGS[package]]
  return [f'{source.name}: {wing} imports {".".join(parts)}' for parts in names if parts[2] not in allowed]


def longest_chain(package):
  """The modules of the longest chain of imports within a package. Empty `__init__` files do not count."""
  modules = {}
  for path in (ROOT / 'alignjax' / package).rglob('*.py'):
    if path.stat().st_size:
      parts = path.relative_to(ROOT).with_suffix('').parts
      modules['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = path

  @functools.cache
  def chain(name):
    inner = {each if each in modules else each.rpartition('.')[0] for each in imports(modules[name])}
    return max(((name, *chain(each)) for each in (inner & modules.keys()) - {name}), key=len, default=(name,))

  return max(map(chain, modules), key=len)


@pytest.mark.parametrize('package', WINGS)
def test_wings_of_a_package_import_only_from_the_ones_before(package):
  folders = {path.name for path in (ROOT / 'alignjax' / package).iterdir() if path.is_dir()} - {'__pycache__'}
  assert folders == WINGS[package].keys()
  found = []
  for wing in WINGS[package]:
    for path in sorted((ROOT / 'alignjax' / package / wing).rglob('*.py')):
      found += wing_violations(path, package, wing)
  assert found == []


@pytest.mark.parametrize('package', FLOORS)
def test_chains_of_imports_within_a_package_are_short(package):
  chain = longest_chain(package)
  assert len(chain) <= FLOORS[package], ' -> '.join(chain)


def test_a_violation_of_the_wings_is_seen(tmp_path):
  source = tmp_path / 'bad.py'
  source.write_text('from alignjax.data.batches import order\nfrom alignjax.data.reading import rows\n')
  assert wing_violations(source, 'data', 'tokens') == ['bad.py: tokens imports alignjax.data.batches.order']
  assert wing_violations(source, 'data', 'batches') == []


def test_a_violation_is_seen(tmp_path):
  source = tmp_path / 'bad.py'
  source.write_text('from alignjax.training import step\nimport optax\nfrom experiments import config\n')
  assert len(violations(source, 'objectives')) == 3
  assert violations(source, 'training') == ['bad.py: the library imports experiments.config']
  source.write_text('from alignjax.models import base\n')
  assert len(violations(source, 'data')) == 1
  assert violations(source, 'sampling') == []
  source.write_text('from alignjax.run import settings\n')
  assert violations(source, 'doctor') == ['bad.py: doctor imports alignjax.run.settings']
