"""The README's example runs, and its table lists every objective."""

import pathlib
import re

import numpy as np

from alignjax import objectives

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text(encoding='utf-8')


def test_the_notebook_example_runs_and_prints_one_loss_per_prompt(capsys):
  (example,) = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
  exec(compile(example, 'README.md', 'exec'), {})  # our own text
  printed = capsys.readouterr().out
  losses = np.array([float(number) for number in re.findall(r'[\d.]+', printed)])
  assert losses.shape == (1,)
  assert np.all(np.isfinite(losses))


def test_the_table_lists_every_objective_with_a_file_that_exists():
  rows = dict(re.findall(r'^\| `(\w+)\(.*\]\((alignjax/[\w/.]+)\) \|$', README, re.MULTILINE))
  assert set(rows) == set(objectives.OBJECTIVES)
  for name, path in rows.items():
    assert f'def {name}(' in (ROOT / path).read_text(encoding='utf-8')


def test_linked_files_exist():
  links = re.findall(r'\]\((?!https?:)([^)#]+)\)', README)
  assert [link for link in links if not (ROOT / link).exists()] == []
