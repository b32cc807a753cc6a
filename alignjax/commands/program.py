"""Runs programs: parses flags, prints expected errors in one line, and returns an exit code.

A program is a name, a text, a dataclass of settings and a function that takes them. It is an absl program: it has absl
flags and is started by `app.run`. Flags become global only when it starts.

Exit codes: see `alignjax.exit_codes`.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import difflib
import importlib
import inspect
import sys
import traceback
from typing import Any

from absl import app, flags, logging

from alignjax import exit_codes, files, paths, refusals, stopping
from alignjax.run import fields, help_text, hints, places, program_flags, user_code

EXPECTED = (ValueError, OSError, ImportError)  # errors that the user can fix
LINE = 2000  # characters of a line of an error
HELP = ('--help', '-help', '-h', '--h', '--helpshort', '-helpshort', '--helpfull', '-helpfull', '--helpxml', '-helpxml')


@dataclasses.dataclass(frozen=True)
class Program[S]:
  """A program of the command line.

  Attributes:
    name: the name after `alignjax`: 'sample', 'data validate'.
    text: the first part of --help; its first line is the summary.
    settings: a dataclass made of `fields.field`.
    run: does the work, and returns the exit code; None means 0.
    codes: the exit codes of exceptions that are printed in one line; the first class that matches counts.
    parse: reads settings; called with the dataclass, the command line and the flag values.
    hints: what to use instead of an unknown flag, by its name; `alignjax.run.hints` has those of other trainers.
    leave: ends the process; called with the settings and the exit code.
    join: called with the settings before user code is imported, which may use a device.
    place: the context in which the program runs, with settings whose paths are on this disk.
  """

  name: str
  text: str
  settings: type[S]
  run: Callable[[S], int | None]
  codes: Mapping[type[Exception], int] = dataclasses.field(
    default_factory=lambda: dict.fromkeys((*EXPECTED, MemoryError), exit_codes.REFUSED)
  )
  parse: Callable[[type[S], Sequence[str], flags.FlagValues], S] = program_flags.parse_flags
  hints: Mapping[str, str] = dataclasses.field(default_factory=dict)
  leave: Callable[[S, int], Any] = lambda settings, code: sys.exit(code)
  join: Callable[[S], None] = lambda settings: None
  place: Callable[[S], contextlib.AbstractContextManager[S]] = places.on_disk

  @property
  def help(self) -> str:
    """The text of --help."""
    return f'{inspect.cleandoc(self.text)}\n\n{help_text.describe(self.settings)}'


@dataclasses.dataclass(frozen=True)
class Group:
  """A program whose first argument names another one.

  Attributes:
    name: the name on the command line.
    text: the first part of --help.
    summaries: one line for each program, by name.
    others: programs by names that users may give them.
    load: returns the program, or another group, with a name.
  """

  name: str
  text: str
  summaries: Mapping[str, str]
  load: Callable[[str], 'Program | Group']
  others: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def help(self) -> str:
    """The text of --help."""
    lines = [f'  {name:<10} {line}' for name, line in self.summaries.items()]
    return '\n'.join(
      [inspect.cleandoc(self.text), '', *lines, '', f'{self.name} <program> --help prints the settings of a program.']
    )

  def choose(self, argv: Sequence[str]) -> tuple['Program | Group', list[str]]:
    """Returns the program that the arguments name, and the arguments without its name.

    Raises:
      ValueError: no program is named, or it does not exist.
    """
    place = next((i for i, argument in enumerate(argv[1:], 1) if not argument.startswith('-')), None)
    if place is None:
      raise ValueError(f'{self.name} needs a program, one of {", ".join(self.summaries)}')
    name = argv[place]
    if name not in self.summaries:
      close = difflib.get_close_matches(name, self.summaries, n=1)
      meant = self.others.get(name) or next(iter(close), '')
      hint = f'; did you mean {meant}?' if meant else '.'
      raise ValueError(f'{self.name} has no program {name!r}{hint} It has {", ".join(self.summaries)}')
    return self.load(name), [*argv[:place], *argv[place + 1 :]]


def lazy(module: str) -> 'Program | Group':
  """Imports a module of this package, and returns its program."""
  return importlib.import_module(f'alignjax.commands.{module}').PROGRAM


def execute(program: Program | Group, argv: Sequence[str], values: flags.FlagValues | None = None) -> int:
  """Runs a program with a command line; returns the exit code.

  Args:
    program: the program to run.
    argv: the command line, its first entry the name of the program.
    values: the flag values in which to define the flags; by default new ones.
  """
  try:
    program, argv = _resolve(program, argv)
    settings = _parse(program, argv, flags.FlagValues() if values is None else values)
  except SystemExit as request:
    return request.code
  return attempt(program, settings)


def start(program: Program | Group, argv: Sequence[str] | None = None) -> None:
  """Runs a program in this process, with the global absl flags, and ends the process."""
  with stopping.deferred():  # modules written in C turn Stopped into an ImportError, or ignore it
    program, argv = _resolve(program, sys.argv if argv is None else argv)

  def main(parsed: Sequence[Any]) -> None:
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)  # each checkpoint logs 40 lines at INFO
    program.leave(parsed[0], attempt(program, parsed[0]))

  def run() -> None:
    stopping.check()
    app.run(main, argv=argv, flags_parser=lambda argv: [_parse(program, argv, flags.FLAGS)])

  stopping.run(run)


def _resolve(program: Program | Group, argv: Sequence[str]) -> tuple[Program, list[str]]:
  """Resolves groups to the program that the arguments name."""
  argv = list(argv)
  while isinstance(program, Group):
    named = any(not argument.startswith('-') for argument in argv[1:])
    if not named and (len(argv) == 1 or any(argument in HELP for argument in argv)):
      print(program.help)
      sys.exit(exit_codes.DONE)
    try:
      program, argv = program.choose(argv)
    except ValueError as error:
      _refuse(error)
  return program, argv


def _parse[S](program: Program[S], argv: Sequence[str], values: flags.FlagValues) -> S:
  """Reads the settings from a command line, or prints --help and exits."""
  if any(argument in HELP for argument in argv[1:]):
    print(program.help)
    sys.exit(exit_codes.DONE)
  try:
    for argument in argv[1:]:
      if argument.startswith(('--flagfile=', '-flagfile=')):
        files.check_regular(paths.expand(argument.partition('=')[2]))
    return program.parse(program.settings, argv, values)
  except flags.UnrecognizedFlagError as error:
    name = error.flagname.partition('=')[0]
    known = [leaf.flag for leaf in fields.leaves(program.settings)]
    hint = f': {program.hints[name]}' if name in program.hints else hints.hint(name, known, prefix='--')
    _refuse(f'--{name} is not a flag of {program.name}{hint}')
  except (flags.Error, *EXPECTED) as error:
    _refuse(error)
  except RecursionError as error:
    _refuse(f'a setting is nested too deeply: {error}')


def _refuse(error: Exception | str) -> None:
  print(f'error: {_shown(error)}', file=sys.stderr)
  sys.exit(exit_codes.REFUSED)


def _shown(error: BaseException | str) -> str:
  """The message of an error, its lines cut to a length that fits on a terminal."""
  text = error if isinstance(error, str) else refusals.reason(error)
  lines = text.splitlines() or [type(error).__name__]
  return '\n'.join(line if len(line) <= LINE else f'{line[:LINE]} ...' for line in lines)


def attempt[S](program: Program[S], settings: S) -> int:
  """Runs a program, prints an expected error in one line, and returns the exit code."""
  try:
    with contextlib.ExitStack() as stack:
      with refusals.checking():
        program.join(settings)
        settings = stack.enter_context(program.place(settings))
        if isinstance(settings, user_code.UserCode):
          user_code.load(settings.imports)
      return program.run(settings) or exit_codes.DONE
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    return exit_codes.INTERRUPTED
  except (Exception, stopping.Stopped) as error:
    if stopping.caused(error):
      print('stopped; the same command starts again where it can', file=sys.stderr)
      return stopping.exit_code()
    code = next((code for kind, code in program.codes.items() if isinstance(error, kind)), exit_codes.CRASHED)
    of_the_machine = refusals.of_the_machine(error)
    if not of_the_machine and not isinstance(error, tuple(program.codes)):
      traceback.print_exc()
      return exit_codes.CRASHED
    logging.debug('%s', traceback.format_exc())
    what = 'there is not enough memory for these settings: ' if isinstance(error, MemoryError) else ''
    print(f'error: {what}{_shown(error)}\n(--verbosity=1 shows the traceback)', file=sys.stderr)
    return exit_codes.CRASHED if of_the_machine and code == exit_codes.REFUSED else code
