"""Malformed command lines, config files, model folders and data: each is one clear error and exit code 1.

ALIGNJAX_FUZZ_CASES=300 tries more of the cases in malformed.py.
"""

import os

from alignjax import exit_codes
from alignjax.commands import main, program
from alignjax.training import checkpoint
from tests.commands import malformed

CASES = int(os.environ.get('ALIGNJAX_FUZZ_CASES', '100'))


def reach_the_run(*args, **options):
  raise ValueError('nothing was refused')


def test_malformed_inputs_are_one_error_and_exit_code_1(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(checkpoint, 'Checkpoints', reach_the_run)
  wrong, tried = [], 0
  for case in malformed.generate(malformed.Factory(tmp_path / 'inputs'), CASES):
    tried += 1
    try:
      code = program.execute(main.PROGRAM, ['alignjax', *case.argv])
    except BaseException as error:
      code = f'{type(error).__name__}: {str(error)[:200]}'
    shown = capsys.readouterr().err
    errors = sum(line.startswith('error: ') for line in shown.splitlines())
    clear = case.says in shown and 'nothing was refused' not in shown and len(shown) < 8000
    if (
      code != exit_codes.REFUSED or errors != 1 or not shown.startswith('error: ') or 'Traceback' in shown or not clear
    ):
      wrong.append(f'{case.name}: exit code {code}, {errors} errors, expected {case.says!r} in: {shown[-600:]}')
  assert not wrong, f'{len(wrong)} of {tried}:\n' + '\n'.join(wrong)
  assert tried >= min(CASES, 100)
