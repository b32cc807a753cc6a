"""Tokenises examples and applies the length limits. What no longer fits, or has nothing to teach, is dropped."""

import collections
from collections.abc import Iterable, Iterator, Mapping
import concurrent.futures
import dataclasses
import datetime
import functools
import itertools
import multiprocessing
import os
import pathlib
import signal
from typing import Any, NamedTuple

import numpy as np

from alignjax.data.reading import drops, rows
from alignjax.data.tokens import dataset, tokenization

CHUNK = 512  # examples that are encoded together
AHEAD = 2  # chunks per worker that are read before the first of them is tokenised


@dataclasses.dataclass(frozen=True)
class Limits:
  """What the model can take, in tokens."""

  max_prompt: int  # BOS included; longer prompts are cut on the left
  max_response: int  # end token included
  vocab_size: int  # rows of the model's embedding
  truncate_response: bool = False  # cut long responses instead of dropping the example; they have no end token then

  def __post_init__(self):
    for name in ('max_prompt', 'max_response'):
      if getattr(self, name) < 2:
        raise ValueError(f'{name}={getattr(self, name)}: must be at least 2 tokens')


def tokenize(
  examples: Iterable[rows.Example],
  tokenizer: tokenization.Tokenizer,
  limits: Limits,
  report: drops.DropReport | None = None,
  *,
  on_error: str = 'raise',
) -> dataset.TokenDataset:
  """Tokenises examples. Drops, and counts, those that have nothing to teach once they fit the limits.

  Reasons to drop an example: `empty_response`, `response_too_long`, `identical_responses`, `behaviour_logp_truncated`.
  Kept but noted: `prompt_truncated`, `response_truncated`, `boundary_merge` (see `tokenization`), `end_token_inside`
  (a response has an end token before its end), `end_token_added` (the chat template does not end turns with one), what
  the chat template changes or adds (see `rendering`), and control tokens that a text spells (see `control_text`).

  Args:
    examples: the examples, such as those of `sources.read_examples`, all with the same number N of responses.
    tokenizer: the tokenizer of the model.
    limits: longest prompt and response, and the vocabulary.
    report: the report that the reader of `examples` updates; None creates one that counts `examples`.
    on_error: 'raise' or 'skip', for examples that the chat template rejects or whose `behaviour_logp` does not match
      their tokens.

  Raises:
    DataError: an example that cannot be encoded.
    ValueError: no example is left, or a token id is outside the model's vocabulary.
  """
  if report is None:
    report = drops.DropReport()
    examples = _counted(examples, report)
  packed = dataset.pack(encode(examples, tokenizer, limits, report, on_error=on_error), report)
  check_vocabulary(packed, tokenizer, limits.vocab_size)
  return packed


def encode(
  examples: Iterable[rows.Example],
  tokenizer: tokenization.Tokenizer,
  limits: Limits,
  report: drops.DropReport,
  *,
  on_error: str = 'raise',
) -> Iterator[dataset.TokenExample]:
  """Yields the token ids of examples, one at a time. See `tokenize`, which packs them.

  Raises:
    DataError: an example that cannot be encoded.
  """
  rows.check_policy(on_error)
  for chunk in itertools.batched(examples, CHUNK):
    results = tokenizer.encode_all((example.prompt, example.responses) for example in chunk)
    for example, result in zip(chunk, results, strict=True):
      try:
        if isinstance(result, tokenization.EncodingError):
          raise result
        fitted = _fit(example, result, tokenizer, limits, report)
      except tokenization.EncodingError as error:
        if on_error == 'raise':
          raise rows.DataError(example.origin, error.reason, str(error)) from None
        report.drop(error.reason, example.origin, str(error))
      else:
        if fitted is not None:
          yield fitted


class Part(NamedTuple):
  """Consecutive examples."""

  data: dataset.TokenDataset | None  # None if all of them were dropped
  report: drops.DropReport  # counts what was dropped or noted; `read` is 0


def tokenize_parts(
  examples: Iterable[rows.Example],
  tokenizer: tokenization.Tokenizer,
  limits: Limits,
  *,
  on_error: str = 'raise',
  workers: int = 1,
) -> Iterator[Part]:
  """Yields the parts of what `tokenize` returns, in order and in constant memory.

  The parts do not depend on the number of workers.

  Args:
    examples: read in this process.
    tokenizer: a tokenizer from a model folder, from which each worker loads its own.
    limits: as for `tokenize`.
    on_error: as for `tokenize`.
    workers: processes that render and tokenise; 1 uses this process alone.

  Raises:
    DataError: a row that cannot be read or encoded; the first one.
  """
  chunks = itertools.batched(examples, CHUNK)
  if workers == 1:
    for chunk in chunks:
      yield _tokenize_part(tokenizer, limits, on_error, chunk)
    return
  template = tokenizer.template
  of_template = (None, {}) if template is None else (template.date, template.arguments)
  arguments = str(pathlib.Path(tokenizer.origin).parent), *of_template, limits, on_error
  spawn = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(workers, spawn, _start_worker, arguments) as pool:
    pending: collections.deque[concurrent.futures.Future[Part]] = collections.deque()
    failure = None
    try:
      while True:
        try:
          chunk = next(chunks, None)
        except (ValueError, OSError) as error:
          failure, chunk = error, None  # raised below: an earlier row that was read may be malformed, too
        if chunk is None:
          break
        pending.append(pool.submit(_work, chunk))
        if len(pending) > AHEAD * workers:
          yield pending.popleft().result()
      while pending:
        yield pending.popleft().result()
    finally:
      pool.shutdown(wait=False, cancel_futures=True)
    if failure is not None:
      raise failure


