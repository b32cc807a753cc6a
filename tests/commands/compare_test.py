"""`alignjax compare`: settings, metrics and curves of runs."""

import json

import pytest

from alignjax import exit_codes
from alignjax.commands import compare, program
from alignjax.run import history


def write_run(folder, config, records):
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(config | {'workdir': str(folder)}))
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
  return folder


@pytest.fixture
def runs(tmp_path):
  records = [{'step': step, 'loss': 1 / step, 'time/seconds': 0.1} for step in range(1, 41)]
  dpo = write_run(tmp_path / 'dpo', {'objective': 'dpo(beta=0.1)', 'seed': 0, 'mesh': {'data': 1}}, records)
  records = [{'step': step, 'loss': 2.0, 'margin': 'nan'} | {'eval/loss': step} for step in range(1, 21)]
  ipo = write_run(tmp_path / 'ipo', {'objective': 'ipo(tau=0.1)', 'seed': 0, 'mesh': {'data': 2}}, records)
  return dpo, ipo


def execute(*arguments):
  return program.execute(compare.PROGRAM, ['compare', *arguments])


def test_runs_differ_in_settings_by_name_whatever_their_folders(runs):
  assert history.differences([history.read(folder) for folder in runs]) == {
    'objective': ['dpo(beta=0.1)', 'ipo(tau=0.1)'],
    'mesh.data': [1, 2],
  }


def test_runs_are_given_without_a_flag(runs, tmp_path, capsys):
  """Before and after flags, as `--runs` does."""
  printed = []
  for arguments in ([f'--runs={runs[0]},{runs[1]}'], [*runs], [runs[0], '--metrics=train/loss', runs[1]]):
    assert execute(*map(str, arguments)) == exit_codes.DONE
    printed.append(capsys.readouterr().out)
  assert printed[0] == printed[1] == printed[2]
  for argument, message in (
    ('out=x', "unexpected argument 'out=x': type --out=x"),
    ('–out=x', "unexpected argument '–out=x': it starts with '–'; type --out=x"),
    ('nowhere', 'nowhere'),
  ):
    assert execute(str(runs[0]), argument) == exit_codes.REFUSED
    assert message in capsys.readouterr().err


def test_evaluations_count_by_their_last_value_and_training_by_its_last_tenth(runs):
  dpo, ipo = map(history.read, runs)
  assert dpo.last('train/loss') == pytest.approx(sum(1 / step for step in range(37, 41)) / 4)
  assert ipo.last('eval/loss') == 20
  assert (dpo.steps, ipo.steps) == (40, 20)


def test_tables_and_a_figure_are_written(runs, tmp_path, capsys):
  assert execute(f'--runs={runs[0]},{runs[1]}', f'--out={tmp_path}/out') == exit_codes.DONE
  written = (tmp_path / 'out' / 'compare.md').read_text()
  assert '| mesh.data | 1 | 2 |' in written
  assert f'| train/loss | {history.read(runs[0]).last("train/loss"):.5g} | 2 |' in written
  assert '| eval/loss | - | 20 |' in written
  assert written in capsys.readouterr().out
  summary = json.loads((tmp_path / 'out' / 'compare.json').read_text())
  assert summary['updates'] == {str(runs[0]): 40, str(runs[1]): 20}
  assert summary['metrics'][str(runs[0])]['eval/loss'] is None
  assert (tmp_path / 'out' / 'compare.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--runs={dpo},{missing}'], 'has no config.json, so it is not the work directory of a run'),
    (['--runs={dpo}', '--metrics=accuracy'], '--metrics: no run has accuracy; they have time/seconds, train/loss'),
    ([], '--runs is missing'),
  ],
)
def test_what_cannot_be_compared_is_refused_by_name(runs, tmp_path, flags, message, capsys):
  names = {'dpo': runs[0], 'missing': tmp_path / 'missing'}
  assert execute(*(flag.format(**names) for flag in flags)) == exit_codes.REFUSED
  assert message in capsys.readouterr().err


def test_a_run_without_records_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r'nothing is recorded in metrics.jsonl yet'):
    history.read(write_run(tmp_path / 'new', {}, []))
