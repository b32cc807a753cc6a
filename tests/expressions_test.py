"""Expressions name objectives, and nothing that is not an objective gets through."""

import re

import hypothesis
from hypothesis import strategies as st
import pytest

from alignjax import expressions, objectives, risk

parse = objectives.parse


@pytest.mark.parametrize(
  ('text', 'name'),
  [
    ('dpo()', 'dpo(beta=0.1, label_smoothing=0.0)'),
    ('dpo(0.3)', 'dpo(beta=0.3, label_smoothing=0.0)'),
    ('dpo(beta=1, label_smoothing=0.25)', 'dpo(beta=1, label_smoothing=0.25)'),
    ('  sft( )\n', 'sft(mean=True)'),
    ('0.1 * sft()', '0.1 * sft(mean=True)'),
    ('sft() * 2', '2 * sft(mean=True)'),
    ('-1 * sft()', '-1 * sft(mean=True)'),
    ('-sft()', '-1 * sft(mean=True)'),
    ('--sft()', 'sft(mean=True)'),
    ('sft() / 2', '0.5 * sft(mean=True)'),
    ('sft() - 2 * hinge()', 'sft(mean=True) - 2 * hinge(beta=0.1)'),
    ('sft() - (hinge() - 0.5 * sft())', 'sft(mean=True) - hinge(beta=0.1) + 0.5 * sft(mean=True)'),
    ('sft() - 2 * (hinge() + sft())', 'sft(mean=True) - 2 * (hinge(beta=0.1) + sft(mean=True))'),
    ('2 * (3 * sft())', '2 * (3 * sft(mean=True))'),
    ('schedule(1, 0, steps=5) * sft()', 'schedule(start=1, end=0, steps=5) * sft(mean=True)'),
    (
      'sft() - schedule(1.0, 0.5, 5) * sft()',
      'sft(mean=True) + schedule(start=-1.0, end=-0.5, steps=5) * sft(mean=True)',
    ),
    ('dpo(beta=1e-2) + 0.5 * sft()', 'dpo(beta=0.01, label_smoothing=0.0) + 0.5 * sft(mean=True)'),
    ('2 * (dpo() + sft())', '2 * (dpo(beta=0.1, label_smoothing=0.0) + sft(mean=True))'),
    ('dpo()\n + sft()\n + hinge()', None),
  ],
)
def test_expressions_that_name_an_objective(text, name):
  objective = parse(text)
  assert isinstance(objective, objectives.Objective)
  if name is not None:
    assert objective.name == name
  assert parse(objective.name).name == objective.name


@pytest.mark.parametrize('name', sorted(objectives.OBJECTIVES))
def test_every_objective_is_known_and_its_name_is_an_expression(name):
  inner = 'dpo()' if name.endswith('_weighted') or name == 'tis' else ''
  objective = parse(f'{name}({inner})')
  assert parse(objective.name).name == objective.name
  composed = parse(f'0.5 * ({name}({inner}) + sft()) + 2 * {name}({inner})')
  assert parse(composed.name).name == composed.name


def caret_of(text: str, error: expressions.ExpressionError) -> str:
  """What the caret of a message points at."""
  lines = str(error).splitlines()
  row = next(i for i, line in enumerate(lines) if line.strip().strip('^') == '' and '^' in line)
  shown, caret = lines[row - 1], lines[row]
  assert shown.strip() == ' '.join(text.split())
  return shown[caret.index('^') : caret.rindex('^') + 1]


