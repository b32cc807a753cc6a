"""Every look into a folder is known: by one process for all, or at files that all have, or where nothing follows.

Processes that share a folder may see it differently for a while. If one of them decides by its own view whether a
collective follows, the others wait for ever.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent / 'alignjax'
LOOKS = {
  'exists',
  'file_names',
  'isdir',
  'is_dir',
  'isfile',
  'is_file',
  'iterdir',
  'glob',
  'rglob',
  'listdir',
  'scandir',
  'stat',
  'walk',
}
PACKAGES = ('training', 'run', 'models', 'data')
GUARDS = ('process_index() == 0', 'process_index() != 0', 'from_first(', 'on_first(')

# Process 0 looks, and tells the others. The value is the function in which it is chosen.
FIRST = {
  'training/checkpoint.py:Checkpoints._set_aside.move': 'training/checkpoint.py:Checkpoints._set_aside',
  'training/metrics.py:_lines_up_to': 'training/metrics.py:JsonlWriter.__init__',
  'training/mirror.py:Copy.flush': 'training/mirror.py:Copy.__init__',
  'training/mirror.py:mirrored': 'training/mirror.py:mirrored',
  'training/owner.py:owned': 'training/owner.py:owned',
  'training/owner.py:_locked': 'training/owner.py:owned',
  'training/step_folders.py:remove_unfinished.remove': 'training/step_folders.py:remove_unfinished',
  'run/exports.py:_must_write.find': 'run/exports.py:_must_write',
  'run/model_card.py:_repository': 'run/model_card.py:render',
  'run/model_card.py:_results': 'run/model_card.py:render',
  'run/parts.py:_read': 'run/parts.py:Parts.get',
  'run/trackers.py:writers': 'run/trackers.py:writers',
  'run/exports.py:export.export_model': 'run/exports.py:export.export_model',
  'run/reward_scales.py:after': 'run/exports.py:export.export_model',
  'models/manifest.py:fault': 'run/exports.py:_must_write',
  'run/labelling.py:Store.start': 'run/labelling.py:label',
  'run/first_start.py:_kept': 'run/first_start.py:date',
  'run/first_start.py:_saved': 'run/first_start.py:date',
  'run/merge_folders.py:merge': 'commands/merge.py:run',
  'run/merge_folders.py:_tokenizer': 'commands/merge.py:run',
  'run/training.py:_evaluation_owed.without_results': 'run/training.py:_evaluation_owed',
  'models/folders.py:replacing': 'models/checkpoint_io.py:save',
  'models/folders.py:copy_assets': 'models/checkpoint_io.py:save',
  'models/folders.py:_check_replaceable': 'models/checkpoint_io.py:save',
  'models/manifest.py:write': 'models/checkpoint_io.py:save',
  'data/batches/reference_cache.py:prepare': 'training/caching.py:complete',
  'data/batches/reference_cache.py:sound': 'training/caching.py:complete',
}
# All processes look until they see what process 0 sees.
AGREED = {'training/step_folders.py:steps', 'training/step_folders.py:_numbered'}
# Files that the user names and the run does not change. If processes differ, that is an error before the first step.
INPUTS = {
  'run/evaluating.py:subjects',
  'models/fingerprints.py:of',
  'run/locations.py:_is_local',
  'models/naming.py:resolve',
  'run/locations.py:resolve_data',
  'run/user_code.py:_hash',
  'models/checkpoint_io.py:_open_leaves',
  'models/checkpoint_io.py:load_config',
  'models/folders.py:_conversion',
  'models/folders.py:_weight_files',
  'models/manifest.py:sha256',
  'models/manifest.py:_check',
  'models/manifest.py:_compare',
  'models/peft.py:load',
  'models/classifiers.py:_padding_of_tokenizer',
  'models/reward_scale.py:read',
  'training/rollout_files.py:numbered',  # rounds of data; those of the run itself are deleted by process 0
  'data/reading/catalogue.py:_find',
  'data/reading/catalogue.py:_prepared',
  'data/reading/fingerprints.py:obstacle',
  'data/reading/fingerprints.py:state',
  'data/reading/readers.py:_check_regular',
  'data/reading/sources.py:_check_exists',
  'data/tokens/artefact.py:identity',
  'data/tokens/artefact.py:_code',
  'data/tokens/tokenizer_files.py:load_backend',
  'data/tokens/tokenizer_files.py:load_json',
  'data/tokens/tokenizer_files.py:load_template',
}
# One process alone, or no collective follows.
ALONE = {
  'run/command_line.py:_recorded',
  'run/evaluating.py:_checkpoints.checkpoint',
  'run/merge_folders.py:merge_adapter',
  'run/smollm2.py:convert',
  'run/smollm2.py:folder',
  'run/sweeping.py:Record.__init__',
  'run/arithmetic.py:cpu_features',
  'data/builders/__init__.py:build',
  'data/builders/base.py:PreferenceBuilder._find',
  'data/tokens/artefact.py:obtain',  # by process 0 for all, or by a process for itself
}


def functions(tree):
  """All functions of a module by their qualified names; the module itself under ''."""
  found = {'': tree}

  def visit(node, prefix):
    for child in ast.iter_child_nodes(node):
      name = prefix
      if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        name = f'{prefix}.{child.name}' if prefix else child.name
        found[name] = child
      visit(child, name)

  visit(tree, '')
  return found


def looks(tree):
  """The qualified names of the functions that look into a folder, each by the innermost function that does."""
  found = set()

  def visit(node, name):
    for child in ast.iter_child_nodes(node):
      inner = name
      if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        inner = f'{name}.{child.name}' if name else child.name
      if isinstance(child, ast.Call):
        called = child.func.attr if isinstance(child.func, ast.Attribute) else getattr(child.func, 'id', '')
        on_ast = isinstance(child.func, ast.Attribute) and getattr(child.func.value, 'id', '') == 'ast'
        if called in LOOKS and not on_ast:
          found.add(name)
      visit(child, inner)

  visit(tree, '')
  return found


def all_looks():
  for package in PACKAGES:
    for file in sorted((ROOT / package).rglob('*.py')):
      yield from (f'{file.relative_to(ROOT)}:{name}' for name in looks(ast.parse(file.read_text())))


def test_every_look_into_a_folder_has_a_reason():
  assert set(all_looks()) == set(FIRST) | AGREED | INPUTS | ALONE


@pytest.mark.parametrize('place', sorted(set(FIRST.values())))
def test_process_0_is_chosen_where_the_table_says_so(place):
  file, _, name = place.partition(':')
  source = (ROOT / file).read_text()
  body = ast.get_source_segment(source, functions(ast.parse(source))[name])
  assert any(guard in body for guard in GUARDS), place


def test_a_look_is_found_wherever_it_is():
  source = """
def f(folder):
  return [path for path in folder.iterdir()]
class C:
  def g(self):
    def h():
      if os.path.exists('x'):
        pass
    return h
def nothing():
  for node in ast.walk(tree): pass
"""
  assert looks(ast.parse(source)) == {'f', 'C.g.h'}
