"""The contract of `alignjax.testing`, which every exported objective keeps, whatever it computes.

An objective that is registered needs a case in `tests/oracles`, with its value at policy == reference if that is
documented; all properties are then checked for it.
"""

import functools
import inspect
import math
import operator
import re

import jax
import numpy as np
import pytest

from alignjax import objectives, stats, testing
from alignjax.testing import checks
from tests import quick
from tests.oracles import cases

COUPLED = [case for case in cases.CASES if objectives.parse(case.expression).couples_rows]


def declared(case):
  """What a coupled objective declares of itself, with the number of responses."""
  built = objectives.parse(case.expression)
  return built.label, built.ordered, bool(built.memory.initial), case.responses


# The other cases run with --slow: `oracle_test` compares the loss and the gradient of every case with its equation.
FEWER = list(dict.fromkeys([*cases.FIRST, *{declared(case): case for case in reversed(COUPLED)}.values()]))
UNCOUPLED = [case for case in FEWER if case not in COUPLED]
IN_ONE_PROGRAM = (checks.check_coupling, checks.check_jit)  # many objectives are compiled together, below
# These evaluate or differentiate an objective again, which is costly to compile.
COSTLY = [
  checks.check_padding,
  checks.check_permutation,
  checks.check_deletion,
  checks.check_reference_gradient,
  checks.check_metric_gradient,
  checks.check_extremes,
  checks.check_vmap,
  checks.check_algebra,
]
EACH = [check for check in testing.PROPERTIES if check not in (*IN_ONE_PROGRAM, *COSTLY)]


def kind_of(case):
  """Whether an objective remembers batches, reads their order, or has one response; these couple in different ways."""
  _, ordered, remembers, responses = declared(case)
  return ordered, remembers, responses


# The costly checks run for one objective of each module, and for one of each kind of coupling; others with --slow.
SOME = [
  *cases.FIRST_OF_MODULES,
  *{kind_of(case): case for case in reversed(FEWER) if case in COUPLED}.values(),
]


def over_cases(quick):
  return pytest.mark.parametrize(
    'case',
    [pytest.param(case, marks=() if case in quick else pytest.mark.slow) for case in cases.CASES],
    ids=[f'{case.expression}-N{case.responses}' for case in cases.CASES],
    indirect=True,
    scope='module',
  )


@pytest.fixture(scope='module')
def case(request):
  known = request.param
  objective = objectives.parse(known.expression)
  return known, testing.Setting.of(objective, known.responses)


def test_every_exported_objective_has_a_case():
  tested = ' '.join(case.expression for case in cases.CASES)
  assert [name for name in objectives.OBJECTIVES if not re.search(rf'\b{name}\(', tested)] == []
  assert set(objectives.OBJECTIVES) <= set(objectives.__all__)


@pytest.mark.parametrize('check', EACH, ids=lambda check: check.__name__.removeprefix('check_'))
@over_cases(FEWER)
def test_contract(case, check):
  check(case[1])


@pytest.mark.parametrize('check', COSTLY, ids=lambda check: check.__name__.removeprefix('check_'))
@over_cases(SOME)
def test_contract_of_gradients_and_rows(case, check):
  check(case[1])


@over_cases(FEWER)
def test_documented_value_at_the_reference(case):
  known, setting = case
  if known.at_reference is not None:
    testing.check_value_at_reference(setting, known.at_reference)


@over_cases(FEWER)
def test_missing_reference_is_named(case):
  _, setting = case
  inputs = (setting.objective.needs, setting.policy, None, setting.batch)
  if any(stat.reference for stat in setting.objective.needs):
    with pytest.raises(ValueError, match='read the reference'):
      stats.from_logits(*inputs)
  else:
    assert np.all(np.isfinite(setting.objective.apply(stats.from_logits(*inputs), setting.batch).loss))


@pytest.mark.slow  # `check_vmap` finds a coupling of the losses of each objective
def test_an_undeclared_coupling_is_not_there():
  """In a sum of all objectives that do not couple rows; `check_vmap` looks at the losses of each."""
  parts = [objectives.parse(case.expression) for case in cases.FIRST if case.responses == 2 and case not in COUPLED]
  checks.check_coupling(testing.Setting.of(functools.reduce(operator.add, parts), 2))


# Pairs, which are most of them, run with --slow: the tests of the step and of `fit` compile some.
@pytest.mark.parametrize('responses', [1, *map(quick.slow, sorted({case.responses for case in FEWER} - {1}))])
def test_eager_and_jit_agree(responses):
  agree(jax.jit, [known for known in FEWER if known.responses == responses], lambda x: x)


@pytest.mark.slow  # `check_vmap` sees each prompt alone, too
@pytest.mark.parametrize('responses', sorted({case.responses for case in UNCOUPLED}))
def test_eager_and_pmap_agree(responses):
  """With one device per prompt, so only for objectives that do not couple rows."""
  agree(jax.pmap, [known for known in UNCOUPLED if known.responses == responses], lambda x: x[:, None])


def agree(transform, known, rows):
  """Compiles the losses of many objectives as one program, and compares each with its eager loss."""
  settings = [testing.Setting.of(objectives.parse(case.expression), case.responses) for case in known]

  def losses(inputs):
    return [setting.objective.apply(*of).loss for setting, of in zip(settings, inputs, strict=True)]

  found = transform(losses)(jax.tree.map(rows, [(setting.table, setting.batch) for setting in settings]))
  for setting, loss in zip(settings, found, strict=True):
    np.testing.assert_allclose(loss.ravel(), setting.term.loss, rtol=1e-5, atol=1e-6, err_msg=setting.objective.name)


def hyper_parameters():
  for name, build in objectives.OBJECTIVES.items():
    for parameter in inspect.signature(build).parameters.values():
      if isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool):
        yield pytest.param(name, parameter.name, id=f'{name}({parameter.name}=nan)')


@pytest.mark.parametrize(('name', 'parameter'), list(hyper_parameters()))
def test_a_hyper_parameter_that_is_no_number_is_refused_by_name(name, parameter):
  build = objectives.OBJECTIVES[name]
  inner = [objectives.dpo()] if next(iter(inspect.signature(build).parameters)) == 'objective' else []
  with pytest.raises(ValueError, match=rf'{name}: '):
    build(*inner, **{parameter: math.nan})
