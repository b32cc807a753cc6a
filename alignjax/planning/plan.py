"""A planned run: whether it fits, what would make it fit, and the largest batch or the smallest machine that does."""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import shlex
from typing import NamedTuple

import jax

from alignjax.parallel import mesh as parallel_mesh
from alignjax.planning import compute, hardware, machines, memory, program
from alignjax.run import arithmetic, settings
from alignjax.training import references

ADAPTER = 'lora(rank=16, alpha=32)'
CACHE = 'reference_cache'
SMALL_CHUNK = 256
TENSOR = (2, 4, 8)


@dataclasses.dataclass(frozen=True)
class Plan:
  """A run on a machine, planned from shapes alone."""

  config: settings.Config
  machine: hardware.Machine
  responses: int  # as given, 0 for what the objective declares
  program: program.Program
  memory: memory.Estimate

  @property
  def limit(self) -> float:
    """Bytes of memory of a device."""
    return self.machine.chip.device_memory

  @property
  def verdict(self) -> str:
    """'fits', 'tight' or 'does not fit'."""
    return self.memory.verdict(self.limit)

  @functools.cached_property
  def flops(self) -> compute.Flops:
    """FLOPs of one update."""
    return compute.of_step(self.program)

  def seconds(self, utilisation: float) -> float:
    """Seconds of one update: useful FLOPs / (peak FLOP/s of the machine * model FLOPs utilisation)."""
    return self.flops.useful / (self.machine.chips * self.machine.chip.peak * utilisation)

  @property
  def tokens(self) -> int:
    """Tokens of one update, padding included."""
    batch = self.program.batch
    return batch.prompt.size + batch.response.size

  @property
  def checkpoint_bytes(self) -> int:
    """Bytes of one checkpoint."""
    state = (self.program.state.params, self.program.state.opt_state)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def make(config: settings.Config, machine: hardware.Machine, responses: int = 0) -> Plan:
  """Plans a run.

  Args:
    config: the settings of the run. `model` is a folder with config.json.
    machine: the accelerators.
    responses: responses to a prompt; 0 for the number for which the objective is defined.

  Raises:
    ValueError: the settings cannot be used on this machine.
  """
  if config.prompts:
    raise ValueError(
      f'config.prompts = {config.prompts!r}: the planner covers updates on data, not the drawing of responses: '
      'leave it out, and give --responses=<responses of a prompt in an update>'
    )
  if config.compute_dtype == arithmetic.AUTO:
    config = dataclasses.replace(config, compute_dtype='bfloat16')  # every chip of the table is an accelerator
  planned = program.build(config, machines.abstract(config.mesh, machine), responses)
  return Plan(config, machine, responses, planned, memory.estimate(planned, config))


class Change(NamedTuple):
  """A change of settings, and the plan with it."""

  flags: str
  plan: Plan


def changes(plan: Plan) -> list[Change]:
  """Changes of settings that need less memory, each tried out: the mildest of each kind that fits, or its best one."""
  found = []
  for kind in _KINDS:
    tried = [change for change in kind(plan) if change is not None]
    fitting = [change for change in tried if change.plan.verdict == 'fits']
    best = fitting[:1] or sorted(tried, key=lambda change: change.plan.memory.peak)[:1]
    found += [change for change in best if change.plan.memory.peak < plan.memory.peak]
  return found


def _changed(plan: Plan, **values: object) -> Change | None:
  """A change of settings; None if nothing changes or it cannot be used."""
  values = {name: value for name, value in values.items() if value != getattr(plan.config, name)}
  if not values:
    return None
  flags = {name: value for name, value in values.items() if name != 'mesh'}
  mesh = values.get('mesh')
  if mesh is not None:
    flags |= {f'mesh.{axis}': getattr(mesh, axis) for axis in ('data', 'fsdp', 'tensor')}
  try:
    changed = make(dataclasses.replace(plan.config, **values), plan.machine, plan.responses)
  except ValueError:
    return None
  return Change(' '.join(shlex.quote(f'--{name}={value}') for name, value in flags.items()), changed)


def _more_microbatches(plan: Plan) -> Iterator[Change | None]:
  shards = parallel_mesh.batch_shards(plan.program.built.mesh)
  count = 2 * plan.config.microbatches
  while plan.config.batch_size % (shards * count) == 0:
    yield _changed(plan, microbatches=count)
    count *= 2


def _rematerialised(plan: Plan) -> Iterator[Change | None]:
  order = ('none', 'dots', 'full')
  for remat in order[order.index(plan.config.remat) + 1 :]:
    yield _changed(plan, remat=remat)


