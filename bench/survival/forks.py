"""`python -m alignjax train ...` in a fork of a process that has done the imports, which takes 1 s instead of 6.

A fork runs the same main function with the same command line, has the same signal handlers and ends in the same way, so
it has the same exit codes. Before it starts, it can replace functions of the library, to inject a fault or a signal.
"""

import atexit
from collections.abc import Callable, Sequence
import contextlib
import functools
import importlib
import multiprocessing
import os
import pathlib
import signal
import socket
import sys
import threading
import time
from typing import Any, NamedTuple

from alignjax import __main__ as entry
from alignjax import exit_codes
from alignjax.commands import main, train
from alignjax.run import settings

_CONTEXT = multiprocessing.get_context('forkserver')
_PRELOADED = [main.__name__, train.__name__, __name__]
LONGEST = 300.0  # seconds until a run counts as hung
Patch = Callable[[], object]  # called in the fork before the program starts; picklable


def prepare(folder: pathlib.Path) -> None:
  """Lets all runs share one compilation cache in a folder. Call it once, before the first run."""
  compiled = folder / 'compiled'
  compiled.mkdir(mode=0o700)
  os.environ |= {
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(compiled),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
  }
  _CONTEXT.set_forkserver_preload(_PRELOADED)


class Run(NamedTuple):
  """A program that runs in a fork."""

  process: Any
  log: pathlib.Path

  def alive(self) -> bool:
    """Whether the program is running."""
    return self.process.exitcode is None

  def send(self, number: int) -> None:
    """Sends a signal."""
    with contextlib.suppress(ProcessLookupError):
      os.kill(self.process.pid, number)

  def wait(self, longest: float = LONGEST) -> int | None:
    """Waits for the end, and returns the exit code as a shell shows it; None if it had to be killed."""
    self.process.join(longest)
    if self.alive():
      self.process.kill()
      self.process.join()
      return None
    code = self.process.exitcode
    return code if code >= 0 else 128 - code

  def output(self) -> str:
    """What the program has printed so far."""
    return self.log.read_text(encoding='utf-8', errors='replace')


def before_calls(owner: str, function: str, act: Callable[..., None]) -> None:
  """Replaces a function of the library by one that calls `act` with the same arguments first.

  Args:
    owner: 'module:attribute' of a class, or 'module'.
    function: its name in the owner.
    act: called before every call; what it raises, the function raises.
  """
  module, _, attribute = owner.partition(':')
  holder = importlib.import_module(module)
  holder = getattr(holder, attribute) if attribute else holder
  original = getattr(holder, function)

  @functools.wraps(original)
  def hooked(*args: Any, **options: Any) -> Any:
    act(*args, **options)
    return original(*args, **options)

  setattr(holder, function, hooked)


def start(arguments: Sequence[str], log: pathlib.Path, patches: Sequence[Patch] = ()) -> Run:
  """Starts `alignjax train` with these arguments.

  Args:
    arguments: the command line after `train`.
    log: receives the output of the program.
    patches: called in the fork before the program starts.
  """
  log.unlink(missing_ok=True)
  process = _CONTEXT.Process(target=_enter, args=(list(arguments), log, list(patches)))
  process.start()
  return Run(process, log)


def _enter(arguments: list[str], log: pathlib.Path, patches: list[Patch]) -> None:
  file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
  for stream in (1, 2):
    os.dup2(file, stream)
  sys.argv = ['alignjax', 'train', *arguments]
  for patch in patches:
    patch()
  try:
    entry.main()
  finally:  # what the interpreter does at its end, and multiprocessing does not
    threading._shutdown()
    atexit._run_exitfuncs()


def arguments(config: settings.Config, devices: int = 1) -> list[str]:
  """The command line of a configuration, on virtual devices."""
  flat, default = settings.flat(config), settings.flat(settings.Config())
  flags = [f'--config.{name}={value}' for name, value in flat.items() if value != default[name]]
  return [*flags, f'--local_devices={devices}']


def connected(process: int, port: int, heartbeat: int = 10) -> list[str]:
  """The flags of one of two processes of a run."""
  flags = {'cluster': 'flags', 'coordinator': f'localhost:{port}', 'num_processes': 2, 'process_id': process}
  flags |= {'heartbeat': heartbeat, 'join_timeout': 30}  # a process whose coordinator was killed waits so long for it
  return [f'--{name}={value}' for name, value in flags.items()]


def free_port() -> int:
  """A port that no program listens at."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


def wait_until(condition: Callable[[], bool], run: Run, longest: float = LONGEST, pause: float = 0.001) -> bool:
  """Waits until a condition holds; False if the program ends before, or it takes too long."""
  deadline = time.monotonic() + longest
  while not condition():
    if not run.alive() or time.monotonic() > deadline:
      return False
    time.sleep(pause)
  return True


def describe(code: int | None) -> str:
  """An exit code for a table."""
  return {None: 'hung', 128 + signal.SIGKILL: 'killed', exit_codes.CRASHED: '134'}.get(code, str(code))
