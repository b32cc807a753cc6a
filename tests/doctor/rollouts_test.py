"""Findings about a first round of rollouts."""

from alignjax.doctor import findings, rollouts


def test_what_cannot_be_corrected_is_left_out_and_what_may_change_is_a_warning():
  names = ('identical_responses', 'untrained_end', 'no_signal', 'double_bos', 'missing_bos')
  found = rollouts.examine([findings.Finding(name, findings.ERROR, 'seen', 'advice') for name in names])
  assert [(finding.name, finding.severity) for finding in found] == [
    ('untrained_end', findings.WARNING),
    ('no_signal', findings.WARNING),
    ('double_bos', findings.WARNING),
    ('missing_bos', findings.ERROR),
  ]
  assert '--max_new_tokens' in found[0].advice
  assert '--samples' in found[1].advice
