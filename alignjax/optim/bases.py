"""Recipes of optimizers, and the base optimizers, one of which every chain has."""

from collections.abc import Callable
import dataclasses
import enum
from typing import Any

import jax
import optax
from optax import contrib

from alignjax import registry
from alignjax.optim import schedules
from alignjax.types import Params


class Place(enum.IntEnum):
  """The position of a link in a chain. Links must be in ascending order."""

  GRADIENT = enum.auto()
  BASE = enum.auto()
  MERGE = enum.auto()
  DECAY = enum.auto()
  AVERAGE = enum.auto()
  CHAIN = enum.auto()  # a complete chain, not a link


@dataclasses.dataclass(frozen=True)
class Recipe:
  """An optimizer, or a link of a chain, that is built once the schedule is known.

  Attributes:
    name: the name of its factory.
    place: its position in a chain.
    build: builds the transformation from the schedule: number of updates -> learning rate.
    learning_rate: the peak of the schedule; None for links without a learning rate.
    decays: whether the base optimizer itself applies weight decay.
    needs_delta: whether `update` requires `reference_delta`.
    averages: whether the state holds an average of the parameters for `alignjax.optim.averaged`.
  """

  name: str
  place: Place
  build: Callable[[schedules.Schedule], optax.GradientTransformation]
  learning_rate: float | None = None
  decays: bool = False
  needs_delta: bool = False
  averages: bool = False


BASES: dict[str, Callable[..., Recipe]] = {}
"""All base optimizers, by their names in expressions; `recipes.factory` adds entries."""


def _base(build: Callable[..., Recipe]) -> Callable[..., Recipe]:
  """Registers a base optimizer of this module."""
  return registry.add(BASES, build, 'optimizers')


@_base
def adamw(
  learning_rate: float, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8, weight_decay: float = 0.0
) -> Recipe:
  """Adam with decoupled weight decay.

  theta <- theta - lr(t) (m^ / (sqrt(v^) + epsilon) + weight_decay theta)

  Args:
    learning_rate: peak of the schedule, > 0.
    beta1: decay rate of m, the mean of gradients, in [0, 1).
    beta2: decay rate of v, the mean of squared gradients, in [0, 1).
    epsilon: constant added to the denominator, > 0.
    weight_decay: decay rate of weights, >= 0; norm scales and biases do not decay. It must be 0 before a merge: chain
      `weight_decay` after the merge instead.

  References:
    Loshchilov, Hutter 2017, Decoupled Weight Decay Regularization, https://arxiv.org/abs/1711.05101.
  """
  positive(learning_rate=learning_rate, epsilon=epsilon)
  rates(beta1=beta1, beta2=beta2)
  require(is_number(weight_decay) and weight_decay >= 0, 'weight_decay', weight_decay, 'at least 0')

  def build(schedule: schedules.Schedule) -> optax.GradientTransformation:
    return optax.adamw(schedule, beta1, beta2, epsilon, weight_decay=weight_decay, mask=schedules.decays)

  return Recipe('adamw', Place.BASE, build, learning_rate, decays=weight_decay > 0)


@_base
def adafactor(learning_rate: float, decay: float = 0.8, clip: float = 1.0) -> Recipe:
  """Adafactor: second moments of matrices factored into row and column means, without a first moment.

  u = g / sqrt(v),   theta <- theta - lr(t) u / max(1, rms(u) / clip)

  Step sizes are absolute, as in Adam, not relative to the size of the weights. Matrices with a side below 128 store the
  full v. Layers of the same kind are stacked: each layer has its own v, but rms(u) is taken over all of them.

  Args:
    learning_rate: peak of the schedule, > 0.
    decay: exponent of the decay rate of v, in (0, 1): the rate at step t is 1 - t^-decay.
    clip: largest rms of u, > 0.

  References:
    Shazeer, Stern 2018, Adafactor, https://arxiv.org/abs/1804.04235.
  """
  positive(learning_rate=learning_rate, decay=decay, clip=clip)
  rates(decay=decay)

  def build(schedule: schedules.Schedule) -> optax.GradientTransformation:
    return optax.adafactor(schedule, decay_rate=decay, multiply_by_parameter_scale=False, clipping_threshold=clip)

  return Recipe('adafactor', Place.BASE, build, learning_rate)


@_base
def lion(learning_rate: float, beta1: float = 0.9, beta2: float = 0.99) -> Recipe:
  """Lion: the sign of an interpolated momentum.

  theta <- theta - lr(t) sign(beta1 m + (1 - beta1) g),   m <- beta2 m + (1 - beta2) g

  Args:
    learning_rate: peak of the schedule, > 0; usually a tenth of Adam's or less.
    beta1: weight of the momentum in the interpolation, in [0, 1).
    beta2: decay rate of the momentum, in [0, 1).

  References:
    Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, https://arxiv.org/abs/2302.06675.
  """
  positive(learning_rate=learning_rate)
  rates(beta1=beta1, beta2=beta2)
  return Recipe(
    'lion', Place.BASE, lambda schedule: optax.lion(schedule, beta1, beta2, weight_decay=0.0), learning_rate
  )


