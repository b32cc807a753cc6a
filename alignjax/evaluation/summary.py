"""What is reported about the responses of a model, and about all checkpoints of a run."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from alignjax.evaluation import best_of_n, diversity, evaluator, frontier, length_control, over_optimisation

Summary = Mapping[str, evaluator.Estimate | float]
TITLES = {  # of columns, by the name of the value
  'reward': 'reward',
  'gain': 'gain',
  'proxy': 'proxy',
  'win_rate': 'win rate',
  'win_rate_data': 'win rate against the data',
  'length_controlled': 'win rate at equal lengths',
  'win_rate_judge': 'win rate by the judge',
  'win_rate_data_judge': 'win rate by the judge against the data',
  'position_bias_judge': 'position bias, nats',
  'win_rate_second_judge': 'win rate by the second judge',
  'agreement': 'agreement of the judges',
  'kl': 'KL, nats',
  'entropy': 'entropy, nats per token',
  'tokens': 'tokens',
  'finished': 'finished',
  'distinct_1': 'distinct-1',
  'distinct_2': 'distinct-2',
}


def columns(summaries: Iterable[Mapping[str, Any]]) -> dict[str, str]:
  """The titles of the columns of a table of summaries, by the name of the value; at least one summary has it."""
  names = set().union(*summaries)
  return {name: title for name, title in TITLES.items() if name in names}


@dataclasses.dataclass(frozen=True)
class Measured:
  """N responses of one model to each of B prompts, and what has been measured of them.

  Attributes:
    name: the name of the model.
    ids: token ids of each response, [B][N][tokens].
    finished: whether the response has an end token, [B, N] bool.
    rewards: 'reward' and, if there is one, 'proxy': [B, N] float64.
    parts: the parts of these rewards by name, [B, N] float64.
    kl: estimates of KL(model || reference) per response in nats, 'kl' by KLs of tokens and 'kl_of_draws' by log-ratios
      of the tokens drawn, [B, N]; empty if not measured.
    entropy: mean entropy over the tokens of each response in nats, [B, N]; None if not measured.
    judged: the verdicts of judges on each response against one of the reference or of the data, by name, [B, N]: wins
      (1, 1/2 or 0), position biases and agreements.
    run: the run of which the model is a checkpoint; empty if it is none.
    step: the step of the checkpoint.
    texts: the responses as text, [B][N]; empty if not kept.
  """

  name: str
  ids: Sequence[Sequence[Sequence[int]]]
  finished: np.ndarray
  rewards: Mapping[str, np.ndarray]
  parts: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  kl: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  entropy: np.ndarray | None = None
  judged: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  run: str = ''
  step: int = 0
  texts: Sequence[Sequence[str]] = ()

  @property
  def tokens(self) -> np.ndarray:
    """Lengths of the responses in tokens, [B, N]."""
    return np.array([[len(response) for response in row] for row in self.ids], np.float64)


def summarise(model: Measured, reference: Measured, given: np.ndarray | None = None) -> Summary:
  """Means with clustered standard errors by name, and shares of distinct n-grams.

  Win rates and gains compare with the reference's responses to the same prompts. `length_controlled` pairs the n-th
  responses of both.

  Args:
    model: the responses of a model, [B, N].
    reference: the responses of the reference, [B, N].
    given: rewards of responses that the data give for the prompts, [B, M]; None if they give none.
  """
  mean = evaluator.clustered_mean
  found: dict[str, evaluator.Estimate | float] = {name: mean(values) for name, values in model.rewards.items()}
  found |= {f'reward/{name}': mean(values) for name, values in model.parts.items()}
  ours, theirs = model.rewards['reward'], reference.rewards['reward']
  if model.name != reference.name:
    wins = (ours > theirs) + 0.5 * (ours == theirs)
    found |= {
      'gain': evaluator.gain(ours, theirs),
      'win_rate': evaluator.win_rate(ours, theirs),
      'length_controlled': length_control.length_controlled(wins, model.tokens, reference.tokens),
    }
  if given is not None:
    found['win_rate_data'] = evaluator.win_rate(ours, given)
  found |= {name: mean(values) for name, values in model.judged.items()}
  found |= {'tokens': mean(model.tokens), 'finished': mean(model.finished)}
  found |= {name: mean(values) for name, values in model.kl.items()}
  if model.entropy is not None:
    found['entropy'] = mean(model.entropy)
  flat = [response for row in model.ids for response in row]
  return found | {f'distinct_{n}': diversity.distinct_n(flat, n) for n in (1, 2)}


def best_of_reference(reference: Measured) -> list[dict[str, Any]]:
  """The reward of the reference's best of n by proxy, for n = 1, 2, 4 .. N; empty without a proxy.

  Each entry has 'n', 'kl' (nats, an upper bound), and the estimates 'reward' and 'proxy'.
  """
  if 'proxy' not in reference.rewards:
    return []
  proxy = reference.rewards['proxy']
  sizes = [2**i for i in range(proxy.shape[1].bit_length())]
  return [
    {'n': n, 'kl': best_of_n.kl_best_of_n(n)}
    | {
      name: evaluator.clustered_mean(best_of_n.best_of_n(proxy, values, n)[:, None])
      for name, values in reference.rewards.items()
    }
    for n in sizes
  ]


def over_optimisation_of(checkpoints: Sequence[Measured], reference: Measured) -> list[dict[str, Any]]:
  """Fits both laws to the checkpoints of one run, once with the reward and once with the proxy.

  Empty if fewer than two checkpoints have a positive estimate of the KL.
  """
  away = [each for each in checkpoints if each.kl and each.kl['kl'].mean() > 0]
  if len(away) < 2:
    return []
  kl = np.array([each.kl['kl'].mean(axis=1) for each in away])
  fits = []
  for name, values in reference.rewards.items():
    gain = np.array([each.rewards[name].mean(axis=1) - values.mean(axis=1) for each in away])
    fits += [{'of': name, 'fit': over_optimisation.fit(law, gain, kl)} for law in over_optimisation.LAWS]
  return fits


def point(model: Measured, summary: Summary) -> frontier.Point:
  """The place of a model in a plot of reward against distance."""
  return frontier.Point(model.step, summary['reward'], summary.get('kl', evaluator.Estimate(0.0, 0.0)))
