"""Sweeps: which runs a grid has, how they are started, and the table over seeds."""

import json
import math
import shlex

import pytest

from alignjax.commands import program, sweep
from alignjax.run import grids, history, sweeping
from tests import runs


def of(grid, *arguments):
  return grids.points(grids.parse(grid), arguments)


def test_a_grid_has_all_combinations_and_seeds_are_repetitions():
  points = of('optimizer=adamw(1e-6, beta1=0.8),sgd(0.1);seed=0,1', '--model=m')
  assert [point.name for point in points] == [
    'optimizer=adamw(1e-6, beta1=0.8),seed=0',
    'optimizer=adamw(1e-6, beta1=0.8),seed=1',
    'optimizer=sgd(0.1),seed=0',
    'optimizer=sgd(0.1),seed=1',
  ]
  assert [point.group for point in points[1:3]] == ['optimizer=adamw(1e-6, beta1=0.8)', 'optimizer=sgd(0.1)']
  assert points[0].arguments == ['--model=m', '--optimizer=adamw(1e-6, beta1=0.8)', '--seed=0']


def test_a_name_is_a_placeholder_a_setting_or_a_parameter_of_the_variant():
  (point,) = of('beta=0.3;seed=7;clip=1.0', '--objective=dpo(beta={beta})', '--config=x.py:is_dpo')
  assert point.arguments == ['--objective=dpo(beta=0.3)', '--config=x.py:is_dpo,clip=1.0', '--seed=7']
  with pytest.raises(ValueError, match='beta is not a setting of alignjax train'):
    of('beta=0.3', '--objective=dpo()', '--config=x.yaml')


@pytest.mark.parametrize(
  ('grid', 'message'),
  [
    ('', 'is empty'),
    ('seed', 'must be name=value'),
    ('seed=', 'must be name=value'),
    ('seed=1;seed=2', 'given more than once'),
    ('seed=1,1', 'a value more than once'),
  ],
)
def test_a_malformed_grid_is_refused(grid, message):
  with pytest.raises(ValueError, match=message):
    grids.parse(grid)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--objetive=dpo()'], '--objetive is not a flag'),
    (['--batch_size=0'], 'the run seed=0: config.batch_size'),
    (['--workdir=x'], '--workdir: each run of a sweep has its own'),
    (['--seed=3'], 'seed'),
  ],
)
def test_a_wrong_command_is_refused_before_any_run(tmp_path, capsys, arguments, message):
  line = ['alignjax', 'sweep', '--grid=seed=0,1', f'--out={tmp_path}/out', '--model=m', *arguments]
  assert program.execute(sweep.PROGRAM, line[1:]) == 1
  assert message in capsys.readouterr().err
  assert not (tmp_path / 'out').exists()


def test_commands_are_printed_one_per_line(tmp_path, capsys):
  line = [
    'sweep',
    '--grid=beta=0.1,0.2',
    f'--out={tmp_path}/out',
    '--print',
    '--objective=dpo(beta={beta})',
    '--model=m',
  ]
  assert program.execute(sweep.PROGRAM, line) == 0
  printed = [shlex.split(each) for each in capsys.readouterr().out.splitlines()]
  assert [each[:2] for each in printed] == [['alignjax', 'train']] * 2
  assert printed[1][2:] == ['--objective=dpo(beta=0.2)', '--model=m', f'--workdir={tmp_path}/out/beta=0.2']
  assert not (tmp_path / 'out').exists()


def test_a_run_that_fails_is_reported_and_repeated_and_the_others_go_on(tmp_path, monkeypatch):
  points, lines = of('seed=0,1', '--model=m'), []
  commands = {'seed=0': ['no-such-program'], 'seed=1': ['--help']}
  monkeypatch.setattr(sweeping, 'command', lambda point, folder: commands[point.name])
  assert sweeping.run(points, tmp_path, 2, lines.append) == {'seed=0': 1}
  (failed,) = (line for line in lines if line.startswith('failed'))
  assert "error: alignjax has no program 'no-such-program'" in failed
  commands['seed=0'] = ['--help']
  assert sweeping.run(points, tmp_path, 1, lines.append) == {}
  assert '1 of 2 runs are finished already' in lines
  assert 'start seed=1' not in lines[-3:]
  assert sweeping.Record(tmp_path).done(points[0])


def test_the_table_has_means_and_standard_errors_over_seeds(tmp_path, capsys):
  points = of('beta=0.1,0.2;seed=0,1,2', '--objective=dpo(beta={beta})')
  for i, point in enumerate(points):
    (tmp_path / point.name).mkdir()
    (tmp_path / point.name / 'config.json').write_text('{}')
    record = {'step': 1, 'loss': float(i), 'time/step': 1.0}
    (tmp_path / point.name / 'metrics.jsonl').write_text(json.dumps(record) + '\n')
  sweep.report(tmp_path, points, ['train/loss'])
  text = (tmp_path / 'sweep.md').read_text()
  assert '| beta=0.1 | 3 | 1 ± 0.6 |' in text
  assert '| beta=0.2 | 3 | 4 ± 0.6 |' in text
  assert text in capsys.readouterr().out
  assert (tmp_path / 'sweep.png').read_bytes().startswith(b'\x89PNG')
  mean, error = history.over_seeds([2.0])
  assert mean == 2.0
  assert math.isnan(error)
  with pytest.raises(ValueError, match='no run has eval/loss; they have'):
    sweep.report(tmp_path, points, ['eval/loss'])


@pytest.mark.slow  # the test above starts other programs
def test_a_real_sweep_continues_and_has_the_runs_of_single_commands(tmp_path):
  folder, line = runs.write_folder(tmp_path), []
  line = [
    *('sweep', '--grid=beta=0.1,0.5;seed=0,1', f'--out={tmp_path}/out', '--objective=dpo(beta={beta})'),
    *(f'--model={folder}/model', f'--data={folder}/train.jsonl', '--steps=2', '--batch_size=8'),
    *('--doctor=off', '--warmup=0', '--jobs=2'),
  ]
  assert program.execute(sweep.PROGRAM, line) == 0
  record = (tmp_path / 'out' / 'beta=0.5,seed=1' / 'metrics.jsonl').read_text()
  text = (tmp_path / 'out' / 'sweep.md').read_text()
  assert program.execute(sweep.PROGRAM, line) == 0
  assert (tmp_path / 'out' / 'beta=0.5,seed=1' / 'metrics.jsonl').read_text() == record
  assert (tmp_path / 'out' / 'sweep.md').read_text() == text
