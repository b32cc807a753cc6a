"""Findings about responses that the policy has drawn, and that cannot be corrected like data."""

from collections.abc import Iterable

from alignjax.doctor import findings

# They concern how a dataset was made. Rollouts repeat prompts, and keep equal responses on purpose.
_OF_FILES = frozenset(
  {
    'identical_responses',
    'duplicate_examples',
    'contradictory_examples',
    'dominating_prompt',
    'wasteful_shapes',
    'empty_rows',
  }
)
# These may change while the policy is trained.
_ADVICE = {
  'untrained_end': 'Raise --max_new_tokens if the responses should end by themselves, or subtract missing_end() from '
  'the reward',
  'double_bos': 'Remove it from the texts of the prompts if it is there. A policy may also draw one in a response',
  'no_signal': 'The reward does not distinguish the responses of the first round: draw more with --samples, or use a '
  'reward with more values',
}


def examine(found: Iterable[findings.Finding]) -> list[findings.Finding]:
  """The findings about a first round of rollouts, examined as a dataset, that matter to an on-policy run."""
  return [
    finding._replace(severity=findings.WARNING, advice=_ADVICE[finding.name]) if finding.name in _ADVICE else finding
    for finding in found
    if finding.name not in _OF_FILES
  ]
