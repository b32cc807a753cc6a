"""The skeleton of programs, and the command that lists them."""

import dataclasses
import subprocess
import sys

import pytest

from alignjax import exit_codes
from alignjax.commands import main, program
from alignjax.run import fields, user_code

LIST = (
  'train',
  'doctor',
  'plan',
  'export',
  'sample',
  'evaluate',
  'label',
  'data',
  'download',
  'compare',
  'sweep',
  'report',
  'merge',
)


@dataclasses.dataclass(frozen=True)
class Settings(user_code.UserCode):
  """Numbers."""

  count: int = fields.field(3, 'How many.', at_least=1)
  names: tuple[str, ...] = fields.field((), 'Which ones.', required=True)
  speed: str = fields.field('slow', 'How fast.', choices=('slow', 'fast'))

  def __post_init__(self):
    fields.check(self)


def make(run) -> program.Program:
  return program.Program('count', 'Counts.\n\nIn detail.', Settings, run, hints={'number': 'give --count=3'})


def test_settings_come_from_flags():
  seen = []
  assert program.execute(make(seen.append), ['count', '--names=a,b', '--names=c', '--speed=fast', '--count=5']) == 0
  assert seen == [Settings(count=5, names=('a', 'b', 'c'), speed='fast')]


@pytest.mark.parametrize('flag', ['--help', '-h', '-help', '--helpshort'])
def test_help_is_no_error_and_prints_every_setting_with_its_default(flag, capsys):
  assert program.execute(make(pytest.fail), ['count', '--nonsense', flag]) == 0
  lines = [line.split('  ') for line in capsys.readouterr().out.splitlines()]
  assert lines[0] == ['Counts.']
  assert ['Numbers:'] in lines
  text = [' '.join(' '.join(line).split()) for line in lines]
  assert '--count How many. Default: 3' in text
  assert '--names Which ones. Required.' in text
  assert '--speed How fast. One of slow, fast. Default: slow' in text


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], 'error: --names is missing: Which ones.\n'),
    (['--names=a', '--count=0'], 'error: --count = 0: must be at least 1\n'),
    (['--names=a', '--count=x'], 'error: --count=x: must be a whole number, such as 8\n'),
    (['--names=a', '--speed=quick'], 'error: --speed=quick: must be slow or fast\n'),
    (['--names=a', '--cout=3'], 'error: --cout is not a flag of count; did you mean --count?\n'),
    (['--names=a', '--number=3'], 'error: --number is not a flag of count: give --count=3\n'),
    (['--names=a', 'b'], "error: unexpected argument 'b': give settings as --<name>=<value>; --help lists them\n"),
    (['--names=a', '--import=nowhere.py'], 'error: --import=nowhere.py: there is no such file\n'),
  ],
)
def test_an_error_in_the_flags_is_one_line_and_exit_code_1(arguments, message, capsys):
  assert program.execute(make(pytest.fail), ['count', *arguments]) == exit_codes.REFUSED
  assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize(
  ('error', 'code', 'message'),
  [
    (ValueError('why'), 1, 'error: why\n(--verbosity=1 shows the traceback)\n'),
    (FileNotFoundError('why'), 1, 'error: why\n'),
    (ImportError('why'), 1, 'error: why\n'),
    (KeyboardInterrupt(), 130, 'interrupted\n'),
    (RuntimeError('why'), 134, 'Traceback'),
  ],
)
def test_exit_codes(error, code, message, capsys):
  def run(settings):
    raise error

  assert program.execute(make(run), ['count', '--names=a']) == code
  assert capsys.readouterr().err.startswith(message)


def test_the_command_lists_its_programs(capsys):
  for argv in (['alignjax'], ['alignjax', '--help']):
    assert program.execute(main.PROGRAM, argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith('  ')] == list(LIST)


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('trian', "error: alignjax has no program 'trian'; did you mean train? It has {}\n"),
    ('qqq', "error: alignjax has no program 'qqq'. It has {}\n"),
    ('chat', "error: alignjax has no program 'chat'; did you mean sample? It has {}\n"),
  ],
)
def test_an_unknown_program_is_one_line_with_the_nearest_one(name, message, capsys):
  assert program.execute(main.PROGRAM, ['alignjax', name]) == exit_codes.REFUSED
  assert capsys.readouterr().err == message.format(', '.join(LIST))


@pytest.mark.parametrize('name', LIST)
def test_every_program_has_help_and_its_own_name(name, capsys):
  chosen = program.lazy(name)
  assert chosen.name.removeprefix('alignjax ') == name
  assert program.execute(chosen, [name, '--help']) == 0
  assert f'alignjax {name}' in capsys.readouterr().out


def test_the_list_of_programs_does_not_import_jax():
  code = 'import sys; from alignjax.commands import main; main.PROGRAM.help; print("jax" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == 'False\n'
