"""Checks a dataset against the declarations of an objective, before any weights are loaded."""

from collections.abc import Collection, Sequence
from typing import Any

OF_EVERY_BATCH = frozenset({'prompt', 'prompt_length', 'response', 'response_length', 'label', 'weight'})

_MEANING = {
  'score': 'a reward for each response',
  'behaviour_logp': 'log-probabilities of the responses under the policy that wrote them',
  'behaviour_token_logp': 'log-probabilities of the tokens of the responses under the policy that wrote them',
}
_COUNT = {1: 'takes one response to a prompt', 2: 'compares two responses to a prompt'}
_MOST = 4096  # responses to a prompt; a larger N is not expected


def at_least(responses: int) -> frozenset[int]:
  """The declaration of an objective that is defined for any N >= `responses`."""
  return frozenset(range(responses, max(responses, _MOST) + 1))


def accepted(responses: int | frozenset[int] | None) -> frozenset[int] | None:
  """The numbers of responses that a declaration allows, as a set; None for any number."""
  return frozenset({responses}) if isinstance(responses, int) else responses


def describe_responses(responses: int | frozenset[int] | None) -> str:
  """Formats a declaration for messages: 'N = 1 or 2', 'N >= 4' or 'any N'."""
  numbers = accepted(responses)
  if numbers is None:
    return 'any N'
  if len(numbers) > 1 and numbers == at_least(min(numbers)):
    return f'N >= {min(numbers)}'
  return f'N = {" or ".join(map(str, sorted(numbers)))}'


def common_responses(terms: Sequence[Any]) -> int | frozenset[int] | None:
  """The numbers of responses that all objectives of a sum allow.

  Raises:
    ValueError: there is no such number. The message names two objectives that contradict each other.
  """
  common, restricted = None, None
  for term in terms:
    numbers = accepted(term.responses)
    if numbers is None:
      continue
    if common is not None and not common & numbers:
      raise ValueError(
        f'{restricted.label} and {term.label} cannot be added: {restricted.label} is defined for '
        f'{describe_responses(common)} responses to a prompt, {term.label} for {describe_responses(numbers)}'
      )
    common, restricted = (numbers if common is None else common & numbers), term
  return next(iter(common)) if common is not None and len(common) == 1 else common


class ResponsesError(ValueError):
  """An objective is not defined for the number of responses of a dataset. `accepted` are the numbers that it takes."""

  def __init__(self, message: str, accepted: frozenset[int]):
    super().__init__(message)
    self.accepted = accepted


def check_batch(objective: Any, fields: Collection[str], responses: int) -> None:
  """Checks from its declarations that an objective can be trained on a dataset.

  Args:
    objective: an `Objective`.
    fields: the optional fields of a batch that the data provide, such as 'score'.
    responses: N, the number of responses to a prompt.

  Raises:
    ResponsesError: the objective is not defined for N responses.
    ValueError: a required field is missing. Both messages name the part of the objective at fault.
  """
  for leaf in objective.leaves:
    numbers = accepted(leaf.responses)
    if numbers is not None and responses not in numbers:
      needed = (
        _COUNT[min(numbers)]
        if len(numbers) == 1 and min(numbers) in _COUNT
        else (f'needs {describe_responses(numbers)} responses to a prompt')
      )
      found = 'has one' if responses == 1 else f'has {responses}'
      raise ResponsesError(f'{leaf.label} {needed}, but the data {found}', numbers)
    for field in sorted(leaf.reads - leaf.optional - OF_EVERY_BATCH - set(fields)):
      meaning = f', {_MEANING[field]},' if field in _MEANING else ''
      raise ValueError(f'{leaf.label} reads `{field}`{meaning} but the data has none')
