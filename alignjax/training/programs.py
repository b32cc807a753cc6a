"""Functions that are compiled ahead of time."""

from collections.abc import Callable
import time
from typing import Any

import jax

from alignjax import refusals
from alignjax.training import watchdog
from alignjax.types import PackedBatch, PreferenceBatch

Announce = Callable[[str], None]


class Programs:
  """A function, compiled ahead of time once per shape of its last argument. Each compilation is announced.

  Args:
    name: what the function computes.
    function: its last argument is a batch.
    announce: called with a line for each compilation.
    describe: the shape of a batch for that line; None for that of the responses, or of packed rows.
    **jit_options: passed to `jax.jit`.
  """

  def __init__(
    self,
    name: str,
    function: Callable[..., Any],
    announce: Announce,
    *,
    describe: Callable[[Any], str] | None = None,
    **jit_options: Any,
  ):
    self._name = name
    self._describe = describe or _shape
    self._announce = announce
    self._function = jax.jit(function, **jit_options)
    self._compiled: dict[tuple[Any, ...], jax.stages.Compiled] = {}

  def __len__(self) -> int:
    return len(self._compiled)

  def __call__(self, *args: Any) -> Any:
    signature = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(args[-1]))
    if signature not in self._compiled:
      with watchdog.during('compile'):
        self._compiled[signature] = self._compile(args)
    return self._compiled[signature](*args)

  def _compile(self, args: tuple[Any, ...]) -> jax.stages.Compiled:
    start = time.monotonic()
    with refusals.checking():  # an objective or a step that rejects its arguments rejects them at every start
      lowered = self._function.lower(*args)
    compiled = lowered.compile()
    self._announce(f'{self._name}, {self._describe(args[-1])}: {_describe(compiled, time.monotonic() - start)}')
    return compiled


def _shape(batch: PreferenceBatch) -> str:
  packed = isinstance(batch, PackedBatch)
  name, shape = ('packed rows', batch.rows.tokens.shape) if packed else ('responses', batch.response.shape)
  return f'{name} {" x ".join(map(str, shape))}'


def _describe(compiled: jax.stages.Compiled, seconds: float) -> str:
  memory = compiled.memory_analysis()
  text = f'compiled in {seconds:.1f} s'
  if memory is None:  # some backends do not report it
    return text
  sizes = (('arguments', memory.argument_size_in_bytes), ('temporaries', memory.temp_size_in_bytes))
  return text + ''.join(f', {size / 2**20:.1f} MiB of {what}' for what, size in sizes) + ' on each device'
