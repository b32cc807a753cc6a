"""Compares an objective with its declarations, and drops findings that do not matter to it."""

from collections.abc import Iterable

from alignjax import objectives, stats
from alignjax.doctor import findings

COUPLED_PROMPTS = 4  # smallest batch for an objective whose rows depend on one another

# Findings about labels, which do not matter to an objective that reads no label.
LABEL_FINDINGS = frozenset(
  {
    'bad_label',
    'no_signal',
    'one_class',
    'rare_class',
    'scores_contradict',
    'swapped_labels',
    'tied_scores',
    'undesirable_only',
  }
)
# Findings about the balance of desirable and undesirable responses, which does not matter to an objective that treats
# each response alone, such as sft().
CLASS_FINDINGS = frozenset({'one_class', 'rare_class'})


def examine_coupling(objective: objectives.Objective, responses: int) -> list[findings.Finding]:
  """Looks for an undeclared dependence of a prompt's loss on other prompts of the batch.

  Args:
    objective: the loss. In a sum, the finding names the parts at fault.
    responses: N of the data.
  """
  if objective.couples_rows or not objectives.couples(objective, responses):
    return []
  at_fault = [leaf.name for leaf in objective.leaves if objectives.couples(leaf, responses)] or [objective.name]
  seen = f'the loss of a prompt under {" and ".join(at_fault)} depends on other prompts of the batch'
  advice = (
    f'Declare Objective(..., couples_rows=True) in {" and ".join(at_fault)}: without it, the gradient depends on the '
    'number of microbatches and devices'
  )
  return [findings.Finding('undeclared_coupling', findings.ERROR, seen, advice)]


def examine_batch_size(objective: objectives.Objective, batch_size: int) -> list[findings.Finding]:
  """Looks for a batch too small for an objective that compares the prompts of a batch with one another.

  Args:
    objective: the loss. In a sum, the finding names the parts concerned.
    batch_size: prompts per update.
  """
  if batch_size >= COUPLED_PROMPTS or not objective.couples_rows:
    return []
  parts = ' and '.join(dict.fromkeys(leaf.label for leaf in objective.leaves if leaf.couples_rows)) or objective.name
  seen = f'{parts} compares the prompts of a batch with one another, and a batch has {batch_size}'
  advice = (
    f'Use a batch of {COUPLED_PROMPTS} prompts or more: with one, the estimate is the prompt’s own value, and the loss '
    'may be constant'
  )
  return [findings.Finding('small_coupled_batch', findings.WARNING, seen, advice)]


def examine_samples(objective: objectives.Objective, *, on_policy: bool) -> list[findings.Finding]:
  """Looks for objectives of the policy's own samples that are trained on other responses.

  Args:
    objective: the loss. In a sum, the finding names the parts at fault.
    on_policy: whether the responses are drawn from the current policy; see `training.source`.
  """
  if on_policy or not objective.on_policy:
    return []
  at_fault = ' and '.join(dict.fromkeys(leaf.label for leaf in objective.leaves if leaf.on_policy))
  return [
    findings.Finding(
      'off_policy_responses',
      findings.WARNING,
      f'the responses of {at_fault} must be the current policy’s own samples, and these come from files',
      'On other responses, neither its value nor its gradient is that of the documented objective: draw responses from '
      'the policy during training, or use an objective for fixed data, such as dpo() or rebel()',
    )
  ]


def relevant(found: Iterable[findings.Finding], objective: objectives.Objective) -> list[findings.Finding]:
  """Drops findings about labels and ends that do not matter to the objective."""
  readers = [leaf for leaf in objective.leaves if 'label' in leaf.reads]
  dropped = CLASS_FINDINGS if readers else LABEL_FINDINGS
  if any(leaf.couples_rows for leaf in readers):
    dropped = frozenset()
  if all(stats.reads_final([stat]) for stat in objective.needs):  # a reward model writes no responses
    dropped |= {'untrained_end'}
  return [finding for finding in found if finding.name not in dropped]
