"""The requirements on the page are those that the factories enforce."""

import inspect

import pytest

from alignjax import objectives, risk
from alignjax.objectives import base
from docs.pages import requirements

WRONG = {float: -1e9, int: 99, str: 'wrong', type(None): -1.0}
LIMIT = 1


@pytest.mark.parametrize(
  ('build', 'expected'),
  [
    (objectives.dpo, ['beta must be positive', 'label_smoothing must be in [0, 0.5)']),
    (objectives.sft, []),
    # Its own, and that of a function that all calibrated objectives share.
    (objectives.cal_dpo, ['weight must not be negative', 'beta must be positive']),
    # A constant in the message.
    (objectives.beta_dpo, ['beta must be at least 0.001', 'alpha must not be negative', 'ratio must be in (0, 1]']),
    # Those of two shared functions.
    (
      objectives.tdpo,
      [
        'discount must be in [0, 1]',
        'off_path must be in [0, 1]',
        'beta must be positive',
        'alpha must not be negative',
        'variant must be 1 or 2',
      ],
    ),
    # Its own requirement goes before the weaker one of the shared function.
    (objectives.kl_penalty, ['beta must be positive']),
    (risk.cvar, ['level must be in (0, 1]', "tail must be 'upper' or 'lower'"]),
    (risk.entropic, ['kappa must be finite']),
  ],
)
def test_requirements_of_well_known_factories(build, expected):
  assert requirements.of(build) == expected


def test_every_error_about_an_argument_is_a_requirement():
  raised = 0
  for name, build in objectives.OBJECTIVES.items():
    required, parameters = requirements.of(build), inspect.signature(build).parameters.values()
    first = [objectives.dpo()] if 'objective' in inspect.signature(build).parameters else []
    for parameter in parameters:
      message = _message(build, *first, **{parameter.name: WRONG.get(type(parameter.default), parameter.default)})
      if parameter.default is not parameter.empty and message:
        raised += 1
        assert any(f'{name}: {text}, got' in message for text in required), message
  assert raised > len(objectives.OBJECTIVES)


def _message(build, *args, **kwargs):
  try:
    build(*args, **kwargs)
  except ValueError as error:
    return str(error)
  except TypeError:  # the argument that is given already
    return ''
  return ''


def test_requirements_in_functions_of_the_same_file_are_found():
  assert requirements.of(_mine) == [f'beta must be less than {LIMIT}', 'gamma must be positive']


def _mine(beta=0.1, gamma=0.1):
  base.require(beta < LIMIT, 'mine', f'beta must be less than {LIMIT}', beta)
  _shared(gamma)


def _shared(gamma):
  base.require(gamma > 0, 'mine', 'gamma must be positive', gamma)
