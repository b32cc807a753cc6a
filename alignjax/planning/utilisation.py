"""Model FLOPs utilisation (MFU) of a run: useful FLOPs of an update / (seconds * peak FLOP/s of all devices).

FLOPs are those of `planning.compute`, for the shape of the batch: padding counts, and recomputation does not.
"""

from collections.abc import Callable, Mapping
import dataclasses

from alignjax.data.batches import order
from alignjax.planning import compute, hardware, program
from alignjax.run import preparation, settings
from alignjax.types import PreferenceBatch

Times = Callable[[PreferenceBatch, float], Mapping[str, float]]


def of_run(config: settings.Config, prepared: preparation.Prepared) -> Times:
  """A function of a batch and its seconds that returns the MFU as a metric.

  It returns nothing where the planner does not know the devices or the batches: on CPUs, for packed rows, and if the
  policy draws its responses, because these seconds are not those of the update alone.
  """
  chip = hardware.of_device(prepared.mesh.devices.flat[0].device_kind)
  batches = prepared.training.batches.plan
  if chip is None or prepared.prompts is not None or not isinstance(batches, order.Plan):
    return lambda batch, seconds: {}
  peak = prepared.mesh.size / chip.devices * chip.peak
  responses = prepared.training.data.responses
  useful = {}
  for bucket in batches.buckets:
    planned = program.build(dataclasses.replace(config, buckets=(bucket,)), prepared.mesh, responses)
    useful[bucket] = compute.of_step(planned).useful

  def times(batch: PreferenceBatch, seconds: float) -> Mapping[str, float]:
    bucket = batch.prompt.shape[1], batch.response.shape[2]
    return {'time/mfu': useful[bucket] / (seconds * peak)}

  return times
