"""Checks preferences: examples against each other, labels, weights and lengths."""

from collections.abc import Iterator
import itertools
from typing import NamedTuple

import numpy as np

from alignjax.data.tokens import dataset
from alignjax.doctor import findings, shares
from alignjax.doctor.shares import Symptom

DOMINATING_SHARE = 0.1  # share of all examples with the same prompt
DOMINATING_EXAMPLES = 20  # minimum for the share to be meaningful
LONGER_SHARE = 0.7  # share of pairs that prefer the longer response, or the shorter one
LENGTH_EXAMPLES = 50  # minimum for the share to be meaningful
STANDARD_ERRORS = 3.0  # distance of a mean difference from 0
RARE_CLASS = 0.1  # smallest share of either class among unpaired responses


class Names(NamedTuple):
  """Numbers for token sequences: equal numbers for equal sequences."""

  prompt: np.ndarray  # [n]
  responses: np.ndarray  # [n, N]


def identify(*sets: dataset.TokenDataset) -> list[Names]:
  """Numbers the sequences of each dataset. The numbers are comparable across the datasets."""
  known: dict[bytes, int] = {}
  return [
    Names(
      _number(data.prompt_tokens, data.prompt_offsets, known),
      _number(data.response_tokens, data.response_offsets, known).reshape(-1, data.responses),
    )
    for data in sets
  ]


def _number(tokens: np.ndarray, offsets: np.ndarray, known: dict[bytes, int]) -> np.ndarray:
  raw, places = tokens.tobytes(), (offsets * tokens.itemsize).tolist()
  numbers = (known.setdefault(raw[start:stop], len(known)) for start, stop in itertools.pairwise(places))
  return np.fromiter(numbers, np.int64, len(places) - 1)


def same_rows(*tables: np.ndarray) -> list[np.ndarray]:
  """Numbers the rows of each table: equal numbers for equal rows."""
  number = np.unique(np.concatenate(tables), axis=0, return_inverse=True)[1]
  return np.split(number, np.cumsum([len(table) for table in tables])[:-1])


# --- examples against each other


def identical_responses(data: dataset.TokenDataset, names: Names) -> Iterator[findings.Finding]:
  symptom = Symptom(
    'identical_responses',
    'prefer a response to itself',
    'Remove them: they teach nothing',
    shares.MANY_IS_ERROR,
  )
  if data.responses > 1:
    yield from shares.found(symptom, data, _identical(names))


def duplicates(data: dataset.TokenDataset, names: Names) -> Iterator[findings.Finding]:
  columns = [names.prompt, _oriented(data, names.responses)]
  if data.responses != 2:
    columns.append(data.label < 0.5)
  first = np.unique(np.column_stack(columns), axis=0, return_index=True)[1]
  again = np.ones(len(data), bool)
  again[first] = False
  symptom = Symptom(
    'duplicate_examples', 'repeat an earlier one', 'Keep one of each, and give it a weight if the count is meaningful'
  )
  yield from shares.found(symptom, data, again)


def contradictions(data: dataset.TokenDataset, names: Names) -> Iterator[findings.Finding]:
  """A over B in one example and B over A in another; for unpaired responses, both desirable and undesirable."""
  if data.responses > 2:
    return
  if data.responses == 2:
    preferred = _oriented(data, names.responses)
    opposite = preferred[:, ::-1]
  else:
    preferred = np.column_stack([names.responses, data.label > 0.5])
    opposite = np.column_stack([names.responses, data.label <= 0.5])
  certain = (data.label != 0.5) & ~(_identical(names) & (data.responses == 2))
  here, there = same_rows(np.column_stack([names.prompt, preferred]), np.column_stack([names.prompt, opposite]))
  symptom = Symptom(
    'contradictory_examples',
    'contradict another one',
    'Take a majority vote, or give both a label between 0 and 1',
    shares.MANY_IS_ERROR,
  )
  yield from shares.found(symptom, data, certain & np.isin(there, here[certain]))


def dominating_prompt(data: dataset.TokenDataset, names: Names) -> Iterator[findings.Finding]:
  _, number, counts = np.unique(names.prompt, return_inverse=True, return_counts=True)
  symptom = Symptom(
    'dominating_prompt',
    'have the same prompt',
    'Check that prompts are read from the right field, and remove some of the examples with this one',
  )
  if counts.max() >= DOMINATING_EXAMPLES and counts.max() > DOMINATING_SHARE * len(data):
    yield from shares.found(symptom, data, number == counts.argmax())


def shared(train: dataset.TokenDataset, evaluation: dataset.TokenDataset) -> Iterator[findings.Finding]:
  """Evaluation examples, or at least their prompts, that are also trained on."""
  known, asked = identify(train, evaluation)
  same_prompt = np.isin(asked.prompt, known.prompt)
  same_example = np.zeros_like(same_prompt)
  if train.responses == evaluation.responses:
    tables = (np.column_stack([names.prompt, np.sort(names.responses, axis=1)]) for names in (known, asked))
    trained, evaluated = same_rows(*tables)
    same_example = np.isin(evaluated, trained)
  symptom = Symptom(
    'shared_examples',
    'are also training examples',
    'Remove them from one of the two: the model is evaluated on what it was trained on',
    shares.ANY_IS_WARNING,
  )
  yield from shares.found(symptom, evaluation, same_example)
  symptom = Symptom(
    'shared_prompts',
    'have a prompt that is trained on with other responses',
    'Split the data by prompt',
    shares.ANY_IS_WARNING,
  )
  yield from shares.found(symptom, evaluation, same_prompt & ~same_example)


