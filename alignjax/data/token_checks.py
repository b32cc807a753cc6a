"""Checks of token ids: starts, ends, limits, and what the report says was dropped or cut."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from alignjax.data import checks, findings, tokenization
from alignjax.data import pairs as pairs_lib

TURN = [{'role': 'user', 'content': 'question'}]
TURNS = [*TURN, {'role': 'assistant', 'content': 'answer'}, *TURN]


def outside_vocabulary(pairs: pairs_lib.TokenizedPairs, vocab_size: int) -> Iterator[findings.Finding]:
  prompt, response = ((ids < 0) | (ids >= vocab_size) for ids in (pairs.prompt_tokens, pairs.response_tokens))
  yield from checks.found(
    'outside_vocabulary',
    pairs,
    _in_prompt(pairs, prompt) | _in_responses(pairs, response),
    f'have token ids outside the {vocab_size} rows of the embedding',
    'Use the tokenizer that belongs to the model',
    error=checks.NONE,
  )


def beyond_positions(pairs: pairs_lib.TokenizedPairs, max_positions: int) -> Iterator[findings.Finding]:
  length = pairs.prompt_length + pairs.response_length.max(axis=1)
  yield from checks.found(
    'beyond_positions',
    pairs,
    length > max_positions,
    f'are longer than the {max_positions} positions of the model, up to {length.max()} tokens',
    'Lower the limits of prompts and responses, or take a model with a longer context',
    error=checks.NONE,
  )


def missing_bos(pairs: pairs_lib.TokenizedPairs, tokenizer: tokenization.Tokenizer) -> Iterator[findings.Finding]:
  if tokenizer.prefix:
    first = pairs.prompt_tokens[pairs.prompt_offsets[:-1]]
    yield from checks.found(
      'missing_bos',
      pairs,
      first != tokenizer.prefix[0],
      f'do not start with {spell(tokenizer, tokenizer.prefix[:1])}, as every text of this tokenizer does',
      'Make the token ids with Tokenizer.encode_prompt',
      warning=checks.NONE,
      error=checks.FEW,
    )


def double_bos(pairs: pairs_lib.TokenizedPairs, tokenizer: tokenization.Tokenizer) -> Iterator[findings.Finding]:
  """A BOS that starts nothing."""
  bos = tokenizer.bos_id
  if bos is None:
    return
  starts, is_bos = pairs.prompt_offsets[:-1], pairs.prompt_tokens == bos
  if starts_once(tokenizer):
    is_bos[starts] = False
    rows = _in_prompt(pairs, is_bos)
  else:  # it may start every turn, so only two in a row are certainly wrong
    second = np.minimum(starts + 1, len(is_bos) - 1)
    rows = is_bos[starts] & is_bos[second] & (pairs.prompt_length > 1)
  if bos not in tokenizer.end_ids:
    rows = rows | _in_responses(pairs, pairs.response_tokens == bos)
  yield from checks.found(
    'double_bos',
    pairs,
    rows,
    f'have a second {spell(tokenizer, [bos])}, within the prompt or in a response',
    'Take it out of the texts: the tokenizer and the chat template put it where it belongs',
    warning=checks.NONE,
    error=checks.FEW,
  )


def untrained_end(pairs: pairs_lib.TokenizedPairs, tokenizer: tokenization.Tokenizer) -> Iterator[findings.Finding]:
  last = pairs.response_tokens[pairs.response_offsets[1:] - 1].reshape(-1, pairs.responses)
  yield from checks.found(
    'untrained_end',
    pairs,
    ~np.isin(last, list(tokenizer.end_ids)).all(axis=1),
    f'have a response that does not end with {spell(tokenizer, tokenizer.end_ids)}',
    'The model does not learn to stop: raise the limit of responses, or drop long ones instead of cutting them',
    warning=checks.SOME,
    error=checks.MANY,
  )


def end_token_inside(pairs: pairs_lib.TokenizedPairs, tokenizer: tokenization.Tokenizer) -> Iterator[findings.Finding]:
  at = np.isin(pairs.response_tokens, list(tokenizer.end_ids))
  at[pairs.response_offsets[1:] - 1] = False
  yield from checks.found(
    'end_token_inside',
    pairs,
    _in_responses(pairs, at),
    f'have {spell(tokenizer, tokenizer.end_ids)} within a response, where sampling would have stopped',
    'Take it out of the texts: the tokenizer or the chat template ends a response',
    error=checks.MANY,
  )


def starts_once(tokenizer: tokenization.Tokenizer) -> bool:
  """Whether BOS stands at the start of a conversation and nowhere else: a Llama 2 writes it before every exchange."""
  if not tokenizer.prefix or tokenizer.bos_id in tokenizer.end_ids:
    return False
  turns = None if tokenizer.template is None else encode(tokenizer, TURNS)
  return turns is None or turns.count(tokenizer.bos_id) == 1


def encode(tokenizer: tokenization.Tokenizer, messages: list[dict[str, str]]) -> list[int] | None:
  """The tokens of a conversation; None where the template refuses it."""
  try:
    return tokenizer.encode_prompt(messages)
  except tokenization.EncodingError:
    return None


def spell(tokenizer: tokenization.Tokenizer, ids: Iterable[int]) -> str:
  """Tokens for a reader: "'</s>' (2)", joined by 'or'."""
  return ' or '.join(f'{tokenizer.backend.id_to_token(token)!r} ({token})' for token in sorted(ids))


def _in_prompt(pairs: pairs_lib.TokenizedPairs, at: np.ndarray) -> np.ndarray:
  """[n]: the pairs in whose prompt `at` [tokens] is true somewhere."""
  return _any_between(at, pairs.prompt_offsets)


def _in_responses(pairs: pairs_lib.TokenizedPairs, at: np.ndarray) -> np.ndarray:
  return _any_between(at, pairs.response_offsets[:: pairs.responses])


def _any_between(at: np.ndarray, offsets: np.ndarray) -> np.ndarray:
  counts = np.concatenate([[0], np.cumsum(at)])
  return np.diff(counts[offsets]) > 0


# --- the report


class _Share(NamedTuple):
  """Reasons of a report that make one finding."""

  name: str
  kind: str  # 'dropped', of the rows that were read, or 'noted', of those that were kept
  reasons: tuple[str, ...]  # () is every reason of the kind that no other entry names
  warning: float
  error: float
  what: str
  advice: str


_SHARES = (
  _Share(
    'responses_dropped',
    'dropped',
    ('response_too_long', 'behaviour_logp_truncated'),
    checks.SOME,
    checks.MANY,
    'rows dropped for a response that is too long',
    'Raise the limit of responses: only short ones are left to learn from',
  ),
  _Share(
    'rows_dropped',
    'dropped',
    (),
    checks.SOME,
    checks.MANY,
    'rows dropped for other reasons',
    'Repair the rows that the report names',
  ),
  _Share(
    'prompts_cut',
    'noted',
    ('prompt_truncated',),
    checks.SOME,
    checks.MANY,
    'prompts cut on the left',
    'Raise the limit of prompts: what they start with, such as a system message, is gone',
  ),
  _Share(
    'boundary_merges',
    'noted',
    ('boundary_merge',),
    checks.MANY,
    checks.ALL,
    'prompts whose last tokens change once a response follows',
    'Sampling starts from a place that training never sees: let no prompt end with a space, and take a chat template '
    'whose generation prompt is how its answers start',
  ),
)


def report_shares(pairs: pairs_lib.TokenizedPairs) -> Iterator[findings.Finding]:
  """What became of the rows, from the report that travelled with them."""
  totals = {'dropped': pairs.report.read, 'noted': pairs.report.kept}
  named = {reason for entry in _SHARES for reason in entry.reasons}
  for entry in _SHARES:
    tallies = getattr(pairs.report, entry.kind)
    present = [reason for reason in entry.reasons or sorted(tallies.keys() - named) if reason in tallies]
    if present:
      count, total = sum(tallies[reason].count for reason in present), totals[entry.kind]
      most = max(present, key=lambda reason: tallies[reason].count)
      seen = f'{count:,} of {total:,} ({count / total:.1%}) {entry.what}; {most} at {tallies[most].examples[0]}'
      yield findings.Finding(entry.name, checks.severity(count / total, entry.warning, entry.error), seen, entry.advice)
