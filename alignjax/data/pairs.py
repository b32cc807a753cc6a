"""Tokenised preference pairs, held as flat arrays."""

import array
from collections.abc import Iterable, Sequence
import dataclasses
import functools
import hashlib
import itertools
from typing import NamedTuple

import numpy as np

from alignjax.data import report as report_lib
from alignjax.data import rows as rows_lib
from alignjax.data import sources, tokenization

CHUNK = 512  # pairs that are encoded together


class TokenPair(NamedTuple):
  """One prompt and its N responses, as token ids."""

  prompt: Sequence[int]
  responses: Sequence[Sequence[int]]  # N of them, end token included
  label: float = 1.0
  weight: float = 1.0
  score: Sequence[float] | None = None  # N of them
  behaviour_logp: Sequence[float] | None = None  # N of them, nats
  path: str = '<memory>'  # where the pair comes from
  line: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class TokenizedPairs:
  """n prompts with N responses each, ragged: rows are slices of two flat arrays. Picklable.

  Made by `tokenize` from text, or by `pack` from token ids.
  """

  prompt_tokens: np.ndarray  # [sum of prompt lengths] int32
  prompt_offsets: np.ndarray  # [n + 1] int64
  response_tokens: np.ndarray  # [sum of response lengths] int32, response after response, row after row
  response_offsets: np.ndarray  # [n * N + 1] int64
  responses: int  # N
  label: np.ndarray  # [n] float32
  weight: np.ndarray  # [n] float32
  score: np.ndarray | None  # [n, N] float32
  behaviour_logp: np.ndarray | None  # [n, N] float32
  paths: tuple[str, ...]
  path_index: np.ndarray  # [n] int32, into `paths`
  line: np.ndarray  # [n] int64, counted from 1
  report: report_lib.DropReport

  def __len__(self) -> int:
    return len(self.label)

  def __getitem__(self, index: int) -> TokenPair:
    if not -len(self) <= index < len(self):
      raise IndexError(f'pair {index} of {len(self)}')
    index %= len(self)
    first = index * self.responses
    return TokenPair(
      prompt=self.prompt_tokens[slice(*self.prompt_offsets[index : index + 2])],
      responses=tuple(
        self.response_tokens[slice(*self.response_offsets[i : i + 2])] for i in range(first, first + self.responses)
      ),
      label=float(self.label[index]),
      weight=float(self.weight[index]),
      **{name: values[index] for name, values in self.per_response.items()},
      path=self.paths[self.path_index[index]],
      line=int(self.line[index]),
    )

  @property
  def per_response(self) -> dict[str, np.ndarray]:
    """The columns of one number a response that these pairs have, by name."""
    columns = {name: getattr(self, name) for name in rows_lib.PER_RESPONSE}
    return {name: column for name, column in columns.items() if column is not None}

  @functools.cached_property
  def prompt_length(self) -> np.ndarray:
    """[n] int64."""
    return np.diff(self.prompt_offsets)

  @functools.cached_property
  def response_length(self) -> np.ndarray:
    """[n, N] int64."""
    return np.diff(self.response_offsets).reshape(-1, self.responses)

  def origin(self, index: int) -> str:
    """'file:line' of a pair."""
    return f'{self.paths[self.path_index[index]]}:{self.line[index]}'

  @functools.cached_property
  def fingerprint(self) -> str:
    """sha256 of all columns in hexadecimal: the data's identity, wherever it was read."""
    digest = hashlib.sha256(f'alignjax pairs 1, {len(self)} x {self.responses}'.encode())
    columns = [self.prompt_offsets, self.prompt_tokens, self.response_offsets, self.response_tokens]
    for column in (*columns, self.label, self.weight):
      digest.update(column.astype(column.dtype.newbyteorder('<'), copy=False))
    for name, column in self.per_response.items():
      digest.update(name.encode() + column.astype('<f4', copy=False).tobytes())
    return digest.hexdigest()


