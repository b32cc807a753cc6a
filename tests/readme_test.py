"""The examples of the README and of docs/architecture.md run, and the README's table lists every objective."""

import math
import pathlib
import re
import textwrap

import jax
import numpy as np
import pytest

from alignjax import objectives, risk, stats, testing, types
from alignjax.data.reading import readers, sources
from alignjax.objectives import base, preference
from docs.pages import objectives_page
from tests import fixtures

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text(encoding='utf-8')
EXAMPLES = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
ARCHITECTURE = (ROOT / 'docs' / 'architecture.md').read_text(encoding='utf-8')


def test_the_notebook_example_runs_and_prints_one_loss_per_prompt(capsys):
  example, _ = EXAMPLES
  exec(compile(example, 'README.md', 'exec'), {})  # our own text
  printed = capsys.readouterr().out
  losses = np.array([float(number) for number in re.findall(r'[\d.]+', printed)])
  assert losses.shape == (1,)
  assert np.all(np.isfinite(losses))


def test_the_objective_of_the_readme_keeps_the_contract():
  names = {'__name__': 'mine'}
  exec(compile(EXAMPLES[1], 'README.md', 'exec'), names)  # our own text
  try:
    testing.check_objective(names['mine'](), at_reference=math.log(2.0))
  finally:
    del objectives.OBJECTIVES['mine']  # other tests look at all objectives


def test_the_table_lists_every_objective_beside_the_file_that_defines_it():
  rows = re.findall(r'^\| \[(\w+)\]\((alignjax/objectives/\1\.py)\) \| ([^|]+) \|', README, re.MULTILINE)
  listed = [(name, path) for _, path, names in rows for name in re.findall(r'`(\w+)`', names)]
  defined = [(name, f'{build.__module__.replace(".", "/")}.py') for name, build in objectives.OBJECTIVES.items()]
  assert sorted(listed) == sorted(defined)
  assert all((ROOT / path).exists() for _, path in listed)


def test_every_form_and_kind_of_data_is_named():
  (table,) = re.findall(r'^\| form \|.*\n\|---.*\n((?:\|.*\n)+)', README, re.MULTILINE)
  named = [name for line in table.splitlines() for name in re.findall(r'`(\w+)`', line.split('|')[1])]
  assert sorted(named) == sorted(sources.FORMS)
  (paragraph,) = re.findall(r'Data is named by.*?\n\n', README, re.DOTALL)
  assert set(re.findall(r'`(\.\w+(?:\.gz)?)`', paragraph)) == set(readers.ENDINGS)
  assert all(f'`{scheme}:' in paragraph for scheme in readers.SCHEMES)
  for expression in re.findall(r'`(\w+:[^`]+\.[^`]+|\w+:hf:[^`]+)`', paragraph):
    assert sources.parse_expression(expression).location != expression


def test_every_risk_measure_is_named():
  (line,) = re.findall(r'The risk measures are ([^(]+)\(', README)
  assert set(re.findall(r'`(\w+)`', line)) == set(risk.MEASURES)


@pytest.mark.parametrize('expression', re.findall(r'`((?:\w+\([^`]*\)[ +*\d.]*)+)`', README))
def test_expressions_can_be_read(expression):
  assert isinstance(objectives.parse(expression), objectives.Objective)


def test_the_example_of_an_objective_in_the_architecture_is_one(tmp_path):
  (example,) = re.findall(r'```python\n(.*?)```', ARCHITECTURE, re.DOTALL)
  names = {'__name__': 'mine', 'base': base, 'jax': jax, 'preference': preference, 'stats': stats}
  names |= {'PreferenceBatch': types.PreferenceBatch, 'Term': types.Term}
  path = tmp_path / 'mine.py'
  path.write_text(textwrap.dedent(example), encoding='utf-8')
  exec(compile(path.read_text(encoding='utf-8'), path, 'exec'), names)  # our own text
  del objectives.OBJECTIVES['my_loss']  # other tests look at all objectives
  batch = fixtures.preference_batch(0)
  losses = []
  for objective in (names['my_loss'](beta=0.3), objectives.dpo(beta=0.3)):
    table = stats.from_logits(objective.needs, fixtures.logits(1, batch), fixtures.logits(2, batch), batch)
    losses.append(objective.apply(table, batch).loss)
  np.testing.assert_allclose(*losses, rtol=1e-6)
  objectives_page.section(names['my_loss'])  # its docstring lacks nothing


@pytest.mark.parametrize(('text', 'folder'), [(README, ROOT), (ARCHITECTURE, ROOT / 'docs')], ids=['readme', 'docs'])
def test_linked_files_exist(text, folder):
  links = re.findall(r'\]\((?!https?:)([^)#]+)\)', text)
  assert links
  assert [link for link in links if not (folder / link).exists()] == []