@_base
def muon(learning_rate: float, beta: float = 0.95, rms: float = 0.2) -> Recipe:
  """Muon: the momentum of each matrix, orthogonalised by Newton-Schulz iterations.

  theta <- theta - lr(t) rms sqrt(max(rows, columns)) orthogonal(m)

  The matrices of each layer, and the factors of adapters, are orthogonalised separately. Embeddings, the output head
  and norm scales use Adam with Nesterov momentum instead, with the same learning rate.

  Args:
    learning_rate: peak of the schedule, > 0.
    beta: decay rate of the momentum, in [0, 1).
    rms: root mean square of the update of a full-rank matrix, as a multiple of the learning rate, > 0. At 0.2 updates
      are about as large as Adam's, so Adam's learning rates can be reused.

  References:
    Jordan 2024, Muon, https://kellerjordan.github.io/posts/muon.
    Liu et al. 2025, Muon is Scalable for LLM Training, https://arxiv.org/abs/2502.16982 (rms).
  """
  positive(learning_rate=learning_rate, rms=rms)
  rates(beta=beta)

  def build(schedule: schedules.Schedule) -> optax.GradientTransformation:
    return contrib.muon(schedule, beta=beta, consistent_rms=rms, muon_weight_dimension_numbers=_matrices)

  return Recipe('muon', Place.BASE, build, learning_rate)


@_base
def rmsprop(learning_rate: float, decay: float = 0.99, epsilon: float = 1e-8, momentum: float = 0.0) -> Recipe:
  """RMSprop as PyTorch defines it, the optimizer of DPO's released code (with a learning rate of 5e-7).

  v <- decay v + (1 - decay) g^2,   m <- momentum m + g / (sqrt(v) + epsilon),   theta <- theta - lr(t) m

  v starts at zero and is not corrected for its start, so the first updates are up to 1 / sqrt(1 - decay) times as large
  as later ones; the warm-up takes care of that. epsilon is added after the square root.

  Args:
    learning_rate: peak of the schedule, > 0.
    decay: decay rate of v, the mean of squared gradients, in [0, 1).
    epsilon: constant added to the denominator, > 0.
    momentum: decay rate of m, in [0, 1).

  References:
    Hinton 2012, lecture 6e of Neural Networks for Machine Learning,
    https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf; `torch.optim.RMSprop`.
  """
  positive(learning_rate=learning_rate, epsilon=epsilon)
  rates(decay=decay, momentum=momentum)

  def build(schedule: schedules.Schedule) -> optax.GradientTransformation:
    # The momentum comes before the learning rate, as in PyTorch; in optax.rmsprop it comes after.
    return optax.chain(
      optax.scale_by_rms(decay, epsilon, eps_in_sqrt=False),
      optax.trace(momentum) if momentum else optax.identity(),
      optax.scale_by_learning_rate(schedule),
    )

  return Recipe('rmsprop', Place.BASE, build, learning_rate)


@_base
def sgd(learning_rate: float, momentum: float = 0.0) -> Recipe:
  """Gradient descent.

  m <- momentum m + g,   theta <- theta - lr(t) m

  Args:
    learning_rate: peak of the schedule, > 0.
    momentum: decay rate of the momentum, in [0, 1).
  """
  positive(learning_rate=learning_rate)
  rates(momentum=momentum)
  return Recipe('sgd', Place.BASE, lambda schedule: optax.sgd(schedule, momentum or None), learning_rate)


def _matrices(params: Params) -> Any:
  """The row and column axes of the matrices that muon orthogonalises; None for other parameters."""

  def axes(path: tuple[Any, ...], leaf: Any) -> contrib.MuonDimensionNumbers | None:
    del leaf
    inner = path[-1].key in ('kernel', 'lora_a', 'lora_b') and path[0].key != 'unembed'
    return contrib.MuonDimensionNumbers(-2, -1) if inner else None

  return jax.tree_util.tree_map_with_path(axes, params)


def is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def positive(**numbers: Any) -> None:
  for name, value in numbers.items():
    require(is_number(value) and value > 0, name, value, 'a positive number')


def rates(**numbers: Any) -> None:
  for name, value in numbers.items():
    require(is_number(value) and 0 <= value < 1, name, value, 'in [0, 1)')


def require(condition: bool, name: str, value: Any, wanted: str) -> None:
  if not condition:
    raise ValueError(f'{name}={value!r} must be {wanted}')
