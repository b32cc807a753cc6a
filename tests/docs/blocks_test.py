"""Every block of code of the README and the pages runs or is parsed, unless a comment gives the reason why not."""

import contextlib
import dataclasses
import importlib.util
import inspect
import json
import math
import re
import shlex

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import judges, merging, objectives, rewards, stats, testing, types
from alignjax.commands import main, program
from alignjax.data.reading import drops, sources
from alignjax.objectives import base, preference
from alignjax.optim import bases, recipes, schedules
from alignjax.run import adapters, config_file, merge_folders, notebook, settings, smollm2
from alignjax.sampling import strategies
from docs.pages import objectives_page
from tests import assets, fixtures
from tests.docs import texts

REGISTRIES = (
  objectives.OBJECTIVES,
  rewards.REWARDS,
  judges.JUDGES,
  strategies.STRATEGIES,
  merging.METHODS,
  bases.BASES,
  sources.FORMS,
)
PARSERS = {
  'objective': objectives.parse,
  'rollout_objective': objectives.parse,
  'optimizer': recipes.parse_optimizer,
  'schedule': schedules.parse_shape,
  'adapter': adapters.parse_adapter,
  'method': merge_folders.parse_method,
  'strategy': strategies.parse,
}
DATA = ('data', 'eval_data', 'prompts')
FORMS_OF_SAMPLES = ('preference', 'unpaired', 'conversation', 'supervised', 'alpaca', 'text', 'scored', 'ranked')
BY_ID = {block.id: block for block in texts.blocks('sh', 'python', 'json', 'yaml')}


def of_kind(kind):
  return [block for block in BY_ID.values() if block.kind == kind]


@pytest.fixture(name='registered')
def own_code():
  """Registers the user's own functions that the pages define or mention; other tests see all registered names."""
  before = [dict(registry) for registry in REGISTRIES]
  yield
  for registry, names in zip(REGISTRIES, before, strict=True):
    registry.clear()
    registry.update(names)


@pytest.fixture(name='mine', scope='module')
def registered_for_commands():
  before = [dict(registry) for registry in REGISTRIES]
  for block in of_kind('python'):
    if block.page == 'docs/extending.md' and '.factory' in block.text and 'base.factory' not in block.text:
      exec(compile(block.text, block.id, 'exec'), {'__name__': 'mine'})  # our own text
  yield
  for registry, names in zip(REGISTRIES, before, strict=True):
    registry.clear()
    registry.update(names)


def test_reasons_are_given_and_no_kind_of_block_is_forgotten():
  kinds = {kind for text in texts.PAGES.values() for kind in re.findall(r'^ *```(\w+)$', text, re.MULTILINE)}
  assert kinds <= {'sh', 'python', 'json', 'yaml', 'text'}
  assert all(len(block.reason) > 10 for block in BY_ID.values() if block.reason)
  assert sum(block.reason is not None for block in BY_ID.values()) <= 8


@contextlib.contextmanager
def naming(block, command):
  try:
    yield
  except SystemExit as error:
    raise AssertionError(f'{block.id}: {shlex.join(command)} is refused') from error


@pytest.mark.usefixtures('mine')
def test_commands_of_alignjax_have_known_flags_and_expressions(capsys):
  count = 0
  for block in of_kind('sh'):
    for command in texts.commands(block):
      if command[0] == 'alignjax' and block.reason is None:
        with naming(block, command):
          check_alignjax(command)
        count += 1
  assert not capsys.readouterr().err
  assert count > 40


def check_alignjax(command):
  found, argv = main.PROGRAM, list(command)
  while isinstance(found, program.Group):
    found, argv = found.choose(argv)
  if found.name == 'sweep':  # its other flags are those of train, with places in braces
    found, argv = main.PROGRAM.load('train'), [re.sub(r'\{\w+\}', '0.1', each) for each in argv]
    argv = [each for each in argv if not each.startswith(('--grid=', '--out='))] + ['--workdir=x']
  parsed = program._parse(found, argv, flags.FlagValues())
  values = getattr(parsed, 'config', parsed)
  for name, parse in PARSERS.items():
    text = getattr(values, name, '')
    if text and not (name == 'adapter' and found.name != 'train'):
      parse(text)
  for name in DATA:
    given = getattr(values, name, ())
    for text in [given] if isinstance(given, str) else given:
      if text and not text.startswith('rollouts:'):
        assert sources.parse_expression(text).form in sources.FORMS
  for name in ('reward', 'proxy'):
    check_reward(getattr(values, name, ''))


def check_reward(text):
  """Parses a reward; a model that it names does not exist here."""
  if text:
    rewards.parse(re.sub(r'reward_model\("[^"]*"\)', 'missing_end(1.0)', text))


