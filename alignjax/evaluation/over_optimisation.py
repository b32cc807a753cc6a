"""How reward changes with the distance from the reference: two laws of over-optimisation, and their fits.

With d = sqrt(KL(policy || reference)) and R the gain in gold reward over the reference:

  best of n:               R = d (a - b d)
  reinforcement learning:  R = d (a - b log d)

References:
  Gao et al., Scaling Laws for Reward Model Overoptimization, https://arxiv.org/abs/2210.10760, section 3.1.
"""

from collections.abc import Callable, Mapping
import dataclasses
import types

import numpy as np

from alignjax.evaluation import evaluator

LAWS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = types.MappingProxyType(
  {'best_of_n': lambda d: np.stack([d, -d * d], axis=-1), 'rl': lambda d: np.stack([d, -d * np.log(d)], axis=-1)}
)
"""For each law, the factors of a and b at distances d, [K, 2]."""


@dataclasses.dataclass(frozen=True)
class Fit:
  """A law, fitted to the checkpoints of a run.

  Attributes:
    law: the name of the law in `LAWS`.
    a: gain per distance near the reference; the errors are those of the bootstrap over prompts.
    b: how fast that gain falls.
    distance: d of each checkpoint that counts, [K] in square roots of nats.
    residual: observed minus fitted gain of these checkpoints, [K].
  """

  law: str
  a: evaluator.Estimate
  b: evaluator.Estimate
  distance: np.ndarray
  residual: np.ndarray

  @property
  def rms(self) -> float:
    """Root mean square of the residuals."""
    return float(np.sqrt(np.mean(self.residual**2)))

  def gain(self, distance: np.ndarray) -> np.ndarray:
    """The fitted gain in reward at positive distances."""
    return LAWS[self.law](np.asarray(distance, np.float64)) @ np.array([self.a.mean, self.b.mean])


def fit(law: str, gain: np.ndarray, kl: np.ndarray, *, draws: int = 1000, seed: int = 0) -> Fit:
  """Fits a law to checkpoints by linear least squares in (a, b), with all checkpoints weighted equally.

  Checkpoints whose KL estimate is not positive, such as the reference itself, are left out: all laws give R = 0 there.

  Args:
    law: a name in `LAWS`.
    gain: gold reward minus that of the reference, mean over the samples of each prompt, [checkpoints, B].
    kl: estimates of KL(policy || reference) for the same prompts, mean over samples, [checkpoints, B], nats.
    draws: number of bootstrap draws. Each draws B prompts with replacement, the same for all checkpoints.
    seed: seed of the bootstrap.

  Raises:
    ValueError: the law is unknown, the shapes differ, or fewer than two checkpoints count.
  """
  if law not in LAWS:
    raise ValueError(f'law {law!r} is not one of {", ".join(LAWS)}')
  gain, kl = np.asarray(gain, np.float64), np.asarray(kl, np.float64)
  if gain.ndim != 2 or gain.shape != kl.shape:
    raise ValueError(f'expected gain and KL of one shape [checkpoints, prompts], got {gain.shape} and {kl.shape}')
  counts = kl.mean(axis=1) > 0
  if counts.sum() < 2:
    raise ValueError(f'{counts.sum()} checkpoints have a positive KL estimate, and a fit needs at least 2')
  gain, kl = gain[counts], kl[counts]
  prompts = gain.shape[1]

  def solve(columns: np.ndarray) -> np.ndarray:
    mean = kl[:, columns].mean(axis=1)
    positive = mean > 0
    return np.linalg.lstsq(LAWS[law](np.sqrt(mean[positive])), gain[positive][:, columns].mean(axis=1))[0]

  best = solve(np.arange(prompts))
  generator = np.random.default_rng(seed)
  drawn = np.array([solve(generator.integers(0, prompts, prompts)) for _ in range(draws)])
  error = drawn.std(axis=0, ddof=1) if prompts > 1 and draws > 1 else np.full(2, np.nan)
  distance = np.sqrt(kl.mean(axis=1))
  a, b = (evaluator.Estimate(float(value), float(spread)) for value, spread in zip(best, error, strict=True))
  return Fit(law, a, b, distance, gain.mean(axis=1) - LAWS[law](distance) @ best)
