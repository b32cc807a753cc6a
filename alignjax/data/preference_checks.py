"""Checks of preferences: pairs against each other, labels, weights and lengths."""

from collections.abc import Iterator
import itertools
from typing import NamedTuple

import numpy as np

from alignjax.data import checks, findings
from alignjax.data import pairs as pairs_lib

DOMINATING_SHARE = 0.1  # of all pairs have one prompt
DOMINATING_PAIRS = 20  # at least, for that to mean anything
LONGER_SHARE = 0.7  # of the pairs have the longer response chosen, or the shorter one
LENGTH_PAIRS = 50  # at least, for that to mean anything
STANDARD_ERRORS = 3.0  # of a mean difference, from 0
RARE_CLASS = 0.1  # share of the desirable, or of the undesirable, among unpaired responses


class Names(NamedTuple):
  """Numbers for token sequences: equal numbers for equal sequences."""

  prompt: np.ndarray  # [n]
  responses: np.ndarray  # [n, N]


def identify(*sets: pairs_lib.TokenizedPairs) -> list[Names]:
  """The names of the sequences of each set; they mean the same in all of them."""
  known: dict[bytes, int] = {}
  return [
    Names(
      _number(pairs.prompt_tokens, pairs.prompt_offsets, known),
      _number(pairs.response_tokens, pairs.response_offsets, known).reshape(-1, pairs.responses),
    )
    for pairs in sets
  ]


def _number(tokens: np.ndarray, offsets: np.ndarray, known: dict[bytes, int]) -> np.ndarray:
  raw, places = tokens.tobytes(), (offsets * tokens.itemsize).tolist()
  numbers = (known.setdefault(raw[start:stop], len(known)) for start, stop in itertools.pairwise(places))
  return np.fromiter(numbers, np.int64, len(places) - 1)


def same_rows(*tables: np.ndarray) -> list[np.ndarray]:
  """A number for each row of each table; equal numbers for equal rows."""
  number = np.unique(np.concatenate(tables), axis=0, return_inverse=True)[1]
  return np.split(number, np.cumsum([len(table) for table in tables])[:-1])


# --- pairs against each other


def identical_responses(pairs: pairs_lib.TokenizedPairs, names: Names) -> Iterator[findings.Finding]:
  if pairs.responses > 1:
    yield from checks.found(
      'identical_responses',
      pairs,
      _identical(names),
      'prefer a response to itself',
      'Leave them out: they teach nothing',
      error=checks.MANY,
    )


def duplicate_pairs(pairs: pairs_lib.TokenizedPairs, names: Names) -> Iterator[findings.Finding]:
  columns = [names.prompt, _oriented(pairs, names.responses)]
  if pairs.responses != 2:
    columns.append(pairs.label < 0.5)
  first = np.unique(np.column_stack(columns), axis=0, return_index=True)[1]
  again = np.ones(len(pairs), bool)
  again[first] = False
  yield from checks.found(
    'duplicate_pairs',
    pairs,
    again,
    'repeat an earlier one',
    'Keep one of each, with a weight if their number means something',
  )


def contradictory_pairs(pairs: pairs_lib.TokenizedPairs, names: Names) -> Iterator[findings.Finding]:
  """A over B here and B over A there; for unpaired responses, desirable here and undesirable there."""
  if pairs.responses > 2:
    return
  if pairs.responses == 2:
    preferred = _oriented(pairs, names.responses)
    opposite = preferred[:, ::-1]
  else:
    preferred = np.column_stack([names.responses, pairs.label > 0.5])
    opposite = np.column_stack([names.responses, pairs.label <= 0.5])
  certain = (pairs.label != 0.5) & ~(_identical(names) & (pairs.responses == 2))
  here, there = same_rows(np.column_stack([names.prompt, preferred]), np.column_stack([names.prompt, opposite]))
  yield from checks.found(
    'contradictory_pairs',
    pairs,
    certain & np.isin(there, here[certain]),
    'are contradicted by another one',
    'Take a majority vote, or give both a label between 0 and 1',
    error=checks.MANY,
  )


def dominating_prompt(pairs: pairs_lib.TokenizedPairs, names: Names) -> Iterator[findings.Finding]:
  _, number, counts = np.unique(names.prompt, return_inverse=True, return_counts=True)
  rows = number == counts.argmax()
  if counts.max() >= DOMINATING_PAIRS:
    yield from checks.found(
      'dominating_prompt',
      pairs,
      rows & (counts.max() > DOMINATING_SHARE * len(pairs)),
      'have one and the same prompt',
      'See whether the prompts were read from the right field, and thin this one out',
    )


