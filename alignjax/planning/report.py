"""A plan as text and as JSON, with the command that runs it."""

from collections.abc import Sequence
import dataclasses
import math
import shlex
from typing import Any, NamedTuple

import jax

from alignjax.parallel import mesh as parallel_mesh
from alignjax.planning import memory, plan
from alignjax.run import settings

GIB = 2**30
_UNITS = ((1e18, 'EFLOP'), (1e15, 'PFLOP'), (1e12, 'TFLOP'), (1e9, 'GFLOP'), (1e6, 'MFLOP'))
_FREE = ('push_to_hub',)  # settings that a printed command leaves out


class Costs(NamedTuple):
  """What turns seconds into time and money."""

  utilisation: tuple[float, float]  # lowest and highest MFU
  rows: int = 0  # prompts of the data; 0: unknown
  price: float = 0.0  # of a chip and hour, in any currency; 0: unknown


class Compiled(NamedTuple):
  """The memory of a step as the compiler sees it, in bytes on each device."""

  arguments: int
  peak: int  # live at the same time
  allocated: int  # arguments, and one block for temporaries with its gaps


def compiled(program: jax.stages.Compiled) -> Compiled:
  """Reads the memory of a compiled step."""
  analysis = program.memory_analysis()
  allocated = getattr(analysis, 'total_allocation_bytes', 0)
  return Compiled(analysis.argument_size_in_bytes, analysis.peak_memory_in_bytes, allocated)


def text(planned: plan.Plan, costs: Costs, notes: Sequence[str] = ()) -> str:
  """The plan as text: machine, memory, compute, time, and what to run."""
  lines = [
    *_what(planned),
    *notes,
    '',
    *_memory(planned),
    '',
    *_compute(planned, costs),
    '',
    f'checkpoint  {_size(planned.checkpoint_bytes)} each: parameters and optimizer state',
    f'command     {command(planned.config)}',
  ]
  return '\n'.join(lines)


def changes(found: Sequence[plan.Change], limit: float) -> str:
  """The changes that were tried out, one a line."""
  if not found:
    return 'None of the changes tried needs less memory: use more or larger devices (--search=smallest_slice)'
  width = max(len(change.flags) for change in found)
  lines = [
    f'  {change.flags:<{width}}  {_size(change.plan.memory.peak)} of {_size(limit)}: {change.plan.verdict}'
    for change in found
  ]
  return '\n'.join(['changes tried, each alone:', *lines])


def compared(planned: plan.Plan, found: Compiled) -> str:
  """The memory of the compiler next to the estimate."""
  ratio = planned.memory.peak / found.peak - 1
  allocated = f'; it allocates {_size(found.allocated)} with gaps' if found.allocated else ''
  return (
    f'compiler    {_size(found.arguments)} of arguments, a peak of {_size(found.peak)}{allocated} '
    f'(the estimate is {abs(ratio):.1%} {"above" if ratio >= 0 else "below"} its peak)'
  )


def as_json(planned: plan.Plan, costs: Costs) -> dict[str, Any]:
  """The plan as JSON."""
  chip = planned.machine.chip
  low, high = costs.utilisation
  return {
    'machine': {
      'chips': planned.machine.chips,
      'slices': planned.machine.slices,
      'topology': planned.machine.topology,
      'chip': dataclasses.asdict(chip),
    },
    'mesh': dict(planned.program.built.mesh.shape),
    'verdict': planned.verdict,
    'memory': {
      'limit': planned.limit,
      'peak': planned.memory.peak,
      'stage': planned.memory.stage,
      'arguments': dict(planned.memory.arguments),
      'stages': {name: dict(parts) for name, parts in planned.memory.stages.items()},
    },
    'flops': planned.flops._asdict(),
    'seconds': [planned.seconds(high), planned.seconds(low)],
    'mfu': [low, high],
    'tokens': planned.tokens,
    'steps': steps(planned, costs.rows),
    'checkpoint': planned.checkpoint_bytes,
    'command': command(planned.config),
    'config': dataclasses.asdict(planned.config),
  }


