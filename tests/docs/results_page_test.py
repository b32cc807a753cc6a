"""The page of results: what the studies wrote, and nothing else."""

import importlib
import json

import pytest

from docs.pages import results_page


def write(folder, table):
  folder.mkdir(parents=True)
  (folder / 'table.md').write_text(table)
  (folder / 'figure.png').write_bytes(b'a figure')
  summary = {
    'setting': {'seeds': 3, 'betas': [0.01, 0.1]},
    'costs': {'seconds': {'total': 9.0}, 'processor_seconds': 754.0},
    'curves': [1, 2],
  }
  (folder / 'summary.json').write_text(json.dumps(summary))
  return folder


def test_the_page_holds_the_table_of_a_stored_run(tmp_path):
  run = write(tmp_path / 'runs' / 'over_optimisation', '# A title\n\n| a |\n| --- |\n| 0.5 |\n\n- fails: it is 0.1\n')
  results_page.store(run, tmp_path / 'results')
  page = results_page.pages(tmp_path / 'results')['results.md']
  for text in (
    '## Importance weighting against over-optimisation',
    '[Nguyen et al. 2025](https://arxiv.org/abs/2506.08681)',
    '13 minutes of processor time here: `python -m experiments.toy.over_optimisation`',
    '**A title**\n\n| a |\n| --- |\n| 0.5 |\n\n- fails: it is 0.1',
    'Setting: seeds 3, betas 0.01 0.1.',
  ):
    assert text in page, text
  assert (tmp_path / 'results' / 'over_optimisation' / 'figure.png').read_bytes() == b'a figure'
  assert 'adaptive_margin' not in page
  write(tmp_path / 'again' / 'over_optimisation', '- another')
  results_page.store(tmp_path / 'again' / 'over_optimisation', tmp_path / 'results')
  assert '- another' in results_page.pages(tmp_path / 'results')['results.md']


def test_what_is_no_run_of_a_study_is_refused(tmp_path):
  with pytest.raises(ValueError, match='other: is none of the studies over_optimisation, '):
    results_page.store(tmp_path / 'other')
  (tmp_path / 'nested_risk').mkdir()
  with pytest.raises(ValueError, match=r'nested_risk: has no table\.md, figure\.png, summary\.json'):
    results_page.store(tmp_path / 'nested_risk')


@pytest.mark.parametrize(('name', 'study'), results_page.STUDIES.items())
def test_every_study_is_a_program(name, study):
  assert importlib.import_module(f'experiments.{study.package}.{name}').PROGRAM.name == name
