"""A module imports only from lower layers, and those of L1 never from each other: docs/architecture.md, by machine."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parent.parent
LEVEL = {
  'types': 0,
  'numerics': 0,
  'expressions': 0,
  'models': 1,
  'merging': 1,
  'risk': 1,
  'data': 1,
  'parallel': 1,
  'optim': 1,
  'stats': 2,
  'objectives': 3,
  'sampling': 4,
  'rewards': 4,
  'evaluation': 4,
  'training': 5,
  'run': 6,
  'commands': 7,
}
ISOLATED = 1  # packages of this level do not import each other
FORBIDDEN = {
  # A notebook that composes objectives needs no model, no data and no optimizer.
  'objectives': {'models', 'data', 'parallel', 'optax'},
  'stats': {'models', 'data', 'parallel', 'optax'},
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
  units = {path.stem if path.is_file() else path.name for path in (ROOT / 'alignjax').iterdir()}
  assert units - {'__init__', '__pycache__'} == set(LEVEL)


def test_imports_point_downwards():
  found = []
  for path in sorted((ROOT / 'alignjax').rglob('*.py')):
    importer = path.relative_to(ROOT / 'alignjax').parts[0].removesuffix('.py')
    if importer != '__init__':
      found += violations(path, importer)
  assert found == []


def test_a_violation_is_seen(tmp_path):
  source = tmp_path / 'bad.py'
  source.write_text('from alignjax.training import step\nimport optax\nfrom experiments import config\n')
  assert len(violations(source, 'objectives')) == 3
  assert violations(source, 'training') == ['bad.py: the library imports experiments.config']
  source.write_text('from alignjax.models import base\n')
  assert len(violations(source, 'data')) == 1
  assert violations(source, 'sampling') == []
