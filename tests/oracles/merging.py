"""Oracles of `alignjax.merging`: the published formulas on single tensors, in float64 numpy."""

import numpy as np


def linear(models, weights, normalize=True):
  total = sum(weights) if normalize else 1.0
  return sum((w / total) * np.asarray(m, np.float64) for w, m in zip(weights, models, strict=True))


def slerp(t, first, second):
  a, b = np.float64(first).ravel(), np.float64(second).ravel()
  unit_a = a / np.linalg.norm(a) if np.linalg.norm(a) > 1e-8 else a
  unit_b = b / np.linalg.norm(b) if np.linalg.norm(b) > 1e-8 else b
  dot = np.dot(unit_a, unit_b)
  if abs(dot) > 0.9995:
    return ((1 - t) * a + t * b).reshape(first.shape)
  theta = np.arccos(dot)
  out = np.sin(theta - t * theta) / np.sin(theta) * a + np.sin(t * theta) / np.sin(theta) * b
  return out.reshape(first.shape)


def deltas(models, base):
  return [np.asarray(m, np.float64) - np.asarray(base, np.float64) for m in models]


def permuted(index, words):
  """The permutation of [0, 2^32) that orders equal magnitudes, in Python integers."""
  for word in words:
    index = (index + int(word)) % 2**32
    index = (index ^ index >> 16) * 0x7FEB352D % 2**32
    index = (index ^ index >> 15) * 0x846CA68B % 2**32
    index ^= index >> 16
  return index


def places(delta, words):
  """The place of each entry, from 0 for the largest; of equal magnitudes the one with the largest number is first."""
  flat = np.abs(delta).ravel()
  order = sorted(range(flat.size), key=lambda i: (-flat[i], -permuted(i, words)))
  return np.argsort(order).reshape(delta.shape)


def trim(delta, density):
  """Keeps the int(density n) largest."""
  flat = delta.ravel()
  order = sorted(range(flat.size), key=lambda i: -abs(flat[i]))
  out = np.zeros(flat.size)
  for i in order[: int(density * flat.size)]:
    out[i] = flat[i]
  return out.reshape(delta.shape)


def outliers(delta, density, gamma):
  """Drops the int(gamma n) largest, then the smallest until int(density n) are left."""
  flat = delta.ravel()
  n, keep, top = flat.size, int(density * flat.size), int(gamma * flat.size)
  bottom = n - keep - top
  if bottom < 0:
    top, bottom = top + bottom, 0
  order = np.argsort(np.abs(flat))
  out = np.zeros(n)
  survivors = order[bottom : n - top]
  out[survivors] = flat[survivors]
  return out.reshape(delta.shape)


def keep_probability(delta, density, epsilon):
  """DELLA: from density - epsilon at the smallest of a row to density + epsilon at the largest."""
  matrix = delta.reshape(-1, delta.shape[-1])
  out = np.empty(matrix.shape)
  for r, row in enumerate(matrix):
    for rank, column in enumerate(np.argsort(np.abs(row))):
      out[r, column] = density - epsilon + 2 * epsilon * rank / (row.size - 1)
  return out.reshape(delta.shape)


def match_l1(thinned, original):
  return thinned * (np.abs(original).sum() / np.abs(thinned).sum())


def elect(thinned, weights, normalize):
  """The disjoint merge of TIES, entry by entry."""
  columns = [t.ravel() for t in thinned]
  out = np.zeros(columns[0].size)
  for i in range(out.size):
    values = [w * c[i] for w, c in zip(weights, columns, strict=True)]
    sign = 1 if sum(values) >= 0 else -1
    agreeing = [(v, w) for v, w in zip(values, weights, strict=True) if v * sign > 0]
    total = sum(v for v, _ in agreeing)
    out[i] = total / sum(w for _, w in agreeing) if agreeing and normalize else total
  return out.reshape(thinned[0].shape)


def add(thinned, weights, normalize):
  total = sum(weights) if normalize else 1.0
  return sum(w * t for w, t in zip(weights, thinned, strict=True)) / total


def model_stock(models, base):
  """The ratio t and the merged tensor."""
  taus = [d.ravel() for d in deltas(models, base)]
  pairs = [(i, j) for i in range(len(taus)) for j in range(i)]
  cosine = np.mean([taus[i] @ taus[j] / (np.linalg.norm(taus[i]) * np.linalg.norm(taus[j])) for i, j in pairs])
  n = len(models)
  t = n * cosine / (1 + (n - 1) * cosine)
  return t, t * np.mean([np.float64(m) for m in models], axis=0) + (1 - t) * np.float64(base)