def test_other_commands_exist():
  makefile = (texts.ROOT / 'Makefile').read_text()
  extras = re.search(r'extras_require=\{(.*?)\n  \}', (texts.ROOT / 'setup.py').read_text(), re.DOTALL)[1]
  for block in of_kind('sh'):
    for command in texts.commands(block):
      words = [word for word in command if not re.fullmatch(r'[A-Z_]+=.*', word)]
      if words[0] == 'alignjax' or block.reason:
        continue
      known = {
        'make': lambda words: re.search(rf'^{words[1]}:', makefile, re.MULTILINE),
        'python': lambda words: words[1] == '-m' and importlib.util.find_spec(words[2]),
        'pip': lambda words: all(
          f"'{name}'" in extras
          for word in words
          for found in re.findall(r'\[(.*?)\]', word)
          for name in found.split(',')
        ),
        'git': lambda words: words[1] in ('clone', 'config', 'switch'),
        'cd': lambda words: True,
        'pre-commit': lambda words: (texts.ROOT / '.pre-commit-config.yaml').exists(),
      }
      if words[0].startswith('launch/'):
        assert (texts.ROOT / words[0]).exists(), block.id
      else:
        assert words[0] in known, f'{block.id}: {words[0]}: mark the block with the reason why it is not run'
        assert known[words[0]](words), f'{block.id}: {shlex.join(command)}'


@pytest.fixture(name='folder', scope='module')
def tiny_model(tmp_path_factory):
  return assets.write_tiny_model(tmp_path_factory.mktemp('tiny'), layers=1)


RUN = [block for block in of_kind('python') if block.reason is None and 'def my_loss' not in block.text]


# merging/base_test.py merges trees by ties, too.
CASES = [
  pytest.param(
    block, id=block.id, marks=pytest.mark.slow if block.page == 'docs/merging.md' and 'ties' in block.text else ()
  )
  for block in RUN
]


def bound(*args, **kwargs):
  """Checks the arguments of `alignjax.fit` without training."""
  given = inspect.signature(notebook.fit).bind(*args, **kwargs).arguments
  objectives.check_batch(given['objective'], given['examples'].fields, given['examples'].responses)
  return notebook.Fitted(given['loaded'], [{'step': 1, 'reward_margin': 0.0}])


@pytest.mark.usefixtures('registered')
@pytest.mark.parametrize('block', CASES)
def test_python_runs(block, folder, tmp_path, monkeypatch, capsys, request):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv(smollm2.VARIABLE, str(folder))
  if not request.config.getoption('slow'):
    monkeypatch.setattr('alignjax.fit', bound)
    monkeypatch.setattr('alignjax.testing.check_objective', lambda objective: None)  # contract_test.py runs it
  scope = {'__name__': 'mine'}
  exec(compile(block.text, block.id, 'exec'), scope)  # our own text
  if 'print(' in block.text:
    numbers = re.findall(r'-?\d+\.\d+', capsys.readouterr().out)
    assert numbers
  assert all(leaf is not None for leaf in jax.tree.leaves(scope.get('merged', 0)))


def defined(marker, path=None):
  """What the block with a marker defines, with the imports that the example in the library has around it."""
  (block,) = (block for block in of_kind('python') if marker in block.text)
  names = {'__name__': 'mine', 'base': base, 'jax': jax, 'preference': preference, 'stats': stats}
  names |= {'PreferenceBatch': types.PreferenceBatch, 'Term': types.Term}
  if path is not None:
    path.write_text(block.text, encoding='utf-8')
  exec(compile(block.text, path or block.id, 'exec'), names)  # our own text
  return names


@pytest.mark.usefixtures('registered')
def test_the_objectives_that_are_defined_are_dpo():
  mine, my_loss = defined('# mine.py')['mine'], defined('def my_loss')['my_loss']
  batch = fixtures.preference_batch(0)
  batch = dataclasses.replace(batch, label=jnp.ones_like(batch.label))
  losses = []
  for objective in (mine(beta=0.3), my_loss(beta=0.3), objectives.dpo(beta=0.3)):
    table = fixtures.from_logits(objective.needs, fixtures.logits(1, batch), fixtures.logits(2, batch), batch)
    losses.append(objective.apply(table, batch).loss)
  np.testing.assert_allclose(losses[:2], [losses[2]] * 2, rtol=1e-6)


@pytest.mark.usefixtures('registered')
def test_the_docstring_of_the_example_lacks_nothing(tmp_path):
  names = defined('def my_loss', tmp_path / 'mine.py')  # the section reads the source
  objectives_page.section(names['my_loss'])


@pytest.mark.slow  # the same loss as that of `dpo`, above, which contract_test.py checks
@pytest.mark.usefixtures('registered')
def test_the_first_objective_of_extending_keeps_the_contract():
  testing.check_objective(defined('# mine.py')['mine'](), at_reference=math.log(2.0))


def test_rows_of_the_pages_can_be_read():
  for block in of_kind('json'):
    rows = [json.loads(line) for line in block.text.splitlines()]
    forms = (*FORMS_OF_SAMPLES, 'prompts') if block.page == 'docs/data.md' else ['preference'] * len(rows)
    for form, row in zip(forms, rows, strict=True):
      report = drops.DropReport()
      assert sources.FORMS[form].parse(row, ()).prompt is not None, block.id
      del report


def test_files_of_settings_can_be_read(tmp_path):
  for block in of_kind('yaml'):
    if block.reason is None:
      path = tmp_path / 'run.yaml'
      path.write_text(block.text, encoding='utf-8')
      assert isinstance(config_file.load(str(path)).config, settings.Config)