def shared_pairs(train: pairs_lib.TokenizedPairs, evaluation: pairs_lib.TokenizedPairs) -> Iterator[findings.Finding]:
  """Evaluation pairs, or at least prompts, that are trained on."""
  known, asked = identify(train, evaluation)
  prompt_shared = np.isin(asked.prompt, known.prompt)
  pair_shared = np.zeros_like(prompt_shared)
  if train.responses == evaluation.responses:
    tables = (np.column_stack([names.prompt, np.sort(names.responses, axis=1)]) for names in (known, asked))
    trained, evaluated = same_rows(*tables)
    pair_shared = np.isin(evaluated, trained)
  yield from checks.found(
    'shared_pairs',
    evaluation,
    pair_shared,
    'are among the training pairs',
    'Take them out of one of the two: the model is trained on what it is asked',
    warning=checks.NONE,
  )
  yield from checks.found(
    'shared_prompts',
    evaluation,
    prompt_shared & ~pair_shared,
    'have a prompt that is trained on with other responses',
    'Split the data by prompt',
    warning=checks.NONE,
  )


def _identical(names: Names) -> np.ndarray:
  return (names.responses == names.responses[:, :1]).all(axis=1)


def _oriented(pairs: pairs_lib.TokenizedPairs, values: np.ndarray) -> np.ndarray:
  """[n, N]: values of the responses; of two, the one that the label prefers first."""
  if pairs.responses != 2:
    return values
  return np.where(pairs.label[:, None] < 0.5, values[:, ::-1], values)


# --- labels, weights, lengths


def weights(pairs: pairs_lib.TokenizedPairs) -> Iterator[findings.Finding]:
  yield from checks.found(
    'bad_weight',
    pairs,
    ~(np.isfinite(pairs.weight) & (pairs.weight >= 0)),
    'have a weight that is negative or not finite',
    'Weights count pairs: turn a preference round with its label',
    error=checks.NONE,
  )
  yield from checks.found(
    'no_weight',
    pairs,
    np.broadcast_to(not pairs.weight.any(), len(pairs)),
    'have weight 0, so nothing is trained',
    'Give the pairs that count a weight above 0, or leave the field out',
    error=checks.NONE,
  )


def labels(pairs: pairs_lib.TokenizedPairs) -> Iterator[findings.Finding]:
  """A label is P(the first response is preferred); of an unpaired response, P(it is desirable)."""
  label = pairs.label
  yield from checks.found(
    'bad_label',
    pairs,
    ~((label >= 0) & (label <= 1)),
    'have a label outside [0, 1]',
    'A label is a probability',
    error=checks.NONE,
  )
  yield from checks.found(
    'no_signal',
    pairs,
    np.broadcast_to((label == 0.5).all(), len(pairs)),
    'have label 0.5, which prefers neither response',
    'Give labels that say which response is better, or leave the field out',
    error=checks.NONE,
  )
  if pairs.responses > 1:
    yield from checks.found(
      'swapped_labels',
      pairs,
      np.broadcast_to((label < 0.5).all(), len(pairs)),
      'prefer the second response',
      'The label is the probability that the first response, chosen, is preferred: exchange the two, or take 1 - label',
      error=checks.NONE,
    )
  else:
    yield from _class_balance(pairs)


def _class_balance(pairs: pairs_lib.TokenizedPairs) -> Iterator[findings.Finding]:
  certain = int(np.count_nonzero(pairs.label != 0.5))
  if certain:
    share = np.count_nonzero(pairs.label > 0.5) / certain
    seen = f'{share:.1%} of {certain:,} responses are desirable'
    if share in (0.0, 1.0):
      yield findings.Finding(
        'one_class', findings.ERROR, seen, 'Preferences need both: give desirable and undesirable responses'
      )
    elif not RARE_CLASS <= share <= 1 - RARE_CLASS:
      yield findings.Finding(
        'rare_class', findings.WARNING, seen, 'Balance the two with weights, or with those of the objective'
      )


def length_bias(pairs: pairs_lib.TokenizedPairs) -> Iterator[findings.Finding]:
  """Chosen minus rejected response, in tokens. The length of an answer is easier to learn than its quality."""
  if pairs.responses != 2:
    return
  length = _oriented(pairs, pairs.response_length)[pairs.label != 0.5]
  difference = length[:, 0] - length[:, 1]
  if len(difference) < LENGTH_PAIRS or not difference.any():
    return
  mean, error = difference.mean(), difference.std(ddof=1) / np.sqrt(len(difference))
  longer = np.count_nonzero(difference > 0) / np.count_nonzero(difference)
  strong = abs(mean) > STANDARD_ERRORS * error and (longer if mean > 0 else 1 - longer) > LONGER_SHARE
  yield findings.Finding(
    'length_bias',
    findings.WARNING if strong else findings.NOTE,
    f'chosen minus rejected responses are {mean:+.1f} ± {error:.1f} tokens on average; of the pairs with unequal '
    f'lengths, {longer:.0%} have the longer one chosen',
    'Compare with an objective that divides by length, and watch the length of samples',
  )
