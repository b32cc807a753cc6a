"""What objectives declare: fields, numbers of responses and coupling; how sums and wrappers unite it; the registry."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from alignjax import objectives, stats
from alignjax.types import Term
from tests import quick

WRAPPERS = ('importance_weighted', 'wpo_weighted', 'tis')  # of another objective


@pytest.mark.parametrize(
  ('expression', 'reads', 'responses'),
  [
    ('dpo()', {'label'}, 2),
    ('sft()', {'label'}, None),
    ('mmpo()', {'score'}, 2),
    ('odpo()', {'label', 'score'}, 2),
    ('kto()', {'label', 'weight'}, {1, 2}),
    ('kto() + sft()', {'label', 'weight'}, {1, 2}),
    ('kto() + dpo()', {'label', 'weight'}, 2),
    ('reverse_kl()', {'score'}, None),
    ('kl_penalty()', set(), None),
    ('sampo()', {'label', 'prompt', 'prompt_length', 'response', 'response_length'}, 2),
    ('2 * (odpo() - sft()) / 3', {'label', 'score'}, 2),
    ('wpo_weighted(odpo())', {'label', 'score'}, 2),
    ('tis(sft())', {'label', 'response_length', 'behaviour_token_logp'}, None),
    ('importance_weighted(sft())', {'label', 'response_length', 'behaviour_logp', 'behaviour_token_logp'}, None),
  ],
)
def test_reads_and_responses_are_declared(expression, reads, responses):
  objective = objectives.parse(expression)
  assert (objective.reads, objective.responses) == (reads, responses)


def test_a_sum_of_objectives_for_different_numbers_of_responses_is_refused_by_name():
  single = dataclasses.replace(objectives.sft(), responses=1, name='single()')
  with pytest.raises(ValueError, match=r'dpo and single cannot be added: dpo is defined for N = 2 .* single for N = 1'):
    objectives.dpo() + objectives.sft() + single


@pytest.mark.parametrize('name', WRAPPERS)
def test_a_wrapper_keeps_all_that_the_objective_inside_declares(name):
  inside = objectives.bco(momentum=0.5)
  wrapped = objectives.OBJECTIVES[name](inside)
  assert wrapped.needs >= inside.needs
  assert wrapped.reads >= inside.reads
  assert (wrapped.responses, wrapped.couples_rows) == (inside.responses, True)
  assert dict(wrapped.memory.initial) == dict(inside.memory.initial) != {}


@pytest.mark.parametrize(
  ('expression', 'field'),
  [
    *((expression, 'on_policy') for expression in ('rlhf()', 'reverse_kl(beta=0.0)', 'kl_penalty()')),
    ('rlhf(risk=entropic(-0.5))', 'on_policy'),
    ('alpha_dpo_released(statistics_rows=2)', 'ordered'),
  ],
)
def test_a_marker_survives_sums_multiples_and_wrappers(expression, field):
  for form in (
    '{}',
    'pmle() + {}',
    '{} - pmle()',
    '-2 * {} / 3',
    'schedule(1.0, 0.0, 5) * {}',
    '0.5 * (pmle() + 2 * {})',
    'importance_weighted({})',
    'wpo_weighted(pmle() + {})',
    'tis({})',
  ):
    assert getattr(objectives.parse(form.format(expression)), field) is True
  for name, build in objectives.OBJECTIVES.items():
    built = build(objectives.dpo()) if name in WRAPPERS else build()
    assert built.on_policy is (name in ('rlhf', 'reverse_kl', 'kl_penalty'))
    assert built.ordered is False


def test_an_order_that_matters_is_a_coupling():
  with pytest.raises(ValueError, match=r'mine: .* order of prompts must declare couples_rows=True'):
    dataclasses.replace(objectives.dpo(), ordered=True, name='mine')


def test_a_field_is_optional_only_if_every_part_does_without_it():
  weighted = objectives.importance_weighted(objectives.dpo())
  assert weighted.optional == {'behaviour_logp', 'behaviour_token_logp'}
  strict = dataclasses.replace(objectives.sft(), reads=frozenset({'behaviour_logp'}), name='strict()')
  assert (weighted + strict).optional == (strict + weighted).optional == {'behaviour_token_logp'}


@pytest.mark.parametrize(
  ('expression', 'fields', 'responses', 'message'),
  [
    ('dpo()', (), 3, 'dpo compares two responses to a prompt, but the data has 3'),
    ('sft() + 2 * dpo()', (), 1, 'dpo compares two responses to a prompt, but the data has one'),
    ('kto()', (), 3, 'kto needs N = 1 or 2 responses to a prompt, but the data has 3'),
    ('dpo() + odpo()', (), 2, 'odpo reads `score`, a reward for each response, but the data has none'),
    ('wpo_weighted(mmpo())', ('behaviour_logp',), 2, 'wpo_weighted reads `score`'),
  ],
)
def test_data_that_do_not_fit_are_refused_by_the_name_of_the_part(expression, fields, responses, message):
  with pytest.raises(ValueError, match=message):
    objectives.check_batch(objectives.parse(expression), fields, responses)


@pytest.mark.parametrize(
  ('expression', 'fields', 'responses'),
  [('dpo()', (), 2), ('kto()', (), 1), ('odpo()', ('score',), 2), ('importance_weighted(sft())', (), 5)],
)
def test_data_that_fit_are_accepted(expression, fields, responses):
  objectives.check_batch(objectives.parse(expression), fields, responses)


@pytest.mark.parametrize(
  'name', quick.first(4, ['dpo', 'ra_dpo', 'kto', 'alpha_dpo', 'sft', 'aot', 'dr_dpo', 'beta_dpo', 'mmpo'])
)
def test_coupling_is_found_by_trying(name):
  objective = objectives.OBJECTIVES[name]()
  assert objectives.couples(objective) == objective.couples_rows


def test_coupling_through_the_gradient_alone_is_found():
  def apply(table, batch):
    del batch
    logp = table.mean(stats.logp)[:, 0]
    return Term(jnp.mean(jnp.abs(logp)) * (logp - jax.lax.stop_gradient(logp)), {})

  assert objectives.couples(objectives.Objective(frozenset({stats.logp}), apply))


@pytest.fixture
def registry():
  """Forgets what a test registers."""
  before = dict(objectives.OBJECTIVES)
  yield objectives.OBJECTIVES
  objectives.OBJECTIVES.clear()
  objectives.OBJECTIVES.update(before)


def test_a_factory_is_registered_and_its_name_is_an_expression(registry):
  @objectives.factory
  def mine(beta: float = 0.5):
    return objectives.dpo(beta) + 0.1 * objectives.sft()

  assert registry['mine'] is mine
  objective = objectives.parse('mine(beta=0.2) + 2 * mine()')
  assert objective.name == 'mine(beta=0.2) + 2 * mine(beta=0.5)'
  assert [part.objective.name for part in objective.parts] == ['mine(beta=0.2)', 'mine(beta=0.5)']
  assert mine().parts == ()


def test_a_name_that_is_taken_is_refused_and_both_places_are_named(registry):
  def dpo():
    return objectives.sft()

  places = r'one in .*pairwise\.py:\d+, one in .*declarations_test\.py:\d+'
  with pytest.raises(ValueError, match=f'two objectives are called dpo: {places}. Rename one of them'):
    objectives.factory(dpo)


def test_defining_the_same_function_again_replaces_it(registry):
  def cell(weight):
    def mine():
      return weight * objectives.sft()

    return mine

  objectives.factory(cell(1.0))
  second = objectives.factory(cell(2.0))
  assert registry['mine'] is second
