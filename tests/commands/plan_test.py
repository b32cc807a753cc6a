"""`alignjax plan`, from the command line to its text, its JSON and its exit code."""

import json
import re

import pytest

from alignjax import exit_codes
from alignjax.commands import main, program
from tests.planning import folders

RUN = ['--batch_size=64', '--compute_dtype=bfloat16', '--remat=full']


@pytest.fixture(name='model', scope='module')
def write_model(tmp_path_factory):
  return folders.write(tmp_path_factory.mktemp('model'))


def plan(*arguments):
  return program.execute(main.PROGRAM, ['alignjax', 'plan', *arguments])


TEXT = """\
model       llama, 8,030,261,248 parameters in 32 layers; 8,030,261,248 are trained
machine     v5e:8x8, 64 chips; each chip has 15.75 GiB for programs
mesh        data=1, fsdp=64, tensor=1
step        64 prompts of 512 tokens, each with 2 x 512 response tokens; 1 at once on each of 64 shards

memory      on each device at the peak, which is in the stage 'STAGE'
  PARTS

compute     6.99 PFLOP a step: forward 20%, backward 39%, reference 20%, attention 3%, head 4%, recomputed 15%
time        0.857 to 1.35 s a step at 55% to 35% MFU, 73,028 to 114,759 tokens/s
run         1,563 steps, 0.37 to 0.58 hours without evaluation and checkpoints
cost        28.56 to 44.88 at 1.2 for a chip and hour

checkpoint  89.75 GiB each: parameters and optimizer state
command     alignjax train --model=MODEL RUN --data=<data> --workdir=<folder>
"""


def test_a_run_that_fits(model, tmp_path, capsys):
  costs = ['--rows=100000', '--price_per_chip_hour=1.2', f'--json={tmp_path / "plan.json"}']
  assert plan(f'--model={model}', '--topology=v5e:8x8', *RUN, *costs) == exit_codes.DONE
  printed = capsys.readouterr().out
  pattern = re.escape(TEXT.replace('MODEL', model).replace('RUN', ' '.join(RUN)))
  pattern = pattern.replace('STAGE', r'[\w -]+').replace('PARTS', r'.*(?:\n  .*)+')
  assert re.fullmatch(pattern, printed), printed
  assert re.search(r'\n +\d+\.\d\d GiB  together, \d+\.\d% of 15\.75 GiB: fits \(fits: at most 90%\)\n', printed)
  written = json.loads((tmp_path / 'plan.json').read_text())
  assert written['verdict'] == 'fits'
  assert written['steps'] == 1563
  stage = written['memory']['stages'][written['memory']['stage']]
  parts = sum(written['memory']['arguments'].values()) + sum(stage.values())
  assert written['memory']['peak'] == pytest.approx(parts)


@pytest.mark.slow
def test_a_run_that_does_not_fit_comes_with_changes_that_do(model, capsys):
  assert plan(f'--model={model}', '--topology=v5e:2x2', *RUN) == exit_codes.REFUSED
  printed = capsys.readouterr().out
  assert ': does not fit (fits: at most 90%)' in printed
  assert re.search(r"\n  '--adapter=lora\(rank=16, alpha=32\)' .* GiB of 15\.75 GiB: \w+", printed)


@pytest.mark.slow
def test_the_command_of_a_search_has_what_was_found(model, capsys):
  assert plan(f'--model={model}', '--devices=h100:8', *RUN, '--search=batch_size') == exit_codes.DONE
  found = int(re.search(r'alignjax train .*--batch_size=(\d+)', capsys.readouterr().out)[1])
  assert found > 64
  assert plan(f'--model={model}', '--devices=h100:8', *RUN, f'--config.batch_size={found}') == exit_codes.REFUSED
  assert '--batch_size=64 and --config.batch_size=' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--topology=v9e:4x4'], "the chip 'v9e' is unknown; did you mean v6e?"),
    (['--topology=v5e:4x4', '--devices=h100:8'], 'give the machine as --topology=v5e:4x4'),
    ([], 'give the machine as --topology=v5e:4x4'),
    (['--topology=h100:8'], '--topology=h100:8: is not the shape of a TPU slice'),
    (['--devices=h100:8', '--mfu=55'], '--mfu=55: must be a range between 0 and 1, such as 0.35:0.55'),
    (['--devices=h100:8', '--compile'], '--compile needs a TPU topology, such as --topology=v5e:4x4, and got 8 x h100'),
    (['--devices=h100:8', '--objective=dpoo()'], 'config.objective'),
    (['--devices=h100:8', '--toplogy=v5e:4x4'], '--toplogy is not a flag of plan; did you mean --topology?'),
    (['--devices=h100:7'], 'config.batch_size = 64: must be a multiple of 7'),
  ],
)
def test_errors_are_one_line(model, arguments, message, capsys):
  assert plan(f'--model={model}', *RUN, *arguments) == exit_codes.REFUSED
  error = capsys.readouterr().err
  assert message in error
  assert 'Traceback' not in error


def test_a_model_without_config_json_is_named(tmp_path, capsys):
  assert plan(f'--model={tmp_path}', '--devices=h100:8') == exit_codes.REFUSED
  assert f'{tmp_path}/config.json' in capsys.readouterr().err