def _identical(names: Names) -> np.ndarray:
  return (names.responses == names.responses[:, :1]).all(axis=1)


def _oriented(data: dataset.TokenDataset, values: np.ndarray) -> np.ndarray:
  """[n, N] values of the responses; of two, the one that the label prefers comes first."""
  if data.responses != 2:
    return values
  return np.where(data.label[:, None] < 0.5, values[:, ::-1], values)


# --- labels, weights, lengths


def weights(data: dataset.TokenDataset) -> Iterator[findings.Finding]:
  symptom = Symptom(
    'bad_weight',
    'have a weight that is negative or not finite',
    'Weights must be at least 0; to reverse a preference, change its label',
    shares.ANY_IS_ERROR,
  )
  yield from shares.found(symptom, data, ~(np.isfinite(data.weight) & (data.weight >= 0)))
  symptom = Symptom(
    'no_weight',
    'have weight 0, so nothing is trained',
    'Give some examples a weight above 0, or remove the field',
    shares.ANY_IS_ERROR,
  )
  yield from shares.found(symptom, data, np.broadcast_to(not data.weight.any(), len(data)))


def labels(data: dataset.TokenDataset) -> Iterator[findings.Finding]:
  """A label is P(the first response is preferred); for an unpaired response, P(it is desirable)."""
  label = data.label
  symptom = Symptom('bad_label', 'have a label outside [0, 1]', 'A label is a probability', shares.ANY_IS_ERROR)
  yield from shares.found(symptom, data, ~((label >= 0) & (label <= 1)))
  symptom = Symptom(
    'no_signal',
    'have label 0.5, which prefers neither response',
    'Use labels that express a preference, or remove the field',
    shares.ANY_IS_ERROR,
  )
  yield from shares.found(symptom, data, np.broadcast_to((label == 0.5).all(), len(data)))
  if data.responses > 1:
    symptom = Symptom(
      'swapped_labels',
      'prefer the second response',
      'The label is the probability that the first response, chosen, is preferred: swap the two, or use 1 - label',
      shares.ANY_IS_ERROR,
    )
    yield from shares.found(symptom, data, np.broadcast_to((label < 0.5).all(), len(data)))
  else:
    yield from _class_balance(data)


def _class_balance(data: dataset.TokenDataset) -> Iterator[findings.Finding]:
  certain = int(np.count_nonzero(data.label != 0.5))
  if certain:
    share = np.count_nonzero(data.label > 0.5) / certain
    seen = f'{share:.1%} of {certain:,} responses are desirable'
    if share == 0.0:
      advice = 'Training needs desirable responses: check the label'
      yield findings.Finding('undesirable_only', findings.ERROR, seen, advice)
    elif share == 1.0:
      advice = 'Preferences need both desirable and undesirable responses'
      yield findings.Finding('one_class', findings.ERROR, seen, advice)
    elif not RARE_CLASS <= share <= 1 - RARE_CLASS:
      advice = 'Balance the two with weights, in the data or in the objective'
      yield findings.Finding('rare_class', findings.WARNING, seen, advice)


def scores(data: dataset.TokenDataset) -> Iterator[findings.Finding]:
  """Scores of a pair against its label: two columns that should express the same preference."""
  if data.score is None or data.responses != 2:
    return
  preferred = _oriented(data, data.score)
  certain = data.label != 0.5
  symptom = Symptom(
    'scores_contradict',
    'prefer the response with the lower score',
    'Check which of the two is right: the labels may be swapped, or the scores misread (UltraFeedback has some 10s '
    'that should be 1s). Reverse the label, or remove the examples',
    shares.SOME_IS_WARNING,
  )
  yield from shares.found(symptom, data, certain & (preferred[:, 0] < preferred[:, 1]))
  symptom = Symptom(
    'tied_scores',
    'prefer one of two responses with the same score',
    'Their labels may be chance: give them a label near 0.5, or remove them',
    shares.MANY_IS_WARNING,
  )
  yield from shares.found(symptom, data, certain & (preferred[:, 0] == preferred[:, 1]))


def length_bias(data: dataset.TokenDataset) -> Iterator[findings.Finding]:
  """Chosen minus rejected response, in tokens. Length is easier to learn than quality."""
  if data.responses != 2:
    return
  length = _oriented(data, data.response_length)[data.label != 0.5]
  difference = length[:, 0] - length[:, 1]
  if len(difference) < LENGTH_EXAMPLES or not difference.any():
    return
  mean, error = difference.mean(), difference.std(ddof=1) / np.sqrt(len(difference))
  longer = np.count_nonzero(difference > 0) / np.count_nonzero(difference)
  strong = abs(mean) > STANDARD_ERRORS * error and (longer if mean > 0 else 1 - longer) > LONGER_SHARE
  yield findings.Finding(
    'length_bias',
    findings.WARNING if strong else findings.NOTE,
    f'chosen minus rejected length is {mean:+.1f} ± {error:.1f} tokens on average; of the pairs with unequal lengths, '
    f'{longer:.0%} have the longer one chosen',
    'Compare with an objective that divides by length, and watch the length of samples',
  )
