"""A tokenised dataset in memory, as flat arrays."""

import array
from collections.abc import Iterable, Sequence
import dataclasses
import functools
import hashlib
from typing import NamedTuple

import numpy as np

from alignjax.data.reading import drops, rows


class TokenExample(NamedTuple):
  """One prompt and its N responses, as token ids."""

  prompt: Sequence[int]
  responses: Sequence[Sequence[int]]  # N responses, end token included
  label: float = 1.0
  weight: float = 1.0
  score: Sequence[float] | None = None  # N rewards
  behaviour_logp: Sequence[float] | None = None  # N log-probabilities of whole responses, nats
  behaviour_token_logp: Sequence[Sequence[float]] | None = None  # one log-probability per response token, nats
  path: str = '<memory>'  # the file that the example comes from
  line: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class TokenDataset:
  """n prompts with N responses each, ragged: an example is a slice of two flat arrays. Picklable.

  Built by `encoding.tokenize` from text, or by `pack` from token ids.
  """

  prompt_tokens: np.ndarray  # [sum of prompt lengths] int32
  prompt_offsets: np.ndarray  # [n + 1] int64
  response_tokens: np.ndarray  # [sum of response lengths] int32, response after response, example after example
  response_offsets: np.ndarray  # [n * N + 1] int64
  responses: int  # N
  label: np.ndarray  # [n] float32
  weight: np.ndarray  # [n] float32
  score: np.ndarray | None  # [n, N] float32
  behaviour_logp: np.ndarray | None  # [n, N] float32
  behaviour_token_logp: np.ndarray | None  # [sum of response lengths] float32, one for each of `response_tokens`
  paths: tuple[str, ...]
  path_index: np.ndarray  # [n] int32, into `paths`
  line: np.ndarray  # [n] int64, counted from 1
  report: drops.DropReport

  def __len__(self) -> int:
    return len(self.label)

  def __getitem__(self, index: int) -> TokenExample:
    if not -len(self) <= index < len(self):
      raise IndexError(f'example {index} of {len(self)}')
    index %= len(self)
    slices = self.response_slices(index)
    logps = self.behaviour_token_logp
    return TokenExample(
      prompt=self.prompt_tokens[slice(*self.prompt_offsets[index : index + 2])],
      responses=tuple(self.response_tokens[each] for each in slices),
      label=float(self.label[index]),
      weight=float(self.weight[index]),
      **{name: values[index] for name, values in self.per_response.items()},
      behaviour_token_logp=None if logps is None else tuple(logps[each] for each in slices),
      path=self.paths[self.path_index[index]],
      line=int(self.line[index]),
    )

  def response_slices(self, index: int) -> list[slice]:
    """Where the tokens of each response of an example are in `response_tokens`."""
    first = index * self.responses
    return [slice(*self.response_offsets[i : i + 2]) for i in range(first, first + self.responses)]

  def weighted_by_tokens(self) -> 'TokenDataset':
    """The dataset in which the weight of an example is multiplied by the tokens of its response.

    A mean over prompts of a mean over tokens is then the mean over all tokens of a batch.

    Raises:
      ValueError: the examples have several responses.
    """
    if self.responses != 1:
      raise ValueError(
        f"{self.origin(0)}: the data has {self.responses} responses to a prompt, but weighting='tokens' is for data "
        "with one, as for sft(); use weighting='prompts', or read one side of pairs with the form `chosen`"
      )
    return dataclasses.replace(self, weight=self.weight * self.response_length[:, 0].astype(np.float32))

  @property
  def per_response(self) -> dict[str, np.ndarray]:
    """The columns with one number per response that this dataset has, by name."""
    columns = {name: getattr(self, name) for name in rows.PER_RESPONSE}
    return {name: column for name, column in columns.items() if column is not None}

  @property
  def fields(self) -> list[str]:
    """The fields of a batch that this dataset fills, besides those that every batch has."""
    return [name for name in ('score', 'behaviour_logp', 'behaviour_token_logp') if getattr(self, name) is not None]

  @functools.cached_property
  def prompt_length(self) -> np.ndarray:
    """[n] int64."""
    return np.diff(self.prompt_offsets)

  @functools.cached_property
  def response_length(self) -> np.ndarray:
    """[n, N] int64."""
    return np.diff(self.response_offsets).reshape(len(self), self.responses)

  @functools.cached_property
  def lengths(self) -> np.ndarray:
    """[n, 2] int32: tokens of the prompt and of the longest response. All that planning batches reads."""
    return np.stack([self.prompt_length, self.longest_response], axis=1).astype(np.int32)

  @functools.cached_property
  def longest_response(self) -> np.ndarray:
    """[n] int64: tokens of the longest response of each example, 0 if there are no responses."""
    return self.response_length.max(axis=1, initial=0)

  def origin(self, index: int) -> str:
    """'file:line' of an example."""
    return f'{self.paths[self.path_index[index]]}:{self.line[index]}'

  @functools.cached_property
  def fingerprint(self) -> str:
    """sha256 of the contents in hexadecimal. It does not depend on where the data was read from."""
    digest = hashlib.sha256(f'alignjax pairs 1, {len(self)} x {self.responses}'.encode())
    columns = [self.prompt_offsets, self.prompt_tokens, self.response_offsets, self.response_tokens]
    for column in (*columns, self.label, self.weight):
      digest.update(column.astype(column.dtype.newbyteorder('<'), copy=False))
    optional = self.per_response
    if self.behaviour_token_logp is not None:
      optional['behaviour_token_logp'] = self.behaviour_token_logp
    for name, column in optional.items():
      digest.update(name.encode() + column.astype('<f4', copy=False).tobytes())
    return digest.hexdigest()


