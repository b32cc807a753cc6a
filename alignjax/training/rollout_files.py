"""Rounds of rollouts on disk: responses that the policy has drawn, their log-probabilities and their scores.

  rollouts/round_000042.npz     all arrays of the round, its settings, and a checksum of both
  rollouts/round_000042.jsonl   the same responses as text with their scores, one response per line

The text is written first, so a round with an .npz file is complete. Both files are replaced as a whole.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import io
import json
import pathlib
import re
import time
from typing import Any
import zipfile

import numpy as np

from alignjax import files, storage
from alignjax.data.reading import json_rows
from alignjax.rewards import base as rewards

VISIBLE = 5.0  # seconds until a round must be visible to the processes that have not written it
_PART = 'part/'
_NAME = re.compile(r'round_(\d{6,})\.npz')


class RolloutError(ValueError):
  """A round of rollouts that cannot be drawn, written or read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
  """N responses to each of P prompts, drawn from one policy. All arrays are numpy; padding is 0."""

  number: int  # counted from 0
  step: int  # updates that the policy had done
  settings: Mapping[str, Any]  # seed, strategy, reward, ..., in JSON types
  ids: np.ndarray  # [P] int64, numbers of the prompts in the dataset
  weight: np.ndarray  # [P] float32, of each prompt
  prompt: np.ndarray  # [P, L] int32, right-padded
  prompt_length: np.ndarray  # [P] int32
  response: np.ndarray  # [P, N, R] int32, right-padded, the end token included
  response_length: np.ndarray  # [P, N] int32
  finished: np.ndarray  # [P, N] bool, False if a response was cut off
  sampler_logp: np.ndarray  # [P, N, R] float32, nats: the policy, as the sampler computes it
  strategy_logp: np.ndarray  # [P, N, R] float32, nats: the distribution that the tokens were drawn from
  policy_logp: np.ndarray  # [P, N, R] float32, nats: the policy, as the training step computes it
  entropy: np.ndarray  # [P, N] float32, nats: sum over tokens of the entropy of their distribution
  score: np.ndarray  # [P, N] float64: the reward
  parts: Mapping[str, np.ndarray]  # [P, N] float64 each: the parts of the reward by name, without coefficients
  reference_logp: np.ndarray | None = None  # [P, N, R] float32, nats; None without a reference
  kl: np.ndarray | None = None  # [P, N] float32, nats: sum over tokens of KL(policy || reference) of their distribution
  sha256: str = ''  # of the file that it was read from


_ARRAYS = tuple(
  item.name for item in dataclasses.fields(Round) if item.name not in ('number', 'step', 'settings', 'parts', 'sha256')
)


def path(folder: pathlib.Path, number: int) -> pathlib.Path:
  """The file of a round."""
  return folder / f'round_{number:06d}.npz'


def numbered(folder: pathlib.Path) -> dict[int, pathlib.Path]:
  """The files of all rounds in a folder by number, in order."""
  names = ((_NAME.fullmatch(file.name), file) for file in folder.glob('round_*.npz'))
  return dict(sorted((int(name[1]), file) for name, file in names if name))


def write(folder: pathlib.Path, drawn: Round, samples: Sequence[rewards.Sample]) -> str:
  """Writes a round in place of an older one with its number.

  Args:
    folder: created if absent.
    drawn: the round.
    samples: its P * N responses as text, prompt by prompt.

  Returns:
    The checksum of the round.
  """
  folder.mkdir(parents=True, exist_ok=True)
  file = path(folder, drawn.number)
  files.replace(file.with_suffix('.jsonl'), _lines(drawn, samples))
  arrays = {name: getattr(drawn, name) for name in _ARRAYS if getattr(drawn, name) is not None}
  arrays |= {_PART + name: values for name, values in drawn.parts.items()}
  about = {'number': drawn.number, 'step': drawn.step, 'settings': dict(drawn.settings)}
  digest = _digest(arrays, about)
  stream = io.BytesIO()
  np.savez(stream, about=_as_bytes(json.dumps({**about, 'sha256': digest})), **arrays)
  files.replace(file, stream.getvalue())
  return digest


def read(file: pathlib.Path) -> Round:
  """Reads a round and verifies its checksum.

  Raises:
    RolloutError: the file is missing or damaged. The message names it.
  """
  try:
    with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as content:
      arrays = dict(content)
    about = json.loads(arrays.pop('about').tobytes())
    digest = about.pop('sha256')
    if _digest(arrays, about) != digest:
      raise ValueError('its checksum does not match')
    parts = {name.removeprefix(_PART): values for name, values in arrays.items() if name.startswith(_PART)}
    arrays = {name: values for name, values in arrays.items() if not name.startswith(_PART)}
    return Round(**about, **arrays, parts=parts, sha256=digest)
  except FileNotFoundError as error:
    raise RolloutError(f'{file}: there is no such file') from error
  except (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile) as error:
    raise RolloutError(f'{file}: the rollouts cannot be read: {error}') from error


def read_visible(file: pathlib.Path, sha256: str) -> Round:
  """Reads the round with a checksum that another process has just written. Waits until it is visible.

  Raises:
    RolloutError: it does not become visible in time.
  """
  deadline = time.monotonic() + VISIBLE
  while True:
    try:
      found = read(file)
      if found.sha256 == sha256:
        return found
      problem = f'{file}: these are not the rollouts that process 0 has written'
    except RolloutError as error:
      problem = str(error)
    if time.monotonic() > deadline:
      raise RolloutError(f'{problem}. Use a --workdir that all processes share')
    time.sleep(storage.POLL)


def read_all(folder: pathlib.Path) -> list[Round]:
  """Reads all rounds of a folder, in order.

  Raises:
    RolloutError: there are none, one is missing between others, or one is damaged.
  """
  found = numbered(folder)
  if not found:
    raise RolloutError(f'{folder}: there are no rollouts; give the folder `rollouts` in the workdir of a run')
  rounds = [read(file) for file in found.values()]
  numbers = [each.number for each in rounds]
  if missing := sorted(set(range(numbers[0], numbers[-1])) - set(numbers)):
    raise RolloutError(f'{path(folder, missing[0])}: this round is missing, but there are later ones')
  return rounds


def _lines(drawn: Round, samples: Sequence[rewards.Sample]) -> bytes:
  """One JSON object per response."""
  lines = []
  for index, sample in enumerate(samples):
    place = divmod(index, drawn.score.shape[1])
    row = json_rows.of_prompt(sample.prompt) | {
      'response': sample.response,
      'tokens': sample.tokens,
      'finished': sample.finished,
      'score': float(drawn.score[place]),
      'parts': {name: float(values[place]) for name, values in drawn.parts.items()},
    }
    lines.append(json.dumps(row, ensure_ascii=False) + '\n')
  return ''.join(lines).encode('utf-8', 'backslashreplace')


def _digest(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> str:
  digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
  for name in sorted(arrays):
    values = np.ascontiguousarray(arrays[name])
    digest.update(f'{name}:{values.dtype.str}:{values.shape}:'.encode() + values.tobytes())
  return digest.hexdigest()


def _as_bytes(text: str) -> np.ndarray:
  return np.frombuffer(text.encode(), np.uint8)
