"""What bench.peers.training makes of its measurements: which rows it refuses, ratios, and the table."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import statistics
from typing import Any, NamedTuple

from bench.peers import protocol

TELLING = 5  # tolerances that a loss must be away from log 2, the loss of a policy that equals its reference


class Turn(NamedTuple):
  """A measured turn: its time, and the share of the machine that other processes had."""

  seconds: float
  others: float


@dataclasses.dataclass
class Result:
  """What a contender has done.

  Attributes:
    name: the contender's name.
    problem: why it has not run; '' if it has.
    losses: the loss of every turn, warm-up turns included.
    turns: the measured turns, one per round.
    work: what it computes in a turn; None if it is not known.
    first_seconds: how long the first turn took, which compiles.
    peak: largest resident memory during the measured turns, MiB.
    peak_at_start: largest resident memory before them, while it loads, compiles and warms up, MiB.
  """

  name: str
  problem: str = ''
  losses: list[float] = dataclasses.field(default_factory=list)
  turns: list[Turn] = dataclasses.field(default_factory=list)
  work: protocol.Work | None = None
  first_seconds: float = 0.0
  peak: float = 0.0
  peak_at_start: float = 0.0

  @property
  def seconds(self) -> float:
    return statistics.median(turn.seconds for turn in self.turns)


class Rules(NamedTuple):
  """What counts.

  Attributes:
    tolerance: the largest relative difference of two losses that count as equal.
    disturbed: the share of the machine from which on other processes disturb a turn.
  """

  tolerance: float
  disturbed: float


class Scale(NamedTuple):
  """What a turn is worth.

  Attributes:
    tokens: number of prompt and response tokens in a turn, each counted once.
    flops: FLOPs that a turn needs, with no padding and each prompt computed once.
    peak: measured rate of matrix products on this machine, FLOP/s.
  """

  tokens: int
  flops: float
  peak: float


def difference(base: Result, own: Result) -> float:
  """The largest relative difference between the losses of the same turn; infinity if one is not finite.

  Raises:
    ValueError: the numbers of their turns differ.
  """
  pairs = list(zip(base.losses, own.losses, strict=True))
  if not all(map(math.isfinite, (loss for pair in pairs for loss in pair))):
    return math.inf
  return max(abs(theirs / loss - 1) for loss, theirs in pairs)


def check_telling(base: Result, tolerance: float) -> None:
  """Checks that a wrong loss would show.

  Raises:
    ValueError: all losses are close to log 2, as they are of any policy that hardly differs from its reference.
  """
  away = max(abs(loss / math.log(2) - 1) for loss in base.losses)
  if not away > TELLING * tolerance:
    raise ValueError(f'all losses are within {away:.1e} of log 2: equal ones would prove nothing')


def ratios(base: Result, own: Result, disturbed: float) -> tuple[list[float], bool]:
  """The time over that of `base`, round by round, and whether others disturbed none of these rounds.

  Rounds in which other processes disturbed one of the two are left out, unless nothing would be left.
  """
  rounds = list(zip(base.turns, own.turns, strict=True))
  quiet = [pair for pair in rounds if all(turn.others < disturbed for turn in pair)]
  return [theirs.seconds / turn.seconds for turn, theirs in quiet or rounds], bool(quiet)


def flops(work: protocol.Work, entries: Mapping[str, Any], cached: bool) -> float:
  """FLOPs of a turn: those of matrix products in the forward pass, three times, and once more for a live reference.

  Recomputation is left out. A product of [m, k] and [k, n] has 2 m k n.

  Args:
    work: what a turn computes.
    entries: config.json of the Llama.
    cached: whether the reference is cached.
  """
  width, mlp, heads = entries['hidden_size'], entries['intermediate_size'], entries['num_attention_heads']
  attention = heads * entries['head_dim']
  keys = entries['num_key_value_heads'] * entries['head_dim']
  weights = 2 * width * attention + 2 * width * keys + 3 * width * mlp
  layer = 2 * weights * work.positions + 4 * attention * work.attended
  head = 2 * width * entries['vocab_size'] * work.predicted
  return (3 if cached else 4) * (entries['num_hidden_layers'] * layer + head)


HEADS = (
  'contender',
  'seconds',
  'tokens/s',
  'time / {base}',
  'range',
  'quiet rounds',
  'others, at most',
  'peak MiB',
  'at the start',
  'first turn, s',
  'losses differ by',
  'useful FLOPs',
  'own FLOPs',
)


def table(found: Sequence[Result], rules: Rules, scale: Scale, own_flops: Mapping[str, float]) -> list[str]:
  """The lines of a Markdown table.

  Args:
    found: the results; the others are compared with the first, which has run.
    rules: what counts.
    scale: what a turn is worth.
    own_flops: what contenders compute in a turn, by name, as far as it is known.
  """
  base = found[0]
  heads = ' | '.join(HEADS).format(base=base.name)
  lines = [f'| {heads} |', '|' + '---|' * len(HEADS)]
  for own in found:
    if own.problem:
      cells = [own.name, f'unavailable: {own.problem}']
    elif not (apart := difference(base, own)) <= rules.tolerance:
      cells = [own.name, f'refused: its losses differ by {apart:.1e}, more than {rules.tolerance:.0e}']
    else:
      shares = [_share(flops, own, scale) for flops in (scale.flops, own_flops.get(own.name))]
      cells = [*_cells(base, own, rules, scale), f'{apart:.1e}', *shares]
    lines.append(f'| {" | ".join([*cells, *[""] * (len(HEADS) - len(cells))])} |')
  return lines


def _cells(base: Result, own: Result, rules: Rules, scale: Scale) -> list[str]:
  times, undisturbed = ratios(base, own, rules.disturbed)
  return [
    own.name,
    f'{own.seconds:.3f}',
    f'{scale.tokens / own.seconds:.0f}',
    f'{statistics.median(times):.2f}',
    f'{min(times):.2f} to {max(times):.2f}',
    f'{len(times) if undisturbed else 0} of {len(own.turns)}',
    f'{max(turn.others for turn in own.turns):.0%}',
    f'{own.peak:.0f}',
    f'{own.peak_at_start:.0f}',
    f'{own.first_seconds:.1f}',
  ]


def _share(flops: float | None, own: Result, scale: Scale) -> str:
  """The share of the machine's FLOP/s; empty if the FLOPs of a turn are not known."""
  return '' if flops is None else f'{flops / own.seconds / scale.peak:.0%}'
