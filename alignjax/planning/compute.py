"""FLOPs of a training step, by part: the matrix products of its trace, for any model and objective.

A product of [..., m, k] and [..., k, n] counts 2 m k n. A loop counts its body once per iteration, and a shard_map once
per device. Elementwise work is left out, as in the peak FLOP/s that vendors state.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import math
from typing import Any, NamedTuple

import jax
from jax.extend import core
import jax.numpy as jnp

from alignjax import stats
from alignjax.models import transformer
from alignjax.planning import program
from alignjax.training import forward
from alignjax.training.policy import Policy


class Flops(NamedTuple):
  """FLOPs of one update over all devices, by part. They add up to the whole step."""

  forward: float  # products with the weights of the policy's layers
  backward: float  # their gradients
  reference: float  # products with the weights of the reference's layers
  attention: float  # queries with keys, and weights with values, in all of the above
  head: float  # products with the output head of policy and reference, and their gradients
  recomputed: float  # what the backward pass computes again

  @property
  def total(self) -> float:
    """FLOPs of the whole step."""
    return sum(self)

  @property
  def useful(self) -> float:
    """FLOPs without recomputation, which the model FLOPs utilisation (MFU) counts."""
    return self.total - self.recomputed


class Count(NamedTuple):
  """FLOPs of matrix products."""

  weights: float = 0.0  # of activations with weights
  attention: float = 0.0  # of activations with each other, one product per row and head

  @property
  def total(self) -> float:
    return self.weights + self.attention


def of_step(planned: program.Program) -> Flops:
  """The FLOPs of a planned step. Of the head, recomputed products count as recomputed."""
  trunk = _trunk(planned)
  gradient = jax.grad(lambda *args: jnp.sum(trunk(*args).astype(jnp.float32)))
  ahead, both = (count(function, planned.state.params, planned.frozen.base) for function in (trunk, gradient))
  reference = count(_reference(planned), planned.frozen, planned.batch)
  whole = count(planned.step, *planned.arguments)
  head = _head(planned)
  useful = both.total + reference.total + head
  return Flops(
    forward=ahead.weights,
    backward=both.weights - ahead.weights,
    reference=reference.weights,
    attention=both.attention + reference.attention,
    head=head,
    recomputed=max(0.0, whole.total - useful),
  )


def count(function: Callable[..., Any], *args: Any) -> Count:
  """The FLOPs of the matrix products of a function, without those whose result is not used."""
  closed = jax.make_jaxpr(function)(*args)
  jaxpr, _ = jax.interpreters.partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
  return _total(jaxpr)


def _total(jaxpr: core.Jaxpr) -> Count:
  counts = [_of_equation(equation) for equation in jaxpr.eqns]
  return Count(*(sum(column) for column in zip(*counts, strict=True))) if counts else Count()


def _of_equation(equation: core.JaxprEqn) -> Count:
  if equation.primitive.name == 'dot_general':
    return _of_product(equation)
  inner = [_total(jaxpr) for jaxpr in _jaxprs(equation.params.values())]
  if equation.primitive.name == 'cond':  # one branch runs
    return max(inner, key=lambda each: each.total)
  times = 1
  if equation.primitive.name == 'scan':
    times = equation.params['length']
  elif equation.primitive.name == 'shard_map':  # its body is what one device does
    times = math.prod(equation.params['mesh'].shape[axis] for axis in equation.params['newly_manual_axes'])
  return Count(*(times * sum(column) for column in zip(*inner, strict=True))) if inner else Count()


def _of_product(equation: core.JaxprEqn) -> Count:
  (contracted, _), (batched, _) = equation.params['dimension_numbers']
  sizes = equation.invars[0].aval.shape
  flops = 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(sizes[axis] for axis in contracted)
  return Count(attention=flops) if batched else Count(weights=flops)


def _jaxprs(values: Iterable[Any]) -> Iterator[core.Jaxpr]:
  """The programs among the parameters of an operation."""
  for value in values:
    if isinstance(value, core.ClosedJaxpr):
      yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
      yield value
    elif isinstance(value, tuple | list):
      yield from _jaxprs(value)


def _trunk(planned: program.Program) -> Callable[..., Any]:
  """The policy's layers without rematerialisation, as a function of its parameters and of the base of an adapter."""
  policy, needs = planned.built.policy, planned.built.objective.needs
  plain = transformer.build(dataclasses.replace(policy.model.config, remat='none'))
  policy = Policy(plain, policy.adapter)

  def trunk(params: Any, base: Any) -> Any:
    batch = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), planned.batch)
    return forward.hidden_states(policy.bind(base), params, batch, needs).states

  return trunk


def _reference(planned: program.Program) -> Callable[..., Any]:
  def reference(frozen: Any, batch: Any) -> Any:
    found = frozen.reference_states(planned.built.policy, planned.built.objective.needs, batch)
    return () if found is None else found.states

  return reference


def _head(planned: program.Program) -> float:
  """One product with the policy's head, two for its gradients (one if the head is frozen), one with the reference's."""
  config, needs, cached = planned.built.policy.model.config, planned.built.objective.needs, planned.batch.cached
  live = [stat for stat in needs if stat.name not in cached]
  of_policy = config.output != 'score' and any(stat.policy for stat in live)
  of_reference = bool(stats.missing_reference(needs, cached))
  products = of_policy * (2 if planned.built.policy.adapter else 3) + of_reference
  return products * 2.0 * math.prod(planned.batch.response.shape) * config.width * config.vocab_size