@pytest.mark.parametrize(
  ('text', 'points_at', 'says'),
  [
    (
      'dop()',
      'dop',
      "unknown name 'dop'; did you mean dpop(beta=0.3, penalty=50.0) or dpo(beta=0.1, label_smoothing=0.0)?",
    ),
    ('cvr(0.9)', 'cvr', "unknown name 'cvr'; did you mean cvar(level, tail='upper')?"),
    ('cvar(0.9)', 'cvar(0.9)', r'not an objective'),
    ('ra_dpo(risk=cvar(0))', 'cvar(0)', 'cvar: level must be in (0, 1], got 0'),
    ('ra_dpo(risk=dpo())', 'ra_dpo(risk=dpo())', 'ra_dpo: risk must be a risk measure'),
    ('dpo(beta=0.1) + 0.1 * stf()', 'stf', 'did you mean sft(mean=True)?'),
    (
      'dpo(bta=0.1)',
      'bta=0.1',
      "no argument 'bta'; did you mean 'beta'? The signature is dpo(beta=0.1, label_smoothing=0.0)",
    ),
    ('sft(x=1)', 'x=1', "sft has no argument 'x'. The signature is sft(mean=True)"),
    ('dpo(1, 2, 3)', 'dpo(1, 2, 3)', 'too many positional arguments'),
    ('dpo(beta=0.1, beta=0.5)', 'beta=0.1', "dpo has the argument 'beta' more than once: keep one of them"),
    ("dpo(beta='x')", "dpo(beta='x')", 'an argument has the wrong type'),
    ('dpo(0.1, beta=0.1)', 'dpo(0.1, beta=0.1)', "multiple values for argument 'beta'"),
    ('dpo(beta=-1)', 'dpo(beta=-1)', 'beta'),
    ('dpo', 'dpo', 'dpo must be called: dpo(beta=0.1, label_smoothing=0.0)'),
    ("'é' + dop()", 'dop', "unknown name 'dop'"),
    ('é * sft()', 'é', "unknown name 'é'"),
    ('0.5', '0.5', 'this is 0.5, not an objective'),
    ("'dpo()'", "'dpo()'", 'not an objective'),
    ('dpo() @ sft()', 'dpo() @ sft()', 'combine objectives with + and -, and scale them with * and /'),
    ('2 / dpo()', '2 / dpo()', '/ divides an objective by a number, got 2 and an objective'),
    ('dpo() / 0', 'dpo() / 0', 'an objective cannot be divided by 0'),
    ('dpo() - 1', '1', '- joins two objectives, but this is 1'),
    ('1 - dpo()', '1', '- joins two objectives, but this is 1'),
    ('dpo() / schedule(1, 0, 5)', 'dpo() / schedule(1, 0, 5)', '/ divides an objective by a number'),
    ('schedule(1, 0, 5)', 'schedule(1, 0, 5)', 'not an objective'),
    ('schedule(1, 0, 0) * dpo()', 'schedule(1, 0, 0)', 'schedule: steps must be a whole number'),
    ('dpo() + 1', '1', '+ joins two objectives, but this is 1'),
    ('dpo() * sft()', 'dpo() * sft()', '* scales an objective by a number'),
    ('True * sft()', 'True * sft()', '* scales an objective by a number'),
    ("-'x' * sft()", "'x'", 'only a number can be negated'),
    ('1e999 * sft()', '1e999', 'too large'),
    ('dpo(beta=1' + '0' * 400 + ')', '1' + '0' * 400, 'too large'),
    ('dpo(beta=1j)', '1j', 'a literal must be'),
    ('dpo(', '(', 'was never closed'),
    ('dpo()) + sft()', ')', "unmatched ')'"),
    ('', '', 'the expression is empty'),
  ],
)
def test_errors_point_at_the_place_and_list_what_is_known(text, points_at, says):
  with pytest.raises(expressions.ExpressionError) as caught:
    parse(text)
  message = str(caught.value)
  assert says in message
  listed = set(re.findall(r'\w+', message[message.index('Known objectives: ') :]))
  assert {*objectives.OBJECTIVES, *risk.MEASURES} <= listed
  assert caret_of(text, caught.value) == points_at


@pytest.mark.parametrize(
  'text',
  [
    '__import__("os").system("true")',
    'objectives.dpo()',
    'dpo().__class__',
    'dpo.__globals__',
    'dpo(*[1])',
    'dpo(**{"beta": 1})',
    'dpo(beta=[0.1])',
    'dpo(beta=(lambda: 1)())',
    'dpo(beta=open("/etc/passwd"))',
    'dpo(beta=0.1 if True else 0.2)',
    'dpo(beta=f"{1}")',
    'dpo(beta=b"x")',
    'dpo(beta=...)',
    'dpo(beta=9**9**9)',
    'dpo(beta=(x := 1))',
    '[dpo() for _ in (1,)]',
    'dpo() if 1 else sft()',
    'dpo() and sft()',
    'dpo(), sft()',
    'dpo()[0]',
    'not dpo()',
    '~1 * sft()',
    'await dpo()',
    'import os',
    'x = dpo()',
    'dpo();sft()',
    'dpo() #',
    'sft\x00()',
    '\ud800',
    "dpo(beta='\\d')",
    '1if 1else sft()',
    '(' * 3000,
    '-' * 3000 + '1 * sft()',
    'sft()' + ' + sft()' * 5000,
    '(' * 150 + 'sft()' + ')' * 150 + '!',
    'dpo(beta=' * 300,
  ],
)
def test_hostile_input_is_refused_by_the_one_kind_of_error(text):
  if text == 'dpo() #':  # a comment says nothing, and does nothing
    assert parse(text).name == parse('dpo()').name
    return
  with pytest.raises(expressions.ExpressionError):
    parse(text)


def test_doubtful_literals_are_refused_rather_than_guessed():
  with pytest.raises(expressions.ExpressionError, match='invalid escape sequence'):
    parse("dpo(beta='\\d')")


@pytest.mark.parametrize('text', [None, 1, b'dpo()', ['dpo()']])
def test_only_text_is_read(text):
  with pytest.raises(expressions.ExpressionError, match='give an objective as text'):
    parse(text)


_PIECES = [
  'dpo',
  'sft',
  '(',
  ')',
  '+',
  '*',
  '/',
  'schedule',
  ',',
  '=',
  'beta',
  '0.1',
  '-',
  ' ',
  '"',
  '.',
  '[',
  ']',
  'lambda',
  ':',
  '\n',
]


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(_PIECES), max_size=25).map(''.join)))
def test_any_text_is_an_objective_or_an_expression_error(text):
  try:
    objective = parse(text)
  except expressions.ExpressionError:
    return
  assert isinstance(objective, objectives.Objective)


def test_long_sums_that_a_person_could_write_are_read():
  assert isinstance(parse(' + '.join(['0.5 * sft()'] * 100)), objectives.Objective)