def _smaller_chunk(plan: Plan) -> Iterator[Change | None]:
  if plan.config.chunk > SMALL_CHUNK:
    yield _changed(plan, chunk=SMALL_CHUNK)


def _one_replica(plan: Plan) -> Iterator[Change | None]:
  if plan.program.built.mesh.shape['data'] > plan.machine.slices:
    yield _changed(plan, mesh=dataclasses.replace(plan.config.mesh, data=plan.machine.slices, fsdp=-1))


def _tensor(plan: Plan) -> Iterator[Change | None]:
  for size in TENSOR:
    if size > plan.program.built.mesh.shape['tensor']:
      yield _changed(plan, mesh=dataclasses.replace(plan.config.mesh, tensor=size, fsdp=-1))


def _cached_reference(plan: Plan) -> Iterator[Change | None]:
  if isinstance(plan.program.frozen.reference, references.Live | references.Base):
    yield _changed(plan, reference_cache=CACHE)


def _all_of_them(plan: Plan) -> Iterator[Change | None]:
  """What changes no result, all together."""
  shards = parallel_mesh.batch_shards(plan.program.built.mesh)
  rest = plan.config.batch_size // shards
  yield _changed(plan, microbatches=rest, remat='full', chunk=min(SMALL_CHUNK, plan.config.chunk))


def _adapted(plan: Plan) -> Iterator[Change | None]:
  if not plan.config.adapter and not plan.program.built.recipe.needs_delta:
    yield _changed(plan, adapter=ADAPTER)
    yield _changed(plan, adapter=ADAPTER, remat='full')


_KINDS = (
  _more_microbatches,
  _rematerialised,
  _smaller_chunk,
  _one_replica,
  _tensor,
  _cached_reference,
  _all_of_them,
  _adapted,
)


def largest_batch(config: settings.Config, machine: hardware.Machine, responses: int = 0) -> Plan:
  """The plan with the largest batch that fits: a multiple of shards times microbatches.

  Args:
    config: the settings of the run, whose batch size does not matter.
    machine, responses: as for `make`.

  Raises:
    ValueError: not even the smallest batch fits.
  """
  unit = parallel_mesh.batch_shards(machines.abstract(config.mesh, machine)) * config.microbatches

  def at(multiple: int) -> Plan:
    return make(dataclasses.replace(config, batch_size=unit * multiple), machine, responses)

  most = _LARGEST_BATCH // unit
  found = largest(lambda multiple: at(multiple).verdict == 'fits', most)
  if not found:
    least = at(1)
    raise ValueError(
      f'no batch fits on {machine}: the smallest, batch_size={unit}, needs {least.memory.peak / 2**30:.2f} GiB of '
      f'{least.limit / 2**30:.2f} GiB on each device; --search=smallest_slice looks for a larger machine'
    )
  return at(found)


_LARGEST_BATCH = 2**24  # the largest value of config.batch_size


def largest(holds: Callable[[int], bool], most: int) -> int:
  """The largest number from 1 to `most` for which a monotone property holds, by bisection; 0 if there is none."""
  low, high = 0, 1
  while high <= most and holds(high):
    low, high = high, 2 * high
  high = min(high, most + 1)
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if holds(middle) else (low, middle)
  return low


def smallest_machine(config: settings.Config, chip: hardware.Chip, responses: int = 0) -> Plan:
  """The plan on the smallest machine of a chip kind that fits: the given mesh, then more shards of `tensor`.

  Raises:
    ValueError: the run fits on no machine of this kind, or its settings cannot be used on any.
  """
  closest, refused = None, None
  for machine in hardware.sizes(chip):
    for mesh in _meshes(config.mesh, machine):
      try:
        plan = make(dataclasses.replace(config, mesh=mesh), machine, responses)
      except ValueError as error:
        refused = refused or error
        continue
      if plan.verdict == 'fits':
        return plan
      if closest is None or plan.memory.peak < closest.memory.peak:
        closest = plan
  if closest is None:
    raise refused
  raise ValueError(
    f'the run fits on no machine of {chip.name} that divides its batch: on {closest.machine} it needs '
    f'{closest.memory.peak / 2**30:.2f} GiB of {closest.limit / 2**30:.2f} GiB on each device; '
    f'plan it with --topology={closest.machine.flag}, which lists changes that need less'
  )


def _meshes(mesh: settings.MeshConfig, machine: hardware.Machine) -> list[settings.MeshConfig]:
  if mesh.fsdp != -1 or mesh.tensor != 1:
    return [mesh]
  return [mesh, *(dataclasses.replace(mesh, tensor=size) for size in TENSOR if machine.devices % size == 0)]
