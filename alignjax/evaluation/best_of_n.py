"""Best-of-n sampling, estimated from one pool of samples per prompt."""

import math

import numpy as np


def best_of_n(proxy: np.ndarray, gold: np.ndarray, n: int) -> np.ndarray:
  """Expected gold reward of the sample with the highest proxy reward among n draws, by prompt.

  Of each pool of N samples, n are drawn without replacement. With the pool sorted by proxy reward, ascending,

    E = sum_i gold_(i) C(i - 1, n - 1) / C(N, n),   i = 1 .. N

  which is unbiased for n independent samples. Samples of equal proxy reward share their weights equally. n = 1 gives
  the mean, n = N the gold reward of the best by proxy.

  Args:
    proxy: rewards that select, [B, N].
    gold: rewards that are reported, [B, N].
    n: number of draws, 1 .. N.

  Returns:
    [B] float64; `evaluator.clustered_mean` takes it as [B, 1].

  Raises:
    ValueError: the shapes differ, a proxy reward is nan, or n is not in 1 .. N.

  References:
    Nakano et al., WebGPT, https://arxiv.org/abs/2112.09332, appendix I.
  """
  proxy, gold = np.asarray(proxy, np.float64), np.asarray(gold, np.float64)
  if proxy.ndim != 2 or proxy.shape != gold.shape:
    raise ValueError(f'expected two arrays of shape [prompts, samples], got {proxy.shape} and {gold.shape}')
  if np.isnan(proxy).any():
    raise ValueError('a proxy reward is nan, so the samples have no order')
  pool = proxy.shape[1]
  if not 1 <= n <= pool:
    raise ValueError(f'n={n} must be between 1 and the number of samples per prompt, {pool}')
  subsets = math.comb(pool, n)
  # below[k]: probability that all n draws are among the k lowest.
  below = np.array([math.comb(k, n) / subsets for k in range(pool + 1)])
  lower = (proxy[:, :, None] > proxy[:, None]).sum(axis=2)
  equal = (proxy[:, :, None] == proxy[:, None]).sum(axis=2)
  weights = (below[lower + equal] - below[lower]) / equal
  return (weights * gold).sum(axis=1)


def kl_best_of_n(n: int) -> float:
  """KL(best of n || one sample) in nats, log n - (n - 1) / n: exact without ties, an upper bound with ties.

  References:
    Beirami et al., Theoretical guarantees on the best-of-n alignment policy, https://arxiv.org/abs/2401.01879,
    theorem 3.1.

  Raises:
    ValueError: n is below 1.
  """
  if n < 1:
    raise ValueError(f'n={n} must be at least 1')
  return math.log(n) - (n - 1) / n