def pack(examples: Iterable[TokenExample], report: drops.DropReport | None = None) -> TokenDataset:
  """Packs examples of token ids, such as responses that a model has just sampled.

  Given `behaviour_token_logp` alone, `behaviour_logp` becomes its sum over each response.

  Args:
    examples: all with the same number of responses. Optional fields are present in all examples or in none.
    report: attached to the dataset; None creates one that counts the examples.

  Raises:
    ValueError: no examples, an empty prompt or response, or examples that differ in what they hold.
  """
  prompts, responses = _Ragged(), _Ragged()
  labels, weights, lines, path_indices = array.array('f'), array.array('f'), array.array('q'), array.array('i')
  per_response: dict[str, list[Sequence[float] | None]] = {name: [] for name in rows.PER_RESPONSE}
  token_logps: list[Sequence[Sequence[float]] | None] = []
  paths: dict[str, int] = {}
  counts = set()
  for example in examples:
    example = _checked(example)
    prompts.append(example.prompt)
    for response in example.responses:
      responses.append(response)
    for name, column in per_response.items():
      column.append(getattr(example, name))
    token_logps.append(example.behaviour_token_logp)
    counts.add(len(example.responses))
    labels.append(example.label)
    weights.append(example.weight)
    path_indices.append(paths.setdefault(example.path, len(paths)))
    lines.append(example.line)
  if not labels:
    raise ValueError(f'no examples are left: {report or "none were given"}')
  if len(counts) > 1:
    raise ValueError(
      f'examples have different numbers of responses {sorted(counts)}; every prompt needs the same number'
    )
  for name, column in (*per_response.items(), ('behaviour_token_logp', token_logps)):
    if len({values is None for values in column}) > 1:
      raise ValueError(f'some examples have a {name} and some have none; give one to all of them, or to none')
  return TokenDataset(
    prompt_tokens=prompts.values(),
    prompt_offsets=prompts.offsets(),
    response_tokens=responses.values(),
    response_offsets=responses.offsets(),
    responses=counts.pop(),
    label=_array(labels, np.float32),
    weight=_array(weights, np.float32),
    **{name: None if column[0] is None else np.asarray(column, np.float32) for name, column in per_response.items()},
    behaviour_token_logp=None if token_logps[0] is None else _flat(token_logps),
    paths=tuple(paths),
    path_index=_array(path_indices, np.int32),
    line=_array(lines, np.int64),
    report=report or drops.DropReport(read=len(labels)),
  )


def _checked(example: TokenExample) -> TokenExample:
  """Checks that the parts of an example fit together, and fills in `behaviour_logp`."""
  origin, count = f'{example.path}:{example.line}', len(example.responses)
  if not len(example.prompt) or not all(len(response) for response in example.responses):
    raise ValueError(f'{origin}: the prompt or a response has no tokens')
  for name in (*rows.PER_RESPONSE, 'behaviour_token_logp'):
    values = getattr(example, name)
    if values is not None and len(values) != count:
      raise ValueError(f'{origin}: {len(values)} values of {name} for {count} responses')
  logps = example.behaviour_token_logp
  if logps is None:
    return example
  for i, (numbers, response) in enumerate(zip(logps, example.responses, strict=True)):
    if len(numbers) != len(response):
      raise ValueError(
        f'{origin}: behaviour_token_logp[{i}] has {len(numbers)} numbers for {len(response)} response tokens'
      )
  if example.behaviour_logp is not None:
    return example
  return example._replace(behaviour_logp=[float(np.sum(numbers, dtype=np.float64)) for numbers in logps])


class _Ragged:
  """Token ids of many sequences in one flat array."""

  def __init__(self):
    self._values = array.array('i')
    self._offsets = array.array('q', [0])

  def append(self, values: Sequence[int]) -> None:
    self._values.extend(values)
    self._offsets.append(len(self._values))

  def values(self) -> np.ndarray:
    return _array(self._values, np.int32)

  def offsets(self) -> np.ndarray:
    return _array(self._offsets, np.int64)


def _array(values: array.array, dtype: type) -> np.ndarray:
  return np.frombuffer(values, dtype=dtype)


def _flat(columns: Iterable[Iterable[Sequence[float]]]) -> np.ndarray:
  parts = [np.asarray(numbers, np.float32) for column in columns for numbers in column]
  return np.concatenate(parts) if parts else np.zeros(0, np.float32)
