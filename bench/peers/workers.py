"""The processes of bench.peers.training, and what the rest of the machine does meanwhile. It needs Linux."""

from collections.abc import Iterable, Mapping
import contextlib
import json
import os
import pathlib
import random
import subprocess
import time
from typing import Any, NamedTuple

from bench.peers import protocol, results


class EndedError(RuntimeError):
  """A worker has ended without an answer."""


class Processor(NamedTuple):
  """Seconds of processor time since some start: of a process, of all that was done, and of all processors."""

  own: float
  busy: float
  total: float

  @classmethod
  def now(cls, pid: int) -> 'Processor':
    tick = os.sysconf('SC_CLK_TCK')
    # The name of the process, which may hold spaces, ends with a bracket; user and system time are 12 and 13 after it.
    fields = pathlib.Path(f'/proc/{pid}/stat').read_text(encoding='utf-8').rpartition(')')[2].split()
    own = int(fields[11]) + int(fields[12])
    line = pathlib.Path('/proc/stat').read_text(encoding='utf-8').partition('\n')[0]
    user, nice, system, idle, waiting, *rest = map(int, line.split()[1:9])  # the rest: interrupts, and stolen time
    busy = user + nice + system + sum(rest)
    return cls(own / tick, busy / tick, (busy + idle + waiting) / tick)

  def others_since(self, before: 'Processor') -> float:
    """The share of all processors that other processes have used since then."""
    own, busy, total = (now - then for now, then in zip(self, before, strict=True))
    return max(0.0, busy - own) / max(total, 1e-9)


class Worker:
  """A contender in a process of its own.

  Args:
    name: the contender's name.
    command: how to start it.
    environment: the environment variables of its process.
    log: the file that receives its standard error.
  """

  def __init__(self, name: str, command: list[str], environment: Mapping[str, str], log: pathlib.Path):
    self.log, self.result = log, results.Result(name)
    with log.open('w', encoding='utf-8') as file:
      pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'stderr': file, 'text': True}
      self._process = subprocess.Popen(command, env=environment, **pipes)

  def prepare(self) -> None:
    """Waits until it is ready. Its peak memory counts anew from then.

    Raises:
      EndedError: it has ended instead.
    """
    answer, result = self._read(), self.result
    result.losses, result.first_seconds = answer['losses'], answer['seconds'][0]
    result.work = None if answer['work'] is None else protocol.Work(*answer['work'])
    result.peak_at_start = self._peak_mib()
    pathlib.Path(f'/proc/{self._process.pid}/clear_refs').write_text('5', encoding='utf-8')

  def turn(self) -> None:
    """Has it do a turn.

    Raises:
      EndedError: it has ended.
    """
    before = Processor.now(self._process.pid)
    with contextlib.suppress(BrokenPipeError):  # then there is no answer
      print('turn', file=self._process.stdin, flush=True)
    answer = self._read()
    others = Processor.now(self._process.pid).others_since(before)
    self.result.losses.append(answer['loss'])
    self.result.turns.append(results.Turn(answer['seconds'], others))
    self.result.peak = self._peak_mib()

  def close(self) -> None:
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    try:
      self._process.wait(30)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._process.stdout.close()

  def _read(self) -> dict[str, Any]:
    line = self._process.stdout.readline()
    if not line:
      words = self.log.read_text(encoding='utf-8', errors='replace').split('\n')
      raise EndedError(next((word.strip() for word in reversed(words) if word.strip()), 'it left no message'))
    return json.loads(line)

  def _peak_mib(self) -> float:
    status = pathlib.Path(f'/proc/{self._process.pid}/status').read_text(encoding='utf-8')
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith('VmHWM'))


def take_turns(workers: Iterable[Worker], rounds: int, pause: float) -> None:
  """Each worker does a turn in each round, in random order, after a pause in which the others' threads fall asleep."""
  order, shuffle = list(workers), random.Random(0)
  for _ in range(rounds):
    shuffle.shuffle(order)
    for worker in order:
      time.sleep(pause)
      worker.turn()
