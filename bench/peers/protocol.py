"""What bench.peers.training and its workers share: the files that all contenders read, and how they take turns.

It needs numpy alone, so that it can be imported where alignjax is not installed.

A worker is one contender in one process. It does its first turns at once, so that everything is compiled and warm, and
reports that it is ready. Then it does a turn for each line of its input. Its answers are lines of JSON.
"""

from collections.abc import Sequence
import json
import os
import pathlib
import sys
import time
from typing import Any, NamedTuple

import numpy as np

POLICY, REFERENCE = 'policy', 'reference'  # Hugging Face folders
CASE, PAIRS = 'case.json', 'pairs.npz'


class Case(NamedTuple):
  """What is computed.

  Attributes:
    batch: pairs in a batch.
    learning_rate: AdamW's learning rate. There is no weight decay, and gradients are clipped to norm 1.
    beta: DPO's strength of the KL constraint, 1/nats.
    dtype: 'float32', or 'bfloat16' of activations with parameters in float32.
    cached: whether the reference's log-probabilities are computed once, before the turns that are measured.
    epoch: whether a turn is an epoch of batches as the contender likes them, instead of one given batch.
    warm_up: turns before the first that is measured.
  """

  batch: int
  learning_rate: float
  beta: float = 0.1
  dtype: str = 'float32'
  cached: bool = False
  epoch: bool = False
  warm_up: int = 5


class Pair(NamedTuple):
  """Token ids: a prompt, and two responses, the better one first."""

  prompt: np.ndarray
  chosen: np.ndarray
  rejected: np.ndarray

  @property
  def responses(self) -> tuple[np.ndarray, np.ndarray]:
    return self.chosen, self.rejected


def write(folder: pathlib.Path, case: Case, pairs: list[Pair]) -> None:
  """Writes a case and its pairs, in the order of their batches."""
  (folder / CASE).write_text(json.dumps(case._asdict()), encoding='utf-8')
  lengths = np.array([[len(part) for part in pair] for pair in pairs], np.int32)
  tokens = np.concatenate([part for pair in pairs for part in pair]).astype(np.int32)
  np.savez(folder / PAIRS, lengths=lengths, tokens=tokens)


def read(folder: str | os.PathLike[str]) -> tuple[Case, list[Pair]]:
  """Reads what `write` has written."""
  folder = pathlib.Path(folder)
  case = Case(**json.loads((folder / CASE).read_text(encoding='utf-8')))
  with np.load(folder / PAIRS) as stored:
    lengths, tokens = stored['lengths'], stored['tokens']
  parts = np.split(tokens, np.cumsum(lengths.ravel())[:-1])
  return case, [Pair(*parts[start : start + 3]) for start in range(0, len(parts), 3)]


class Work(NamedTuple):
  """What a contender computes in a turn, in the policy: its padding and its repeated prompts count, too."""

  positions: float = 0.0  # that pass the layers
  attended: float = 0.0  # pairs of positions of which one may see the other
  predicted: float = 0.0  # positions that pass the head

  def __add__(self, other: 'Work') -> 'Work':
    return Work(*(one + two for one, two in zip(self, other, strict=True)))


def rows(count: int, length: int, predicted: int) -> Work:
  """The work on rows of one length, `predicted` of whose positions pass the head."""
  return Work(count * length, count * length * (length + 1) / 2, count * predicted)


def shared_rows(count: int, prompt: int, responses: Sequence[int]) -> Work:
  """The work on prompts of one length with responses of these lengths, if each prompt is computed once."""
  own = Work(attended=count * prompt * sum(responses))
  return sum((rows(count, length, length) for length in responses), own + rows(count, prompt, 0))


class Turns:
  """Divides the steps of a contender into turns.

  turns = Turns(case.warm_up, steps)
  while turns.begin_step():
    ...
    turns.end_step(loss, pairs)

  What libraries print goes to standard error, because standard output has the answers.

  Args:
    warm_up: turns that are done at once.
    steps: steps of a turn.
  """

  def __init__(self, warm_up: int, steps: int = 1):
    self._warm_up, self._steps = warm_up, steps
    self._out = os.fdopen(os.dup(1), 'w', buffering=1)
    os.dup2(2, 1)
    self._done, self._turns, self._first = 0, 0, {'losses': [], 'seconds': []}
    self.work = Work()

  def begin_step(self) -> bool:
    """Waits for a turn if the last one is over; returns whether there is another step to do."""
    if self._done == 0:
      if self._turns == self._warm_up:
        self._answer(**self._first, work=self.work)
      if self._turns >= self._warm_up and not sys.stdin.readline():
        return False
      self._start, self._total, self._pairs = time.perf_counter(), 0.0, 0
    return True

  def end_step(self, loss: float, pairs: int) -> None:
    """Ends a step, whose computations are finished.

    Args:
      loss: the mean over its pairs.
      pairs: their number.
    """
    self._total, self._pairs = self._total + loss * pairs, self._pairs + pairs
    self._done = (self._done + 1) % self._steps
    if self._done:
      return
    seconds, loss = time.perf_counter() - self._start, self._total / self._pairs
    if self._turns < self._warm_up:
      self._first['losses'].append(loss)
      self._first['seconds'].append(seconds)
    else:
      self._answer(loss=loss, seconds=seconds)
    self._turns += 1

  def _answer(self, **values: Any) -> None:
    print(json.dumps(values), file=self._out, flush=True)
