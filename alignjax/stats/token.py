"""Token statistics: what an objective can read about a response token from the two next-token distributions before it.

A statistic maps log-probabilities over the vocabulary and the observed token to one number per token. An objective
names the statistics that it needs; the head computes only these, one chunk of positions at a time.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp

from alignjax import numerics, risk
from alignjax.types import Array


@dataclasses.dataclass(frozen=True)
class TokenStat:
  """A named function of (policy log-probs [..., V], reference log-probs [..., V], token ids [...]) -> [...].

  Two statistics with the same name are the same statistic, so they can be kept in sets and cached by name. A side that
  the statistic does not read is passed as None.
  """

  name: str
  function: Callable[[Array | None, Array | None, Array], Array] = dataclasses.field(compare=False, repr=False)
  policy: bool = dataclasses.field(default=True, compare=False)  # does it read the policy's distribution?
  reference: bool = dataclasses.field(default=False, compare=False)  # does it read the reference's distribution?

  def __call__(self, policy: Array | None, reference: Array | None, target: Array) -> Array:
    return self.function(policy, reference, target)


def _expectation(log_probs: Array, values: Array) -> Array:
  # A token of probability 0 has log-probability -inf and adds nothing. The `where` inside the product prevents the NaN
  # of 0 * inf, in the value and in the gradient.
  return jnp.sum(jnp.exp(log_probs) * jnp.where(jnp.isneginf(log_probs), 0.0, values), axis=-1)


logp = TokenStat(
  'logp',
  lambda policy, reference, target: numerics.select(policy, target),
)
"""log pi(y_t | x, y_<t), nats."""

reference_logp = TokenStat(
  'reference_logp',
  lambda policy, reference, target: numerics.select(reference, target),
  policy=False,
  reference=True,
)
"""log pi_ref(y_t | x, y_<t), nats."""

entropy = TokenStat(
  'entropy',
  lambda policy, reference, target: -_expectation(policy, policy),
)
"""H(pi(. | x, y_<t)) = -sum_v pi(v) log pi(v), nats."""

log_collision = TokenStat(
  'log_collision',
  lambda policy, reference, target: jax.nn.logsumexp(2.0 * policy, axis=-1),
)
"""log sum_v pi(v | x, y_<t)^2, nats: the log of the average probability of a token drawn from the policy."""

forward_kl = TokenStat(
  'forward_kl',
  lambda policy, reference, target: _expectation(reference, reference - policy),
  reference=True,
)
"""KL(pi_ref || pi) before token t: sum_v pi_ref(v) (log pi_ref(v) - log pi(v)), nats. TDPO's direction (2404.11999)."""

reverse_kl = TokenStat(
  'reverse_kl',
  lambda policy, reference, target: _expectation(policy, policy - reference),
  reference=True,
)
"""KL(pi || pi_ref) before token t: sum_v pi(v) (log pi(v) - log pi_ref(v)), nats."""


def risk_ratio(measure: risk.RiskMeasure) -> TokenStat:
  """The risk of the drift before token t, nats: how much log-probability the policy has lost against the reference.

  measure_{v ~ pi_ref}[ log pi_ref(v | x, y_<t) - log pi(v | x, y_<t) ]

  With the expectation it is the forward KL. With a measure of the upper tail it is at least that, and 0 only if both
  distributions agree (2505.20359, with the tail that its derivation implies: see `objectives.ra_dpo`).
  """
  return TokenStat(
    f'risk_ratio({measure.name})',
    lambda policy, reference, target: measure(reference - policy, reference),
    reference=True,
  )
