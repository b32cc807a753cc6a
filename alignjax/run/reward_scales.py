"""The scale of a reward model that a run has trained, from the metrics of the run."""

import math
import pathlib

from alignjax.models import reward_scale
from alignjax.training import metrics

_STEPS = 50  # last training steps whose responses give the scale of a run without held-out data


def after(workdir: pathlib.Path, step: int) -> reward_scale.RewardScale | None:
  """The scale of the chosen and rejected responses after a step: of all held-out ones, or of the last training batches.

  Args:
    workdir: the folder of the run.
    step: the step of the parameters.

  Returns:
    The scale; None if the metrics do not have it.
  """
  file = workdir / 'metrics.jsonl'
  if not file.exists():
    return None
  records = [record for record in metrics.read_jsonl(file) if record['step'] <= step]
  evaluated = [record for record in records if 'eval/reward_mean' in record]
  trained = [record for record in records if 'reward_mean' in record][-_STEPS:]
  if evaluated:
    source = f'held-out responses after step {evaluated[-1]["step"]}'
    moments = [(evaluated[-1]['eval/reward_mean'], evaluated[-1]['eval/reward_square'], 1.0)]
  else:
    source = f'training responses of the last {len(trained)} steps'
    moments = [(record['reward_mean'], record['reward_square'], record['prompts']) for record in trained]
  weight = sum(prompts for *_, prompts in moments)
  if not weight:
    return None
  mean, square = (sum(moment[i] * moment[2] for moment in moments) / weight for i in range(2))
  deviation = math.sqrt(max(square - mean**2, 0.0))
  return reward_scale.RewardScale(mean, deviation, source) if deviation > 0 else None
