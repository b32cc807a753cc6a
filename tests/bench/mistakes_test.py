"""Typical mistakes on the command line: a sample of each kind is refused in one error that names it."""

import random

import pytest

from alignjax import exit_codes
from bench.survival import campaign, mistake_cases, mistakes

EACH = 7  # mistakes of a kind
KINDS = [kind for kind in mistake_cases.KINDS if kind != 'resuming']  # needs a run; see tests/commands/train_test.py


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('mistakes')
  mistakes.write_files(folder)
  return folder


@pytest.mark.parametrize('kind', KINDS)
def test_mistakes_are_one_error_that_names_them(kind, folder, monkeypatch):
  monkeypatch.chdir(folder)
  offline = [command for command in mistake_cases.KINDS[kind] if not any(part in command for part in ('/', 'smollm'))]
  for command in random.Random(0).sample(offline, EACH):
    outcome = mistakes.attempt(command)
    assert not outcome.faults(mistake_cases.KINDS[kind][command]), f'{command}: {outcome}'
    assert outcome.code == exit_codes.REFUSED


def test_the_table_has_every_kind_and_no_command_twice():
  commands = [command for _, command, _ in mistakes.cases()]
  assert len(commands) == len(set(commands)) > 300
  assert all(len(table) >= EACH for table in mistake_cases.KINDS.values())


@pytest.mark.parametrize(
  ('code', 'message', 'faults'),
  [
    (1, 'error: --batch_sze is not a flag\n', []),
    (0, '', ['exit code', 'errors', 'names nothing']),
    (None, 'KeyError: x', ['exit code', 'errors', 'names nothing']),
    (1, 'error: it went wrong\n', ['names nothing']),
    (1, 'error: --batch_sze\nerror: twice\n', ['errors']),
    (134, 'Traceback (most recent call last):\n  --batch_sze\n', ['traceback', 'errors']),
  ],
)
def test_what_is_wrong_with_an_outcome(code, message, faults):
  assert mistakes.Outcome(code, message).faults('--batch_sze') == faults


def test_a_complete_command_is_filled_in():
  assert mistakes.arguments('export --workdir=x') == ['export', '--workdir=x']
  argv = mistakes.arguments("TRAIN --data=x.jsonl --objective='dpo( )'")
  assert argv[0] == 'train'
  assert {'--model=model', '--data=x.jsonl', '--objective=dpo( )'} <= set(argv)
  assert '--data=train.jsonl' not in argv


def test_the_report_counts_mistakes_that_are_not_refused(tmp_path, capsys):
  results = campaign.Results(tmp_path / 'results.jsonl')
  for command, faults in (('trian', []), ('fit', ['names nothing'])):
    results.add({'kind': 'programs', 'command': command, 'code': 1, 'message': 'error: x', 'faults': faults})
  assert mistakes.report(results) == 1
  shown = capsys.readouterr().out
  assert '$ alignjax fit\n[1] error: x  <- names nothing' in shown
  assert '| programs | 2 | 1 |' in shown