def pack(rows: Iterable[TokenPair], report: report_lib.DropReport | None = None) -> TokenizedPairs:
  """Packs pairs of token ids, such as responses that a model has just drawn.

  Args:
    rows: all with the same number of responses; scores and behaviour log-probabilities in all of them or in none.
    report: travels along; None makes one that counts the rows.

  Raises:
    ValueError: no rows, an empty prompt or response, or rows that differ in what they hold.
  """
  prompts, responses = _Ragged(), _Ragged()
  labels, weights, lines, path_indices = array.array('f'), array.array('f'), array.array('q'), array.array('i')
  per_response: dict[str, list[Sequence[float] | None]] = {name: [] for name in rows_lib.PER_RESPONSE}
  paths: dict[str, int] = {}
  counts = set()
  for row in rows:
    if not len(row.prompt) or not all(len(response) for response in row.responses):
      raise ValueError(f'{row.path}:{row.line}: the prompt or a response has no tokens')
    prompts.append(row.prompt)
    for response in row.responses:
      responses.append(response)
    for name, column in per_response.items():
      values = getattr(row, name)
      if values is not None and len(values) != len(row.responses):
        raise ValueError(f'{row.path}:{row.line}: {len(values)} values of {name} for {len(row.responses)} responses')
      column.append(values)
    counts.add(len(row.responses))
    labels.append(row.label)
    weights.append(row.weight)
    path_indices.append(paths.setdefault(row.path, len(paths)))
    lines.append(row.line)
  if not labels:
    raise ValueError(f'no pairs are left: {report or "none were given"}')
  if len(counts) > 1:
    raise ValueError(f'pairs have different numbers of responses {sorted(counts)}; give every prompt the same number')
  for name, column in per_response.items():
    if len({values is None for values in column}) > 1:
      raise ValueError(f'some pairs have a {name} and some have none; give every pair a {name}, or none')
  return TokenizedPairs(
    prompt_tokens=_array(prompts.tokens, np.int32),
    prompt_offsets=_array(prompts.offsets, np.int64),
    response_tokens=_array(responses.tokens, np.int32),
    response_offsets=_array(responses.offsets, np.int64),
    responses=counts.pop(),
    label=_array(labels, np.float32),
    weight=_array(weights, np.float32),
    **{name: None if column[0] is None else np.asarray(column, np.float32) for name, column in per_response.items()},
    paths=tuple(paths),
    path_index=_array(path_indices, np.int32),
    line=_array(lines, np.int64),
    report=report or report_lib.DropReport(read=len(labels)),
  )


def tokenize(
  pairs: Iterable[sources.Pair],
  tokenizer: tokenization.Tokenizer,
  *,
  max_prompt: int,
  max_response: int,
  vocab_size: int,
  report: report_lib.DropReport | None = None,
  truncate_response: bool = False,
  on_error: str = 'raise',
) -> TokenizedPairs:
  """Tokenises pairs; drops, and counts, those that have nothing to teach once they fit the limits.

  Prompts are cut on the left. Dropped are pairs with `empty_response`, `response_too_long`, `identical_responses`.
  Kept but noted are `prompt_truncated`, `response_truncated`, `boundary_merge` (see `tokenization`), `end_token_inside`
  (text that spells an end token) and `end_token_added` (a chat template that closes no turn with one).

  Args:
    pairs: for instance from `sources.read_pairs`, all with the same number N of responses.
    tokenizer: of the model.
    max_prompt: tokens of a prompt, BOS included.
    max_response: tokens of a response, end token included.
    vocab_size: rows of the model's embedding.
    report: the one that the reader of `pairs` counts in; None makes one that counts `pairs`.
    truncate_response: cut long responses instead of dropping their pair; a cut response has no end token.
    on_error: 'raise' or 'skip', for pairs that the chat template refuses.

  Raises:
    DataError: a pair that cannot be encoded.
    ValueError: no pair is left, or a token id is outside the model's vocabulary.
  """
  sources.check_policy(on_error)
  for name, limit in (('max_prompt', max_prompt), ('max_response', max_response)):
    if limit < 2:
      raise ValueError(f'{name}={limit}: must be at least 2 tokens')
  if report is None:
    report = report_lib.DropReport()
    pairs = _count(pairs, report)
  fit = functools.partial(
    _fit,
    tokenizer=tokenizer,
    max_prompt=max_prompt,
    max_response=max_response,
    truncate_response=truncate_response,
    report=report,
  )

  def rows() -> Iterable[TokenPair]:
    for chunk in itertools.batched(pairs, CHUNK):
      encoded = tokenizer.encode_pairs((pair.prompt, pair.responses) for pair in chunk)
      for pair, result in zip(chunk, encoded, strict=True):
        if not isinstance(result, tokenization.EncodingError):
          row = fit(pair, result)
          if row is not None:
            yield row
        elif on_error == 'raise':
          raise sources.DataError(pair.origin, result.reason, str(result))
        else:
          report.drop(result.reason, pair.origin, str(result))

  packed = pack(rows(), report)
  _check_vocabulary(packed, tokenizer, vocab_size)
  return packed


