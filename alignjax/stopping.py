"""SIGTERM and Ctrl-C: a program that must stop saves what it has, and ends.

The first signal raises `Stopped`, wherever the program is. A block under `deferred` finishes first: it asks `requested`
at points where it can stop, and calls `check` at its end. Further SIGTERMs are only counted. A second Ctrl-C ends the
process at once.

Imports only what starts fast, because a program listens before it imports anything else.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import signal
import sys
import threading
import types

from alignjax import causes, exit_codes


class Stopped(BaseException):
  """The process was asked to stop. Not an Exception, so that code that handles errors does not catch it."""


class _State:
  def __init__(self):
    self.signals = 0
    self.interrupted = False  # by Ctrl-C
    self.listening = False
    self.deferred = 0  # entered blocks


_state = _State()


def run(main: Callable[[], None]) -> None:
  """Runs a main function that hears SIGTERM and Ctrl-C from its first line until the process has ended."""
  if _state.listening:
    main()
    return
  _listen()
  try:
    main()
  except (Stopped, Exception) as error:
    if not caused(error):
      raise
    sys.exit(exit_code())
  finally:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the exit code is settled


@contextlib.contextmanager
def listening() -> Iterator[None]:
  """Hears SIGTERM and Ctrl-C in a block."""
  previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
  _listen()
  try:
    yield
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
    _state.__init__()


@contextlib.contextmanager
def heard() -> Iterator[None]:
  """Hears SIGTERM in a block of a program that does not listen itself, such as a notebook."""
  if _state.listening or threading.current_thread() is not threading.main_thread():
    yield
    return
  _state.signals = 0
  previous = signal.signal(signal.SIGTERM, _on_sigterm)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, previous)
    _state.signals = 0


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Lets a block finish: signals are only counted."""
  _state.deferred += 1
  try:
    yield
  finally:
    _state.deferred -= 1


def requested() -> bool:
  """Whether the process was asked to stop."""
  return _state.signals > 0


def check() -> None:
  """Raises Stopped if the process was asked to stop."""
  if requested():
    raise Stopped


def caused(error: BaseException | None) -> bool:
  """Whether an error is Stopped, or what a library made of it, such as the ImportError of a module written in C."""
  return any(isinstance(each, Stopped) for each in causes.chain(error))


def exit_code() -> int:
  """The exit code of a process that was asked to stop."""
  return exit_codes.INTERRUPTED if _state.interrupted else exit_codes.PREEMPTED


def _listen() -> None:
  _state.__init__()
  _state.listening = True
  signal.signal(signal.SIGTERM, _on_sigterm)
  if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # a shell sets it for processes in the background
    signal.signal(signal.SIGINT, _on_interrupt)


def _on_sigterm(signum: int, frame: types.FrameType | None) -> None:
  del signum, frame
  _state.signals += 1
  if _state.signals > 1:
    return
  if not _state.interrupted:
    _tell('SIGTERM received: saving and exiting')
  if not _state.deferred:
    raise Stopped


def _on_interrupt(signum: int, frame: types.FrameType | None) -> None:
  del signum, frame
  _state.interrupted = True
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  _tell('Ctrl-C: saving and exiting. Press Ctrl-C again to end at once, without saving')
  signal.raise_signal(signal.SIGTERM)  # several processes listen for it through jax.distributed


def _tell(text: str) -> None:
  with contextlib.suppress(OSError):  # standard error may be closed
    os.write(2, f'{text}\n'.encode())  # print is not safe here: the signal may have interrupted it
