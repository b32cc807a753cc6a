"""Examines the batch shapes of a run: how many are compiled, and how much of a batch is padding."""

from alignjax.data.batches import order, packing, shapes
from alignjax.data.tokens import dataset
from alignjax.doctor import findings

FEW_SHAPES = 8  # each shape is compiled
WASTE = 1.5  # tokens of an epoch with the given shapes, relative to the shapes that would be chosen


def examine(plan: order.Plan | packing.Plan, data: dataset.TokenDataset) -> list[findings.Finding]:
  """Examines how many shapes are compiled, and how much padding they cause.

  Args:
    plan: the batches of an epoch.
    data: the training examples.
  """
  if isinstance(plan, packing.Plan):
    return _examine_packing(plan)
  found = []
  if len(plan.buckets) > FEW_SHAPES:
    seen = f'there are {len(plan.buckets)} batch shapes, and each is compiled once for training, once for evaluation'
    advice = 'Give fewer config.buckets, or leave them out'
    found.append(findings.Finding('many_shapes', findings.WARNING, seen, advice))
  chosen = shapes.choose_buckets(data, batch_size=plan.batch_size)
  given, best = (shapes.epoch_tokens(data, buckets, batch_size=plan.batch_size) for buckets in (plan.buckets, chosen))
  if given > WASTE * best:
    seen = f'with shapes {list(plan.buckets)} an epoch has {given} tokens, padding included; {best} are enough'
    advice = f'Leave out config.buckets to get {list(chosen)}'
    found.append(findings.Finding('wasteful_shapes', findings.WARNING, seen, advice))
  if plan.padding_rows > len(data):
    seen = f'{plan.padding_rows} of {plan.padding_rows + len(data)} rows of an epoch are empty'
    advice = f'Lower config.batch_size, which is {plan.batch_size}'
    found.append(findings.Finding('empty_rows', findings.WARNING, seen, advice))
  return found


def _examine_packing(plan: packing.Plan) -> list[findings.Finding]:
  if plan.share > 1 / WASTE:
    return []
  seen = f'{plan.share:.0%} of the positions of packed rows hold a token'
  advice = 'Use more prompts in a batch, fewer microbatches, or --packing=auto'
  return [findings.Finding('sparse_rows', findings.WARNING, seen, advice)]
