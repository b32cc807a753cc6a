"""Model FLOPs utilisation (MFU) of a run: useful FLOPs of an update / (seconds * peak FLOP/s of all devices).

`planning.compute` counts the FLOPs from the shape of the batch, so padding is included. Recomputation is not.
"""

from collections.abc import Callable, Mapping

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
  buckets = program.shapes_of(prepared)
  if chip is None or not buckets:
    return lambda batch, seconds: {}
  peak = prepared.mesh.size / chip.devices * chip.peak
  useful = {bucket: compute.of_step(program.of_run(config, prepared, [bucket])).useful for bucket in buckets}

  def times(batch: PreferenceBatch, seconds: float) -> Mapping[str, float]:
    bucket = batch.prompt.shape[1], batch.response.shape[2]
    return {'time/mfu': useful[bucket] / (seconds * peak)}

  return times
