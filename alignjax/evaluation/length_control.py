"""Win rates that do not reward length."""

import numpy as np

from alignjax.evaluation import evaluator

SPREAD = 5.0  # standard deviation of the prior of phi, which keeps it finite if length alone decides
STEPS = 200  # Newton steps at most; a few suffice unless every comparison is won


def length_controlled(win: np.ndarray, length_a: np.ndarray, length_b: np.ndarray) -> evaluator.Estimate:
  """The win rate of A against B at equal lengths, sigmoid(theta), by a logistic regression on the lengths:

    P(A wins) = sigmoid(theta + phi x),   x = tanh(delta / std(delta)),   delta = length_a - length_b

  fitted by maximum likelihood, with a normal prior of standard deviation 5 on phi alone. With equal lengths it is the
  raw win rate, and exchanging A and B gives 1 minus it. This is not AlpacaEval's length-controlled win rate, which also
  models the difficulty of each instruction.

  Args:
    win: outcomes in [0, 1], 1/2 for a tie, [B, N] with N comparisons for each of B prompts.
    length_a: lengths of A's responses, in any unit, [B, N].
    length_b: lengths of B's responses, in the same unit, [B, N].

  Returns:
    The win rate; its standard error is clustered by prompt, by the delta method.

  Raises:
    ValueError: the shapes differ, or an outcome is not in [0, 1].

  References:
    Dubois et al., Length-Controlled AlpacaEval, https://arxiv.org/abs/2404.04475, section 3 (the length term).
  """
  win, length_a, length_b = (np.asarray(values, np.float64) for values in (win, length_a, length_b))
  if win.ndim != 2 or not win.size or not win.shape == length_a.shape == length_b.shape:
    raise ValueError(
      'expected outcomes and lengths of one shape [prompts, samples] with at least one of each, '
      f'got {win.shape}, {length_a.shape} and {length_b.shape}'
    )
  if not np.all((win >= 0) & (win <= 1)):
    raise ValueError('outcomes must be in [0, 1]: 1 for a win, 1/2 for a tie, 0 for a loss')
  delta = length_a - length_b
  spread = delta.std()
  x = np.stack([np.ones_like(delta), np.tanh(delta / spread) if spread else np.zeros_like(delta)], axis=-1)
  coefficients, curvature = _fit(x.reshape(-1, 2), win.ravel())
  at_equal = float(_sigmoid(coefficients[0]))
  by_prompt = ((win - _sigmoid(x @ coefficients))[..., None] * x).sum(axis=1)
  influence = by_prompt @ np.linalg.inv(curvature)[:, 0]
  prompts = len(win)
  error = np.sqrt(np.sum(influence**2) * prompts / (prompts - 1)) if prompts > 1 else np.nan
  return evaluator.Estimate(at_equal, float(error) * at_equal * (1 - at_equal))


def _sigmoid(z: np.ndarray) -> np.ndarray:
  return 0.5 * (1 + np.tanh(0.5 * z))


def _fit(x: np.ndarray, win: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The most probable (theta, phi), and the curvature of the negative log-posterior there."""
  prior = np.diag([0.0, SPREAD**-2])

  def loss(at: np.ndarray) -> float:
    z = x @ at
    return np.sum(np.logaddexp(0, z) - win * z) + 0.5 * at @ prior @ at

  def curvature(at: np.ndarray) -> np.ndarray:
    p = _sigmoid(x @ at)
    # The small number matters only if all outcomes are 0 or 1, and theta has no finite optimum.
    return (x * (p * (1 - p))[:, None]).T @ x + prior + np.diag([1e-12, 0.0])

  at = np.zeros(2)
  for _ in range(STEPS):
    step = np.linalg.solve(curvature(at), x.T @ (win - _sigmoid(x @ at)) - prior @ at)
    size = 1.0
    while loss(at + size * step) > loss(at) and size > 1e-9:
      size /= 2
    at = at + size * step
    if np.max(np.abs(size * step)) < 1e-12 or abs(at[0]) > 40:
      break
  return at, curvature(at)
