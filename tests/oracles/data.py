"""What float64 oracles see of a batch: everything in numpy, sharing no code with the library.

An oracle maps `(live, frozen)` to the loss of each prompt, [B]. Both are `Data` of the same batch; the equation's
stop-gradients read `frozen`, everything else `live`, so that central differences in `live` give the gradient that is
meant.
"""

from collections.abc import Callable
import dataclasses
import functools

import numpy as np

from alignjax.types import PreferenceBatch


@dataclasses.dataclass(frozen=True)
class Data:
  """A batch with the next-token distributions of both models, in float64."""

  policy: np.ndarray  # [B, N, R, V] log-probabilities
  reference: np.ndarray  # [B, N, R, V]
  target: np.ndarray  # [B, N, R] token ids
  length: np.ndarray  # [B, N]
  label: np.ndarray  # [B]
  weight: np.ndarray  # [B]
  score: np.ndarray | None  # [B, N]
  behaviour_logp: np.ndarray | None  # [B, N]
  behaviour_token_logp: np.ndarray | None  # [B, N, R]
  prompt: np.ndarray  # [B, P] token ids
  prompt_length: np.ndarray  # [B]

  @classmethod
  def of(cls, batch: PreferenceBatch, policy_logits: np.ndarray, reference_logits: np.ndarray) -> 'Data':
    def float64(x):
      return None if x is None else np.asarray(x, np.float64)

    return cls(
      policy=log_softmax(policy_logits),
      reference=log_softmax(reference_logits),
      target=np.asarray(batch.response),
      length=np.asarray(batch.response_length),
      label=float64(batch.label),
      weight=float64(batch.weight),
      score=float64(batch.score),
      behaviour_logp=float64(batch.behaviour_logp),
      behaviour_token_logp=float64(batch.cached.get('behaviour_token_logp')),
      prompt=np.asarray(batch.prompt),
      prompt_length=np.asarray(batch.prompt_length),
    )

  def with_logits(self, policy_logits: np.ndarray) -> 'Data':
    return dataclasses.replace(self, policy=log_softmax(policy_logits))

  @functools.cached_property
  def mask(self) -> np.ndarray:
    """[B, N, R]"""
    return np.arange(self.target.shape[-1]) < self.length[..., None]

  @functools.cached_property
  def logp(self) -> np.ndarray:
    """[B, N, R], of each token under the policy; 0 at padding."""
    return np.where(self.mask, np.take_along_axis(self.policy, self.target[..., None], -1)[..., 0], 0.0)

  @functools.cached_property
  def reference_logp(self) -> np.ndarray:
    """[B, N, R], the same under the reference."""
    return np.where(self.mask, np.take_along_axis(self.reference, self.target[..., None], -1)[..., 0], 0.0)

  @functools.cached_property
  def rho(self) -> np.ndarray:
    """[B, N]: log pi(y|x) - log pi_ref(y|x)."""
    return self.logp.sum(-1) - self.reference_logp.sum(-1)

  @functools.cached_property
  def h(self) -> np.ndarray:
    """[B]: rho(y_w) - rho(y_l)."""
    return self.rho[:, 0] - self.rho[:, 1]

  @functools.cached_property
  def sum_logp(self) -> np.ndarray:
    """[B, N]: log pi(y|x)."""
    return self.logp.sum(-1)

  @functools.cached_property
  def sum_reference(self) -> np.ndarray:
    """[B, N]: log pi_ref(y|x)."""
    return self.reference_logp.sum(-1)

  @functools.cached_property
  def mean_logp(self) -> np.ndarray:
    """[B, N]: log pi(y|x) / |y|."""
    return self.logp.sum(-1) / self.length

  @functools.cached_property
  def reward(self) -> np.ndarray:
    """[B, N]: the response statistic that is computed from logits, see `examples.table`."""
    return self.mean_logp

  def token_sum(self, values: np.ndarray) -> np.ndarray:
    """[B, N]: sums [B, N, R] over the tokens of each response."""
    return np.where(self.mask, values, 0.0).sum(-1)


Oracle = Callable[[Data, Data], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
  """An objective by its expression, and what is known of it."""

  expression: str
  oracle: Oracle
  responses: int = 2  # N of the batches on which it is tested
  at_reference: float | None = None  # the documented loss of every prompt at policy == reference, for a hard label


def log_softmax(logits: np.ndarray) -> np.ndarray:
  logits = np.asarray(logits, np.float64)
  shifted = logits - logits.max(axis=-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def log_sigmoid(x: np.ndarray) -> np.ndarray:
  return -np.logaddexp(0.0, -np.asarray(x, np.float64))


def sigmoid(x: np.ndarray) -> np.ndarray:
  return np.exp(log_sigmoid(x))


def expected(loss: Callable[[np.ndarray], np.ndarray], margin: np.ndarray, preferred: np.ndarray) -> np.ndarray:
  """E over the label: q f(h) + (1 - q) f(-h)."""
  return preferred * loss(margin) + (1 - preferred) * loss(-margin)


def token_statistic(name: str, policy: np.ndarray, reference: np.ndarray, target: np.ndarray) -> np.ndarray:
  """[B, N, R] of log-probabilities [B, N, R, V] and token ids [B, N, R]."""
  with np.errstate(invalid='ignore'):
    return {
      'logp': lambda: np.take_along_axis(policy, target[..., None], -1)[..., 0],
      'reference_logp': lambda: np.take_along_axis(reference, target[..., None], -1)[..., 0],
      'entropy': lambda: -np.nansum(np.exp(policy) * policy, -1),
      'forward_kl': lambda: np.nansum(np.exp(reference) * (reference - policy), -1),
      'reverse_kl': lambda: np.nansum(np.exp(policy) * (policy - reference), -1),
      'log_collision': lambda: np.log(np.sum(np.exp(policy) ** 2, -1)),
    }[name]()
