"""Reads the transfers between devices from the text of a program that was compiled for TPUs."""

import math
import re
from typing import NamedTuple

COLLECTIVES = 'all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter'
OPERATION = re.compile(rf'= (\(.*?\)|\S+) ({COLLECTIVES}|send)(?:-start)?\(')
ARRAY = re.compile(r'[a-z]+\d*\[([\d,]*)\]')


class Transfer(NamedTuple):
  """A collective inside a slice, or a message between slices."""

  kind: str  # the operation; for a message between slices, what the slices do together: 'ALL_REDUCE SUM'
  entries: int  # of the largest array
  partners: str  # the devices or slices that take part
  between_slices: bool
  in_loop: bool


def transfers(text: str) -> list[Transfer]:
  """All transfers of a compiled program, in the order of its text."""
  loops, found = _bodies_of_loops(text), []
  for name, lines in _computations(text).items():
    for line in lines:
      match = OPERATION.search(line)
      if match is None:
        continue
      shape, kind = match.groups()
      entries = max(math.prod(int(size) for size in sizes.split(',') if size) for sizes in ARRAY.findall(shape))
      between = kind == 'send'
      if between:
        kind = ' '.join(_attribute(line, f'_xla_megascale_{what}') for what in ('transfer_type', 'reduce_operation'))
        partners = _attribute(line, '_xla_megascale_target')
      else:
        partners = re.search(r'(?:replica_groups|source_target_pairs)=(.+?)(?:, [a-z_]+=|$)', line)[1]
      found.append(Transfer(kind, entries, partners, between, name in loops))
  return found


def _attribute(line: str, name: str) -> str:
  match = re.search(rf'{name}="([^"]*)"', line)
  return match[1] if match else '?'


def _computations(text: str) -> dict[str, list[str]]:
  """The lines of each computation, by its name."""
  found, name = {}, None
  for line in text.splitlines():
    if line and not line[0].isspace() and line.endswith('{'):
      name = line.removeprefix('ENTRY ').split()[0].lstrip('%')
      found[name] = []
    elif name is not None:
      found[name].append(line)
  return found


def _bodies_of_loops(text: str) -> set[str]:
  """The names of all computations that run inside a loop."""
  computations = _computations(text)
  called = {
    name: set(re.findall(r'(?:body|calls|to_apply)=%?([\w.\-]+)', '\n'.join(c))) for name, c in computations.items()
  }
  inside, waiting = set(), set(re.findall(r' while\(.*?body=%?([\w.\-]+)', text))
  while waiting:
    name = waiting.pop()
    inside.add(name)
    waiting |= called.get(name, set()) - inside
  return inside