def _tokenize_part(
  tokenizer: tokenization.Tokenizer, limits: Limits, on_error: str, chunk: Iterable[rows.Example]
) -> Part:
  report = drops.DropReport()
  kept = list(encode(chunk, tokenizer, limits, report, on_error=on_error))
  return Part(dataset.pack(kept) if kept else None, report)


_worker: tuple[Any, ...] = ()  # the first arguments of `_tokenize` in a worker


def _start_worker(
  folder: str,
  date: datetime.datetime | None,
  template_arguments: Mapping[str, Any],
  limits: Limits,
  on_error: str,
) -> None:
  global _worker
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'  # the workers are the parallelism
  tokenizer = tokenization.Tokenizer.load(folder, lambda: date).with_template_arguments(template_arguments)
  _worker = tokenizer, limits, on_error


def _work(chunk: Iterable[rows.Example]) -> Part:
  return _tokenize_part(*_worker, chunk)


def _fit(
  example: rows.Example,
  encoded: tokenization.Encoded,
  tokenizer: tokenization.Tokenizer,
  limits: Limits,
  report: drops.DropReport,
) -> dataset.TokenExample | None:
  """Applies the limits to one example. Returns None if it was dropped."""
  drop, note = (functools.partial(action, origin=example.origin) for action in (report.drop, report.note))
  _check_behaviour(example, encoded)
  if not all(tokenizer.text_length(ids) for ids in encoded.responses):
    return drop('empty_response', detail='a response has no tokens except its end token')
  longest = max(map(len, encoded.responses), default=0)
  if longest > limits.max_response and not limits.truncate_response:
    return drop('response_too_long', detail=f'{longest} tokens, limit {limits.max_response}')
  responses = [ids[: limits.max_response] for ids in encoded.responses]
  if len(responses) > 1 and all(ids == responses[0] for ids in responses):
    return drop('identical_responses', detail='the responses have the same tokens')
  if longest > limits.max_response and example.behaviour_logp is not None:
    detail = 'behaviour_logp is for the whole response, which is too long; give it per token'
    return drop('behaviour_logp_truncated', detail=detail)
  if longest > limits.max_response:
    note('response_truncated', detail=f'{longest} tokens, limit {limits.max_response}: trained without an end token')
  if len(encoded.prompt) > limits.max_prompt:
    note('prompt_truncated', detail=f'{len(encoded.prompt)} tokens, limit {limits.max_prompt}: cut on the left')
  if encoded.merged:
    note('boundary_merge', detail=f'{encoded.merged} prompt tokens merged with a response and count as part of it')
  if encoded.end_inside:
    note('end_token_inside', detail='a response has an end token before its end')
  for reason, detail in encoded.notes:
    note(reason, detail=detail)
  if encoded.end_added and not isinstance(example.prompt, str):
    note('end_token_added', detail='the chat template does not end the turn with an end token')
  logps = example.behaviour_token_logp
  return dataset.TokenExample(
    prompt=tokenizer.truncate_prompt(encoded.prompt, limits.max_prompt),
    responses=responses,
    label=example.label,
    weight=example.weight,
    score=example.score,
    behaviour_logp=example.behaviour_logp,
    behaviour_token_logp=None if logps is None else [numbers[: limits.max_response] for numbers in logps],
    path=example.path,
    line=example.line,
  )


def _check_behaviour(example: rows.Example, encoded: tokenization.Encoded) -> None:
  """Raises EncodingError unless there is one log-probability per response token."""
  for i, (numbers, ids) in enumerate(zip(example.behaviour_token_logp or (), encoded.responses, strict=False)):
    if len(numbers) != len(ids):
      raise tokenization.EncodingError(
        'behaviour_logp_length',
        f"field 'behaviour_logp[{i}]': has {len(numbers)} numbers, but response {i} has {len(ids)} tokens, end token "
        'included; record them with the same tokenizer and chat template, or give one number per response',
      )


def _counted(examples: Iterable[rows.Example], report: drops.DropReport) -> Iterator[rows.Example]:
  for example in examples:
    report.read += 1
    yield example


def check_vocabulary(data: dataset.TokenDataset, tokenizer: tokenization.Tokenizer, vocab_size: int) -> None:
  """Raises ValueError if a token id is outside the model's vocabulary."""
  tables = (
    ('prompt', data.prompt_tokens, data.prompt_offsets, 1),
    ('response', data.response_tokens, data.response_offsets, data.responses),
  )
  for name, tokens, offsets, stride in tables:
    if not len(tokens):
      continue  # prompts without responses
    position = int(tokens.argmax())
    if tokens[position] >= vocab_size:
      example = (int(np.searchsorted(offsets, position, side='right')) - 1) // stride
      tokenizer.check_ids([int(tokens[position])], vocab_size, f'{data.origin(example)}: the {name}')
