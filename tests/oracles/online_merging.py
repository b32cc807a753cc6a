"""Oracles of `alignjax.optim`: Adam and the merge of algorithms 1 and 2 of the paper, in float64 numpy."""

import numpy as np


def permuted(index, words, bits):
  """The permutation of [0, 2^bits) that orders ties, in Python integers."""
  size = 2**bits
  for word in words:
    index = (index + int(word)) % size
    index = (index ^ index >> 16) * 0x7FEB352D % size
    index = (index ^ index >> 15) * 0x846CA68B % size
    index ^= index >> 16
  return index


def largest(magnitude, fraction, ranks):
  """[n] bool: the max(1, int(fraction * n)) largest, of equal ones those of highest rank, by sorting."""
  order = np.lexsort((ranks, magnitude))[::-1]
  kept = np.zeros(magnitude.size, bool)
  kept[order[: max(1, int(fraction * magnitude.size))]] = True
  return kept


def top(x, fraction):
  """x with all but the int(fraction * size) entries of largest magnitude set to zero; the magnitudes are distinct."""
  kept = largest(np.abs(x).ravel(), fraction, np.zeros(x.size))
  return np.where(kept.reshape(x.shape), x, 0.0)


def sum_(update, delta, alpha):
  return (1 - alpha) * update + alpha * delta


def weighted(update, delta, alpha):
  """Agreeing entries add; of opposed ones the larger stays; those that cancel leave nothing."""
  a, b = (1 - alpha) * update, alpha * delta
  larger = np.select([np.abs(a) > np.abs(b), np.abs(a) < np.abs(b)], [a, b], 0.0)
  return np.where(np.sign(a) * np.sign(b) >= 0, a + b, larger)


def raw(update, delta, alpha):
  majority = np.where(delta + update >= 0, 1.0, -1.0)
  return alpha * delta * (np.sign(delta) == majority) + (1 - alpha) * update * (np.sign(update) == majority)


CONSENSUS = {'none': sum_, 'weighted': weighted, 'raw': raw}


class Adam:
  """-rate mhat / (sqrt(vhat) + epsilon) of one tensor."""

  def __init__(self, rate, beta1=0.9, beta2=0.999, epsilon=1e-8):
    self.rate, self.beta1, self.beta2, self.epsilon = rate, beta1, beta2, epsilon
    self.mean = self.square = 0.0
    self.steps = 0

  def __call__(self, gradient):
    self.steps += 1
    self.mean = self.beta1 * self.mean + (1 - self.beta1) * gradient
    self.square = self.beta2 * self.square + (1 - self.beta2) * gradient**2
    mean = self.mean / (1 - self.beta1**self.steps)
    square = self.square / (1 - self.beta2**self.steps)
    return -self.rate * mean / (np.sqrt(square) + self.epsilon)


def trajectory(theta, gradients, delta, alpha, *, rate, epsilon=1e-8, reserve=None, merge=sum_, every=1):
  """Parameters after each gradient, for one tensor; `reserve` maps a tensor to what is kept of it."""
  reserve = reserve or (lambda x: x)
  adam, cache, path = Adam(rate, epsilon=epsilon), 0.0, []
  for step, gradient in enumerate(gradients, start=1):
    update = adam(gradient)
    if step % every:
      cache, theta = cache + update, theta + update
    else:
      theta, update, cache = theta - cache, update + cache, 0.0
      theta = theta + merge(reserve(update), reserve(delta), alpha)
    path.append(theta)
  return path
