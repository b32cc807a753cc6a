"""Users' own code: what is imported, under which names, and what is said about mistakes in it."""

import re
import sys

import pytest

from alignjax import expressions, judges, merging, objectives, rewards
from alignjax.optim import bases, recipes
from alignjax.run import merge_folders, user_code
from alignjax.sampling import strategies

REGISTRIES = (
  merging.METHODS,
  objectives.OBJECTIVES,
  bases.BASES,
  rewards.REWARDS,
  judges.JUDGES,
  strategies.STRATEGIES,
)
EVERYTHING = """
import numpy as np
import optax

from alignjax import judges, merging, optim, rewards
from alignjax.sampling import strategies


@optim.factory
def clipped_sgd(learning_rate, largest=1.0):
  return optax.chain(optax.clip(largest), optax.sgd(learning_rate))


@rewards.factory
def brevity():
  return lambda samples: np.array([-len(sample.response) for sample in samples], np.float64)


@judges.factory
def shorter():
  return lambda pairs: [len(a) < len(b) for prompt, a, b in pairs]


@strategies.factory
def cool():
  return strategies.temperature(0.5)


@merging.factory
def halfway():
  return merging.slerp(0.5)
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch):
  """Registries, and what has been imported, as they were."""
  saved = [dict(registry) for registry in REGISTRIES]
  monkeypatch.setattr(user_code, '_loaded', {})
  monkeypatch.setattr(sys, 'path', list(sys.path))
  yield
  for registry, entries in zip(REGISTRIES, saved, strict=True):
    registry.clear()
    registry.update(entries)


@pytest.fixture
def write(tmp_path, monkeypatch):
  """Writes a file in the current folder."""
  monkeypatch.chdir(tmp_path)

  def write(text: str, name: str = 'mine.py') -> str:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    return name

  return write


def test_every_kind_of_factory_goes_through_the_same_door(write):
  user_code.load([write(EVERYTHING)])
  recipe = recipes.parse_optimizer('chain(clipped_sgd(0.1, largest=2.0), weight_decay(0.1))')
  assert recipe.learning_rate == 0.1
  samples = [rewards.Sample('a', text, len(text), finished=True) for text in ('xyz', '')]
  assert rewards.parse('brevity()')(samples).tolist() == [-3, 0]
  assert judges.parse('shorter()').verdicts([samples, samples[::-1]]).wins.tolist() == [0, 1]
  assert strategies.parse('chain(cool(), top_k(3))')
  assert merge_folders.parse_method('halfway()').name == 'halfway()'


def test_an_optimizer_of_the_user_follows_the_schedule(write):
  user_code.load([write(EVERYTHING)])
  tx = recipes.build_optimizer(recipes.parse_optimizer('clipped_sgd(0.5, largest=2.0)'), lambda count: 0.25)
  updates, _ = tx.update({'w': 8.0}, tx.init({'w': 1.0}), {'w': 1.0})
  assert updates['w'] == -0.25 * 2.0
  with pytest.raises(expressions.ExpressionError, match=r'learning_rate=-1 must be a positive number'):
    recipes.parse_optimizer('clipped_sgd(-1)')


@pytest.mark.parametrize(
  ('body', 'message'),
  [
    ('@recipes.factory\ndef mine(rate):\n  pass\n', 'mine: needs an argument learning_rate'),
    ('@recipes.factory\ndef sgd(learning_rate):\n  pass\n', 'two optimizers are called sgd: one in .*bases.py:'),
    ('@recipes.factory\ndef weight_decay(learning_rate):\n  pass\n', 'two optimizers are called weight_decay'),
  ],
)
def test_an_optimizer_that_cannot_be_registered(write, body, message):
  with pytest.raises(ValueError, match=message):
    user_code.load([write('from alignjax.optim import bases, recipes\n' + body)])


def test_an_optimizer_that_returns_something_else(write):
  user_code.load([write('from alignjax import optim\n@optim.factory\ndef mine(learning_rate):\n  return 3\n')])
  with pytest.raises(expressions.ExpressionError, match=r'mine: must return an optax\.GradientTransformation, not int'):
    recipes.parse_optimizer('mine(0.1)')


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('x = 1\ny = x.z\n', "--import=mine.py: {file}:2: AttributeError: 'int' object has no attribute 'z'"),
    ('def f(:\n', '--import=mine.py: {file}:1: SyntaxError: '),
    ('\nimport nothing_of_this_name', '--import=mine.py: {file}:2: ModuleNotFoundError: '),
    ('raise SystemExit(3)', '--import=mine.py: {file}:1: SystemExit: 3'),
    (
      'from alignjax import rewards\n\n@rewards.factory\ndef vader():\n  pass\n',
      '--import=mine.py: {file}:3: two rewards are called vader: one in ',
    ),
    ('import json\njson.loads("{{")', '--import=mine.py: {file}:2: '),
  ],
)
def test_a_mistake_is_named_by_file_and_line(write, tmp_path, text, message):
  write(text.replace('{{', '{'))
  with pytest.raises(ValueError, match=re.escape(message.format(file=tmp_path / 'mine.py'))):
    user_code.load(['mine.py'])


@pytest.mark.parametrize(
  ('imports', 'message'),
  [
    (['nowhere.py'], '--import=nowhere.py: there is no such file'),
    (['nowhere'], 'there is no such module, neither here nor installed; to import a file, give nowhere.py'),
    (['nowhere.inside'], "--import=nowhere.inside: ModuleNotFoundError: No module named 'nowhere'"),
    (['mine.py', './mine.py'], '--import=mine.py: mine.py is imported twice'),
  ],
)
def test_what_cannot_be_found_is_refused(write, imports, message):
  write('')
  with pytest.raises(ValueError, match=re.escape(message)):
    user_code.load(imports)


def test_a_file_that_has_not_changed_is_imported_once_and_one_that_has_replaces_its_names(write):
  text = 'from alignjax import rewards\n@rewards.factory\ndef mine():\n  return lambda samples: [{}] * len(samples)\n'
  user_code.load([write(text.format(1))])
  first = rewards.REWARDS['mine']
  user_code.load(['mine.py'])
  assert rewards.REWARDS['mine'] is first
  user_code.load([write(text.format(2))])
  assert rewards.REWARDS['mine']()([rewards.Sample('a', 'b', 1, finished=True)]).tolist() == [2.0]


def test_a_module_of_a_package_here_is_imported_by_name(write):
  write('', 'own_package_of_the_test/__init__.py')
  write('from alignjax import rewards\n@rewards.factory\ndef mine():\n  pass\n', 'own_package_of_the_test/extra.py')
  user_code.load(['own_package_of_the_test.extra'])
  assert 'mine' in rewards.REWARDS


def test_fingerprints_see_contents_and_no_folders(write, tmp_path):
  write('a = 1\n')
  write('a = 1\n', 'elsewhere/mine.py')
  before = user_code.fingerprints(['mine.py'])
  assert list(before) == ['mine.py']
  assert user_code.fingerprints([str(tmp_path / 'elsewhere' / 'mine.py')]) == before
  write('a = 2\n')
  assert user_code.fingerprints(['mine.py']) != before


def test_the_fingerprint_of_a_package_is_that_of_all_its_files(write):
  write('', 'other_package_of_the_test/__init__.py')
  write('a = 1\n', 'other_package_of_the_test/inner.py')
  whole, part = (user_code.fingerprints([f'other_package_of_the_test{name}']) for name in ('', '.inner'))
  write('b = 1\n', 'other_package_of_the_test/second.py')
  assert user_code.fingerprints(['other_package_of_the_test']) != whole
  assert user_code.fingerprints(['other_package_of_the_test.inner']) == part
