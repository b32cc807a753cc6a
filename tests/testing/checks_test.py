"""Objectives that break the contract are found, and the message names what is wrong."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives, stats, testing
from alignjax.objectives import base, examples, preference
from alignjax.testing import checks, tables
from alignjax.types import Term

LOGP = frozenset({stats.logp})


def imitation(table, batch):
  """A sound loss of any number of responses."""
  loss = -jnp.asarray(batch.label) * table.mean(stats.logp)[:, 0]
  return Term(loss, {'nll': jax.lax.stop_gradient(loss)})


def objective(apply=imitation, needs=LOGP, reads=base.LABEL, **declared):
  return objectives.Objective(needs, apply, reads=reads, name='wrong()', **declared)


def changed(change, metrics=lambda table, batch: {}):
  """`imitation` with a change of its loss by the table and the batch."""

  def apply(table, batch):
    loss = imitation(table, batch).loss
    return Term(change(loss, table, batch), metrics(table, batch))

  return apply


def weight_of_others(loss, table, batch):
  return loss * jnp.mean(jnp.asarray(batch.weight))


def counts_deleted(loss, table, batch):
  """The mean over the batch, in which prompts of weight 0 count."""
  return loss - jnp.mean(loss)


WRONG = {
  checks.check_needs: [
    (objective(needs=LOGP | {stats.entropy}), r"declares the statistics \['entropy'\], which are never read"),
    (
      objective(changed(lambda loss, table, _: loss + table.sum(stats.entropy)[:, 0])),
      r"reads the statistic 'entropy'",
    ),
  ],
  checks.check_reads: [
    (objective(reads=frozenset()), r"the loss reads the fields \['label'\] of the batch: add them to `reads`"),
    (
      objective(reads=base.LABEL | base.SCORE),
      r"declares the fields \['score'\], but the loss does not depend on them: remove them",
    ),
    (
      objective(changed(lambda loss, *_: loss, lambda _, batch: {'score': batch.score[:, 0]})),
      r"a metric reads the fields \['score'\]",
    ),
    (
      objective(
        changed(lambda loss, _, batch: loss * batch.score[:, 0]),
        reads=base.LABEL | base.SCORE,
        optional=base.SCORE,
      ),
      r"`optional` declares \['score'\], but without them",
    ),
    (
      objective(
        changed(lambda loss, _, batch: loss if batch.score is None else loss * batch.score[:, 0]),
        reads=base.LABEL | base.SCORE,
      ),
      'a batch without `score` must raise a ValueError that names `score`',
    ),
  ],
  checks.check_responses: [
    (objective(responses=2), 'declares N = 2, but a batch with N = 1 raises no error'),
    (dataclasses.replace(objectives.dpo(), responses=None), 'declares any N, but N = 1 raises: dpo compares'),
    (dataclasses.replace(objectives.dpo(), name='mine()'), 'must begin with the name of the objective'),
  ],
  checks.check_finite: [
    (
      objective(changed(lambda loss, *_: jnp.sum(loss))),
      r'the loss must be \[B\] = \(6,\) float32, .*got \(\) float32',
    ),
    (objective(changed(lambda loss, *_: loss.astype(jnp.float16))), r'got \(6,\) float16'),
    (objective(changed(lambda loss, *_: jnp.log(-jnp.abs(loss) - 1))), 'the loss is not finite'),
    (objective(changed(lambda loss, *_: loss, lambda *_: {'one': jnp.ones(())})), r"the metric 'one' must be \[B\]"),
  ],
  checks.check_extremes: [
    (objective(changed(lambda loss, *_: jnp.exp(jnp.abs(loss)))), r'not finite for logits of size \[10000.0\]'),
  ],
  checks.check_coupling: [
    (objective(counts := changed(counts_deleted)), 'declare couples_rows=True'),
    (objective(changed(weight_of_others), reads=base.LABEL_AND_WEIGHT), 'declare couples_rows=True'),
  ],
  checks.check_padding: [
    (
      objective(changed(lambda loss, _, batch: loss + 0.1 * jnp.sum(batch.response, axis=(1, 2)))),
      'the content of the padding changes the loss',
    ),
    (objective(changed(lambda loss, *_: jax.lax.stop_gradient(loss))), 'the gradient is 0 everywhere'),
  ],
  checks.check_permutation: [
    (
      objective(changed(lambda loss, *_: loss * jnp.arange(loss.shape[0]))),
      'permuting the prompts of a batch does not permute their losses',
    ),
  ],
  checks.check_deletion: [
    (objective(counts, couples_rows=True), 'a prompt with weight 0 must count as deleted, but it changes the loss'),
  ],
  checks.check_metric_gradient: [
    (
      objective(changed(lambda loss, *_: loss, lambda table, _: {'logp': table.sum(stats.logp)[:, 0]})),
      'a metric carries gradient',
    ),
  ],
  checks.check_vmap: [
    (objective(changed(weight_of_others), reads=base.LABEL_AND_WEIGHT), 'under jax.vmap'),
  ],
  checks.check_jit: [
    (
      objective(changed(lambda loss, *_: loss if isinstance(loss, jax.core.Tracer) else 2 * loss)),
      'under jax.jit the losses differ',
    ),
  ],
  checks.check_algebra: [
    (
      objective(changed(lambda loss, table, _: loss * len(table.values))),
      'a . 0.5 . b is wrong',
    ),
  ],
  checks.check_name: [
    (objective(), 'the name does not parse; decorate the factory with @objectives.factory'),
    (dataclasses.replace(objectives.dpo(0.2), name='dpo()'), 'the name builds an objective with another `name`'),
    (
      dataclasses.replace(objectives.dpo(0.2), name=objectives.dpo().name),
      'the name builds an objective with another loss',
    ),
  ],
}


@pytest.mark.parametrize(
  ('check', 'wrong', 'message'),
  [(check, *case) for check, cases in WRONG.items() for case in cases],
  ids=lambda value: getattr(value, '__name__', ''),
)
def test_what_is_wrong_is_found_and_named(check, wrong, message):
  with pytest.raises(AssertionError) as caught:
    check(testing.Setting.of(wrong))
  assert str(caught.value).startswith(f'{wrong.name}: ')
  assert re.search(message, str(caught.value))


def test_a_gradient_into_the_reference_is_found(monkeypatch):
  """No objective can cause it, since the statistics stop it: so the setting is made to let it through."""
  setting = testing.Setting.of(objectives.dpo())
  monkeypatch.setattr(jax.lax, 'stop_gradient', lambda tree: tree)
  monkeypatch.setattr(tables, 'table', examples.table)  # without a program from before
  with pytest.raises(AssertionError, match='a gradient flows into the reference'):
    checks.check_reference_gradient(setting)


def test_a_statistic_that_is_defined_again_is_computed_again():
  def objective(factor):
    stat = stats.TokenStat('mine', lambda policy, reference, target: factor * policy[..., 0])
    return objectives.Objective(frozenset({stat}), lambda table, batch: Term(table.sum(stat)[:, 0], {}))

  once, twice = (testing.Setting.of(objective(factor)).term.loss for factor in (1.0, 2.0))
  np.testing.assert_allclose(twice, 2.0 * once)


def test_every_property_has_a_wrong_objective():
  assert {*WRONG, checks.check_reference_gradient} == set(testing.PROPERTIES)


def test_a_sound_objective_of_a_user_passes():
  @objectives.factory
  def mine(beta: float = 0.5):
    return preference.of_log_ratio('mine', beta, lambda h: jax.nn.softplus(-beta * h))

  def oracle(batch, policy, reference):
    chosen = np.take_along_axis(policy - reference, batch.response[..., None], -1)[..., 0]
    mask = np.arange(chosen.shape[-1]) < batch.response_length[..., None]
    h = np.where(mask, chosen, 0).sum(-1) @ [1, -1]
    return batch.label * np.logaddexp(0, -0.5 * h) + (1 - batch.label) * np.logaddexp(0, 0.5 * h)

  try:
    testing.check_objective(mine(), at_reference=np.log(2), oracle=oracle)
    with pytest.raises(AssertionError, match=r'the loss at policy == reference must be 0\.5'):
      testing.check_objective(mine(), at_reference=0.5)
    with pytest.raises(AssertionError, match='the loss differs from the oracle'):
      testing.check_oracle(testing.Setting.of(mine()), lambda *inputs: 1.01 * oracle(*inputs))
  finally:
    del objectives.OBJECTIVES['mine']