def _fit(
  pair: sources.Pair,
  encoded: tokenization.Encoded,
  *,
  tokenizer: tokenization.Tokenizer,
  max_prompt: int,
  max_response: int,
  truncate_response: bool,
  report: report_lib.DropReport,
) -> TokenPair | None:
  """Applies the limits to one pair; None if it was dropped."""
  drop, note = functools.partial(report.drop, origin=pair.origin), functools.partial(report.note, origin=pair.origin)
  if not all(tokenizer.text_length(ids) for ids in encoded.responses):
    return drop('empty_response', detail='a response has no tokens but its end token')
  longest = max(map(len, encoded.responses))
  if longest > max_response and not truncate_response:
    return drop('response_too_long', detail=f'{longest} tokens, limit {max_response}')
  responses = [ids[:max_response] for ids in encoded.responses]
  if len(responses) > 1 and all(ids == responses[0] for ids in responses):
    return drop('identical_responses', detail='the responses have the same tokens')
  if longest > max_response and pair.behaviour_logp is not None:
    return drop('behaviour_logp_truncated', detail='behaviour_logp is that of the whole response, which is too long')
  if longest > max_response:
    note('response_truncated', detail=f'{longest} tokens, limit {max_response}: trained without an end token')
  if len(encoded.prompt) > max_prompt:
    note('prompt_truncated', detail=f'{len(encoded.prompt)} tokens, limit {max_prompt}: cut on the left')
  if encoded.merged:
    note('boundary_merge', detail=f'{encoded.merged} prompt tokens merged with a response, and count as part of it')
  if encoded.end_inside:
    note('end_token_inside', detail='a response has an end token before its end')
  if encoded.end_added and not isinstance(pair.prompt, str):
    note('end_token_added', detail='the chat template closes the turn with none')
  return TokenPair(
    prompt=tokenizer.truncate_prompt(encoded.prompt, max_prompt),
    responses=responses,
    label=pair.label,
    weight=pair.weight,
    score=pair.score,
    behaviour_logp=pair.behaviour_logp,
    path=pair.path,
    line=pair.line,
  )


def _count(pairs: Iterable[sources.Pair], report: report_lib.DropReport) -> Iterable[sources.Pair]:
  for pair in pairs:
    report.read += 1
    yield pair


def _check_vocabulary(pairs: TokenizedPairs, tokenizer: tokenization.Tokenizer, vocab_size: int) -> None:
  tables = (
    ('prompt', pairs.prompt_tokens, pairs.prompt_offsets, 1),
    ('response', pairs.response_tokens, pairs.response_offsets, pairs.responses),
  )
  for name, tokens, offsets, stride in tables:
    position = int(tokens.argmax())
    if tokens[position] >= vocab_size:
      row = (int(np.searchsorted(offsets, position, side='right')) - 1) // stride
      text = tokenizer.decode([tokens[position]], skip_special_tokens=False)
      raise ValueError(
        f'{pairs.origin(row)}: the {name} has token id {tokens[position]} ({text!r}), but the model has {vocab_size} '
        'embeddings; use the tokenizer that belongs to the model'
      )


class _Ragged:
  """Sequences of ids, appended one after the other."""

  def __init__(self):
    self.tokens = array.array('i')
    self.offsets = array.array('q', [0])

  def append(self, ids: Sequence[int]) -> None:
    self.tokens.extend(ids)
    self.offsets.append(len(self.tokens))


def _array(values: array.array, dtype: type) -> np.ndarray:
  return np.frombuffer(values, dtype=dtype)
