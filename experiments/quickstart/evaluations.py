"""Evaluations during training: gold reward against the distance from the reference."""

import jax
from rich import console as rich_console

from alignjax.evaluation import evaluator, frontier
from alignjax.run import costs
from alignjax.training import state
from alignjax.types import Params
from experiments.quickstart import responses


class Evaluations:
  """A hook of the training loop: samples responses, scores them, and measures the KL to the reference.

  Args:
    responder: samples and measures.
    reference: the reference's parameters.
    before: the reference's responses to the held-out prompts.
    key: the key that `before` was sampled with. Each evaluation uses the same random numbers.
    clock: counts the time.
    console: prints a line for each evaluation.
  """

  def __init__(
    self,
    responder: responses.Responder,
    reference: Params,
    before: responses.Drawn,
    key: jax.Array,
    clock: costs.Clock,
    console: rich_console.Console,
  ):
    self.before = self.after = before
    self.kl = dict.fromkeys(('kl', 'kl_of_tokens'), evaluator.Estimate(0.0, 0.0))
    self.points = [self._point(0)]
    self._responder, self._reference, self._key = responder, reference, key
    self._clock, self._console = clock, console

  def __call__(self, step: int, trained: state.TrainState) -> None:
    """Evaluates the policy after `step` updates."""
    with self._clock('evaluate'):
      self.after = self._responder.draw(trained.params, self.before.prompts, self._key)
      self.kl = self._responder.kl(trained.params, self._reference, self.after)
    self.points.append(self._point(step))
    self._console.print(
      f'step {step}: gold reward {self.points[-1].reward}, KL {self.points[-1].kl}', highlight=False, soft_wrap=True
    )

  def _point(self, step: int) -> frontier.Point:
    return frontier.Point(step, evaluator.clustered_mean(self.after.rewards), self.kl['kl_of_tokens'])
