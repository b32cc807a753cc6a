"""Float64 numpy oracles, written from the papers' equations and sharing no code with the library.

Each objective's oracle maps token log-probabilities `logp`, `reference` [B, N, R], lengths [B, N] and the label [B] to
the loss of each prompt, [B].
"""

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
  logits = np.asarray(logits, np.float64)
  shifted = logits - logits.max(axis=-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def log_sigmoid(x: np.ndarray) -> np.ndarray:
  return -np.logaddexp(0.0, -np.asarray(x, np.float64))


def token_statistic(name: str, policy: np.ndarray, reference: np.ndarray, target: np.ndarray) -> np.ndarray:
  """[B, N, R] of log-probabilities [B, N, R, V] and token ids [B, N, R]."""
  with np.errstate(invalid='ignore'):
    return {
      'logp': lambda: np.take_along_axis(policy, target[..., None], -1)[..., 0],
      'reference_logp': lambda: np.take_along_axis(reference, target[..., None], -1)[..., 0],
      'entropy': lambda: -np.nansum(np.exp(policy) * policy, -1),
      'forward_kl': lambda: np.nansum(np.exp(reference) * (reference - policy), -1),
      'reverse_kl': lambda: np.nansum(np.exp(policy) * (policy - reference), -1),
    }[name]()


def sequence_sum(values: np.ndarray, length: np.ndarray) -> np.ndarray:
  """[B, N]: sums the first `length` entries of each row."""
  out = np.zeros(length.shape)
  for index in np.ndindex(*length.shape):
    out[index] = values[index][: length[index]].sum()
  return out


def _margin(logp, reference, length):
  ratio = sequence_sum(logp, length) - sequence_sum(reference, length)
  return ratio[:, 0] - ratio[:, 1]


def dpo(logp, reference, length, label, beta, label_smoothing):
  h = _margin(logp, reference, length)
  q = label * (1 - label_smoothing) + (1 - label) * label_smoothing
  return -q * log_sigmoid(beta * h) - (1 - q) * log_sigmoid(-beta * h)


def ipo(logp, reference, length, label, tau):
  h = _margin(logp, reference, length)
  return label * (h - 1 / (2 * tau)) ** 2 + (1 - label) * (-h - 1 / (2 * tau)) ** 2


def hinge(logp, reference, length, label, beta):
  h = _margin(logp, reference, length)
  return label * np.maximum(0, 1 - beta * h) + (1 - label) * np.maximum(0, 1 + beta * h)


def simpo(logp, reference, length, label, beta, gamma):
  mean = sequence_sum(logp, length) / length
  difference = beta * (mean[:, 0] - mean[:, 1])
  return -label * log_sigmoid(difference - gamma) - (1 - label) * log_sigmoid(-difference - gamma)


def sft(logp, reference, length, label):
  return -(sequence_sum(logp, length) / length)[:, 0]