def steps(planned: plan.Plan, rows: int) -> int:
  """The updates of the run: as set, or those of its epochs over `rows` prompts; 0 if unknown."""
  return planned.config.steps or (planned.config.epochs or 1) * math.ceil(rows / planned.config.batch_size)


def command(config: settings.Config) -> str:
  """The command line of `alignjax train` with these settings."""
  before, now = settings.flat(settings.Config()), settings.flat(config)
  flags = []
  for name, value in now.items():
    if value != before[name] and name not in _FREE:
      shown = ','.join(map(str, value)) if isinstance(value, tuple) else value
      flags.append(f'--{"import" if name == "imports" else name}={shown}')
  missing = [f'--{name}=<{what}>' for name, what in (('data', 'data'), ('workdir', 'folder')) if not now[name]]
  return ' '.join(['alignjax train', *map(shlex.quote, flags), *missing])


def _what(planned: plan.Plan) -> list[str]:
  built, batch, chip = planned.program.built, planned.program.batch, planned.machine.chip
  model = built.policy.model.config
  total, trained = _entries(built.shapes), _entries(planned.program.state.params)
  prompts, responses, response = batch.response.shape
  shards = parallel_mesh.batch_shards(built.mesh)
  own = prompts // (shards * planned.config.microbatches)
  mesh = ', '.join(f'{axis}={size}' for axis, size in built.mesh.shape.items())
  unit = 'chip' if chip.devices == 1 else 'device'
  return [
    f'model       {model.model_type}, {total:,} parameters in {model.layers} layers; {trained:,} are trained',
    f'machine     {planned.machine}; each {unit} has {_size(planned.limit)} for programs',
    f'mesh        {mesh}',
    f'step        {prompts:,} prompts of {batch.prompt.shape[1]:,} tokens, each with {responses} x {response:,} '
    f'response tokens; {own:,} at once on each of {shards:,} shards',
  ]


def _memory(planned: plan.Plan) -> list[str]:
  estimate = planned.memory
  share = estimate.peak / planned.limit
  parts = sorted(estimate.parts.items(), key=lambda part: -part[1])
  small = [size for _, size in parts if size < estimate.peak / 500]
  lines = [f'  {_size(size):>10}  {name}' for name, size in parts if size >= estimate.peak / 500]
  if small:
    lines.append(f'  {_size(sum(small)):>10}  smaller arrays')
  return [
    f'memory      on each device at the peak, which is in the stage {estimate.stage!r}',
    *lines,
    f'  {_size(estimate.peak):>10}  together, {share:.1%} of {_size(planned.limit)}: {planned.verdict} '
    f'(fits: at most {memory.MOST:.0%})',
  ]


def _compute(planned: plan.Plan, costs: Costs) -> list[str]:
  flops = planned.flops
  shares = ', '.join(f'{name} {value / flops.total:.0%}' for name, value in flops._asdict().items() if value)
  low, high = costs.utilisation
  slow, fast = planned.seconds(low), planned.seconds(high)
  lines = [
    f'compute     {_flops(flops.total)} a step: {shares}',
    f'time        {fast:,.3g} to {slow:,.3g} s a step at {high:.0%} to {low:.0%} MFU, '
    f'{planned.tokens / slow:,.0f} to {planned.tokens / fast:,.0f} tokens/s',
  ]
  if count := steps(planned, costs.rows):
    hours = [seconds * count / 3600 for seconds in (fast, slow)]
    lines.append(
      f'run         {count:,} steps, {hours[0]:,.2f} to {hours[1]:,.2f} hours without evaluation and checkpoints'
    )
    if costs.price:
      low, high = (each * planned.machine.chips * costs.price for each in hours)
      lines.append(f'cost        {low:,.2f} to {high:,.2f} at {costs.price:g} for a chip and hour')
  return lines


def _entries(tree: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _flops(count: float) -> str:
  size, unit = next(((size, unit) for size, unit in _UNITS if count >= size), (1.0, 'FLOP'))
  return f'{count / size:.3g} {unit}'


def _size(count: float) -> str:
  return f'{count / GIB:.2f} GiB' if count >= 0.01 * GIB else f'{count / 2**20:.2f} MiB'
