"""Checks token ids: starts, ends, limits, and the report of rows that were dropped or truncated."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from alignjax.data.reading import rows
from alignjax.data.tokens import dataset, tokenization
from alignjax.doctor import findings, shares
from alignjax.doctor.shares import Symptom

TURN = [{'role': 'user', 'content': 'question'}]
TURNS = [*TURN, {'role': 'assistant', 'content': 'answer'}, *TURN]


def outside_vocabulary(data: dataset.TokenDataset, vocab_size: int) -> Iterator[findings.Finding]:
  prompt, response = ((ids < 0) | (ids >= vocab_size) for ids in (data.prompt_tokens, data.response_tokens))
  symptom = Symptom(
    'outside_vocabulary',
    f'have token ids outside the {vocab_size} rows of the embedding',
    'Use the tokenizer that belongs to the model',
    shares.ANY_IS_ERROR,
  )
  yield from shares.found(symptom, data, _in_prompt(data, prompt) | _in_responses(data, response))


def beyond_positions(data: dataset.TokenDataset, max_positions: int) -> Iterator[findings.Finding]:
  length = data.prompt_length + data.longest_response - 1  # the last token is no input
  symptom = Symptom(
    'beyond_positions',
    f'are longer than the {max_positions} positions of the model, up to {length.max() + 1} tokens',
    'Lower the limits of prompts and responses, or use a model with a longer context',
    shares.ANY_IS_ERROR,
  )
  yield from shares.found(symptom, data, length > max_positions)


def missing_bos(data: dataset.TokenDataset, tokenizer: tokenization.Tokenizer) -> Iterator[findings.Finding]:
  if tokenizer.prefix:
    symptom = Symptom(
      'missing_bos',
      f'do not start with {spell(tokenizer, tokenizer.prefix[:1])}, which this tokenizer puts before every text',
      'Create the token ids with Tokenizer.encode_prompt',
      shares.FEW_IS_ERROR,
    )
    first = data.prompt_tokens[data.prompt_offsets[:-1]]
    yield from shares.found(symptom, data, first != tokenizer.prefix[0])


def double_bos(data: dataset.TokenDataset, tokenizer: tokenization.Tokenizer) -> Iterator[findings.Finding]:
  """A BOS that is not at the start."""
  bos = tokenizer.bos_id
  if bos is None:
    return
  starts, is_bos = data.prompt_offsets[:-1], data.prompt_tokens == bos
  if starts_once(tokenizer):
    is_bos[starts] = False
    found = _in_prompt(data, is_bos)
  else:  # it may start every turn, so only two in a row are certainly wrong
    second = np.minimum(starts + 1, len(is_bos) - 1)
    found = is_bos[starts] & is_bos[second] & (data.prompt_length > 1)
  if bos not in tokenizer.end_ids:
    found = found | _in_responses(data, data.response_tokens == bos)
  symptom = Symptom(
    'double_bos',
    f'have a second {spell(tokenizer, [bos])}, within the prompt or in a response',
    'Remove it from the texts: the tokenizer and the chat template add it where it belongs',
    shares.FEW_IS_ERROR,
  )
  yield from shares.found(symptom, data, found)


def untrained_end(data: dataset.TokenDataset, tokenizer: tokenization.Tokenizer) -> Iterator[findings.Finding]:
  last = data.response_tokens[data.response_offsets[1:] - 1].reshape(-1, data.responses)
  symptom = Symptom(
    'untrained_end',
    f'have a response that does not end with {spell(tokenizer, tokenizer.end_ids)}',
    'The model does not learn to stop: raise the limit of responses, or drop long ones instead of truncating them',
    shares.SOME_IS_WARNING,
  )
  yield from shares.found(symptom, data, ~np.isin(last, list(tokenizer.end_ids)).all(axis=1))


def end_token_inside(data: dataset.TokenDataset, tokenizer: tokenization.Tokenizer) -> Iterator[findings.Finding]:
  at = np.isin(data.response_tokens, list(tokenizer.end_ids))
  at[data.response_offsets[1:] - 1] = False
  symptom = Symptom(
    'end_token_inside',
    f'have {spell(tokenizer, tokenizer.end_ids)} within a response, where sampling would have stopped',
    'Remove it from the texts: the tokenizer or the chat template ends a response',
    shares.MANY_IS_ERROR,
  )
  yield from shares.found(symptom, data, _in_responses(data, at))


def unused_template(data: dataset.TokenDataset, tokenizer: tokenization.Tokenizer) -> Iterator[findings.Finding]:
  """Prompts without the control tokens with which the chat template starts and ends turns."""
  turn = None if tokenizer.template is None else encode(tokenizer, TURN)
  added = tokenizer.backend.get_added_tokens_decoder()
  control = {i for i in turn or () if i in added and added[i].special} - {*tokenizer.prefix}
  if not control:
    return
  symptom = Symptom(
    'template_unused',
    f'have a prompt without {spell(tokenizer, control)}, which the chat template of this model writes',
    'Sampling formats questions with the template, so training should too: give prompts as messages, such as '
    'preference[user=prompt]:. For plain text, use a base model, or ignore this',
    shares.MANY_IS_WARNING,
  )
  yield from shares.found(symptom, data, ~_in_prompt(data, np.isin(data.prompt_tokens, list(control))))


def starts_once(tokenizer: tokenization.Tokenizer) -> bool:
  """Whether BOS occurs only at the start of a conversation. (Llama 2 writes it before every exchange.)"""
  if not tokenizer.prefix or tokenizer.bos_id in tokenizer.end_ids:
    return False
  turns = None if tokenizer.template is None else encode(tokenizer, TURNS)
  return turns is None or turns.count(tokenizer.bos_id) == 1


def encode(tokenizer: tokenization.Tokenizer, messages: list[rows.Message]) -> list[int] | None:
  """The tokens of a conversation; None if the template rejects it."""
  try:
    return tokenizer.encode_prompt(messages)
  except tokenization.EncodingError:
    return None


def spell(tokenizer: tokenization.Tokenizer, ids: Iterable[int]) -> str:
  """Formats tokens for messages: "'</s>' (2)", joined by 'or'."""
  return ' or '.join(f'{tokenizer.backend.id_to_token(token)!r} ({token})' for token in sorted(ids))


def _in_prompt(data: dataset.TokenDataset, at: np.ndarray) -> np.ndarray:
  """[n] whether `at` [tokens] is true anywhere in the prompt of each example."""
  return _any_between(at, data.prompt_offsets)


def _in_responses(data: dataset.TokenDataset, at: np.ndarray) -> np.ndarray:
  return _any_between(at, data.response_offsets[:: data.responses])


def _any_between(at: np.ndarray, offsets: np.ndarray) -> np.ndarray:
  counts = np.concatenate([[0], np.cumsum(at)])
  return np.diff(counts[offsets]) > 0


# --- the report


class _Reasons(NamedTuple):
  """Reasons of a report that make one finding."""

  kind: str  # 'dropped', a share of the rows read, or 'noted', a share of the rows kept
  reasons: tuple[str, ...]  # () is every reason of this kind that no other entry names
  symptom: Symptom


_REPORTED = (
  _Reasons(
    'dropped',
    ('response_too_long', 'behaviour_logp_truncated'),
    Symptom(
      'responses_dropped',
      'rows dropped because a response is too long',
      'Raise the limit of responses: only short ones are left to learn from',
      shares.SOME_IS_WARNING,
    ),
  ),
  _Reasons(
    'dropped',
    (),
    Symptom(
      'rows_dropped',
      'rows dropped for other reasons',
      'Fix the rows that the report names',
      shares.SOME_IS_WARNING,
    ),
  ),
  _Reasons(
    'noted',
    ('prompt_truncated',),
    Symptom(
      'prompts_cut',
      'prompts cut on the left',
      'Raise the limit of prompts: their beginning, such as a system message, is lost',
      shares.SOME_IS_WARNING,
    ),
  ),
  _Reasons(
    'noted',
    ('boundary_merge',),
    Symptom(
      'boundary_merges',
      'prompts whose last tokens change when a response follows',
      'Sampling starts from a state that training never sees: do not end prompts with a space, and use a chat template '
      'whose generation prompt matches the start of its answers',
      shares.MANY_IS_WARNING,
    ),
  ),
  _Reasons(
    'noted',
    ('control_text',),
    Symptom(
      'control_text',
      'examples with a message that spells a control token, which is encoded as text',
      'If the texts were formatted for a model before, give the messages as they were: the model would learn to spell '
      'these tokens',
      shares.FEW_IS_WARNING,
    ),
  ),
  _Reasons(
    'noted',
    ('control_tokens_in_text',),
    Symptom(
      'control_tokens_in_text',
      'examples whose text spells a control token, which becomes that token',
      'This is right for texts that are formatted already; give other texts as messages',
      shares.NEVER,
    ),
  ),
  _Reasons(
    'noted',
    ('foreign_control_text',),
    Symptom(
      'foreign_control_text',
      'examples with a message that spells a control token of another chat format, which is trained as text',
      'Remove the marks from the texts, and give turns as messages',
      shares.FEW_IS_WARNING,
    ),
  ),
  _Reasons(
    'noted',
    ('template_adds_text',),
    Symptom(
      'template_adds_text',
      'examples with text of the chat template before the response, which is trained and counts as its length',
      'Harmless if the model was trained this way; a variable of the template, such as enable_thinking in '
      'chat_template_kwargs, can make it part of the prompt',
      shares.NEVER,
    ),
  ),
  _Reasons(
    'noted',
    ('template_changes_space',),
    Symptom(
      'template_changes_space',
      'examples with a response whose white space the chat template changes',
      'Harmless if it is the format of the model; compare `alignjax data inspect` with the texts',
      shares.NEVER,
    ),
  ),
)


def report_shares(data: dataset.TokenDataset) -> Iterator[findings.Finding]:
  """Findings about dropped and truncated rows, from the report that comes with the dataset."""
  totals = {'dropped': data.report.read, 'noted': data.report.kept}
  named = {reason for entry in _REPORTED for reason in entry.reasons}
  for kind, reasons, symptom in _REPORTED:
    tallies = getattr(data.report, kind)
    present = [reason for reason in reasons or sorted(tallies.keys() - named) if reason in tallies]
    if present:
      count, total = sum(tallies[reason].count for reason in present), totals[kind]
      most = max(present, key=lambda reason: tallies[reason].count)
      seen = f'{count:,} of {total:,} ({count / total:.1%}) {symptom.what}; {most} at {tallies[most].examples[0]}'
      yield findings.Finding(symptom.name, symptom.thresholds.severity(count / total), seen, symptom.advice)
