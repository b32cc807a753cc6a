"""The pages of objectives and risk measures hold every piece of every docstring; a missing piece is an error."""

import inspect
import re

import pytest

from alignjax import objectives, risk
from alignjax.objectives import base, preference
from alignjax.risk import measures
from docs.pages import docstrings, objectives_page, requirements, risk_page, texts
from docs.pages.writing import FOLDER

OVERVIEW = (FOLDER / 'objectives.md').read_text(encoding='utf-8')
FAMILIES = {path.stem: path.read_text(encoding='utf-8') for path in (FOLDER / 'objectives').glob('*.md')}
RISK = (FOLDER / 'risk.md').read_text(encoding='utf-8')
OBJECTIVES = {name: build for name, build in objectives.OBJECTIVES.items() if build.__module__.startswith('alignjax.')}
BUILDS = {**OBJECTIVES, **risk.MEASURES}

WHOLE = """Mine, in one sentence.

  loss = -log sigmoid(beta h),   h = rho(y_w) - rho(y_l)
         where h is the margin

  A caveat of [mine].

  Use it when:
    nothing else helps.

  Args:
    beta: strength, > 0,
      1/nats.

  Returns:
    An objective; [B] nats.

  Raises:
    ValueError: if beta <= 0.

  Defaults:
    beta ours.

  References:
    Nobody et al. 2031, A *title*: with commas, and more, https://example.org/abs/1.
    Someone 2032, The second,
    https://example.org/2.pdf, equation 3.
"""


def factory(docstring, build=objectives.dpo):
  def mine(beta: float = 0.1) -> base.Objective:
    base.require(beta > 0, 'mine', 'beta must be positive', beta)
    return build(beta)

  mine.__doc__ = docstring
  registered = base.factory(mine)
  del base.OBJECTIVES['mine']  # other tests look at all objectives
  return registered


def test_every_name_has_one_section_on_the_page_of_its_module():
  found = [
    (name, family) for family, text in FAMILIES.items() for name in re.findall(r'^## `(\w+)`$', text, re.MULTILINE)
  ]
  assert sorted(found) == sorted((name, build.__module__.rpartition('.')[2]) for name, build in OBJECTIVES.items())
  assert sorted(re.findall(r'^## `(\w+)`$', RISK, re.MULTILINE)) == sorted(risk.MEASURES)
  for name, build in BUILDS.items():
    (link,) = re.findall(r'^- \[Source\]\((.+)\)$', section_of(name), re.MULTILINE)
    assert (
      f'def {name}('
      in (FOLDER / ('risk' if name in risk.MEASURES else 'objectives/x')).parent.joinpath(link).resolve().read_text()
    )
    assert build.__module__.replace('.', '/') in link


@pytest.mark.parametrize(
  'row',
  [
    r'^\| \[`(\w+)`\]\((objectives/\w+\.md)#\1\)[^|]*(?:\|[^|]*){5}\|$',
    r'^\| (?:\\\||[^|])+ \| \[`(\w+)`\]\((objectives/\w+\.md)#\1\) \|$',
  ],
)
def test_both_tables_of_the_overview_have_a_row_for_every_objective(row):
  found = [(name, path) for name, path in re.findall(row, OVERVIEW, re.MULTILINE)]
  assert sorted(found) == sorted(
    (name, f'objectives/{build.__module__.rpartition(".")[2]}.md') for name, build in OBJECTIVES.items()
  )


def test_tables_have_rows_of_one_width():
  for text in (OVERVIEW, RISK, *FAMILIES.values()):
    for table in re.findall(r'(?:^\|.*\n)+', text, re.MULTILINE):
      assert len({len(re.findall(r'(?<!\\)\|', row)) for row in table.splitlines()}) == 1


def section_of(name):
  text = RISK if name in risk.MEASURES else FAMILIES[OBJECTIVES[name].__module__.rpartition('.')[2]]
  return re.search(rf'^## `{name}`$.*?(?=^## |\Z)', text, re.MULTILINE | re.DOTALL)[0]


def test_every_paragraph_of_every_docstring_is_on_the_page():
  for name, build in BUILDS.items():
    text = section_of(name)
    for paragraph in docstrings.paragraphs(build):
      heading, _, content = (
        paragraph.rpartition(':\n') if re.match(r'[A-Z][a-z ]*:\n', paragraph) else ('', '', paragraph)
      )
      if heading in ('', 'Use it when', 'Returns', 'Defaults') and not paragraph.startswith(('loss =', 'value =')):
        assert docstrings.escaped(docstrings.joined(content)) in text, f'{name}: {content}'


def test_every_argument_is_on_the_page_with_its_description_and_default():
  count = 0
  for name, build in BUILDS.items():
    text, parameters = section_of(name), inspect.signature(build).parameters.values()
    entries = re.search(r'^Args:\n(.*?)(?:\n\n|\Z)', inspect.getdoc(build), re.MULTILINE | re.DOTALL)
    described = (
      dict(re.findall(r'^  (\w+): ((?:.+\n?(?:      )?)+?)(?=^  \w|\Z)', entries[1], re.MULTILINE)) if entries else {}
    )
    assert list(described) == [parameter.name for parameter in parameters], name
    for parameter in parameters:
      default = 'required' if parameter.default is parameter.empty else f'`{parameter.default!r}`'
      row = f'| `{parameter.name}` | {default} | {docstrings.escaped(docstrings.joined(described[parameter.name]))} |'
      assert row in text.splitlines(), row
      count += 1
  assert count > 100


def test_every_requirement_and_reference_is_on_the_page():
  for name, build in BUILDS.items():
    text = section_of(name)
    assert all(docstrings.escaped(requirement) in text for requirement in requirements.of(build)), name
    for later in re.findall(r'at trace time, ((?:.|\n)+?)\n\n', inspect.getdoc(build)):
      assert docstrings.escaped(docstrings.joined(later)) in text, name
    urls = re.findall(r'https://\S*[^\s,.]', inspect.getdoc(build))
    assert all(f']({url})' in text for url in urls), name


def test_every_paragraph_about_a_family_is_on_the_page():
  pages = {
    inspect.getmodule(build): FAMILIES[inspect.getmodule(build).__name__.rpartition('.')[2]]
    for build in OBJECTIVES.values()
  }
  assert len(pages) == len(FAMILIES)
  for module, page in {**pages, preference: OVERVIEW, measures: RISK}.items():
    first, *others = docstrings.paragraphs(module)
    for text in others if module in (preference, measures) else [first, *others]:
      if not text.startswith(('  ', '- ')):
        assert docstrings.escaped(docstrings.joined(text)) in page, module.__name__


@pytest.mark.parametrize(
  ('name', 'facts'),
  [
    ('dpo', ['reference: yes', 'batch fields: `label`', 'N = 2', 'couples rows: no', 'memory: no']),
    ('simpo', ['reference: no', 'batch fields: `label`', 'N = 2', 'couples rows: no', 'memory: no']),
    ('sft', ['reference: no', 'batch fields: `label`', 'any N', 'couples rows: no', 'memory: no']),
    ('kto', ['reference: yes', 'batch fields: `label`, `weight`', 'N = 1 or 2', 'couples rows: yes', 'memory: no']),
    ('rebel', ['reference: yes', 'batch fields: `score`', 'N = 2', 'couples rows: no', 'memory: no']),
    (
      'kl_penalty',
      [
        'reference: yes',
        'batch fields: none',
        'any N',
        'couples rows: no',
        'memory: no',
        'responses: the policy’s own',
      ],
    ),
  ],
)
def test_facts_of_well_known_objectives(name, facts):
  (line,) = re.findall(r'^- \*\*Needs\*\* (.+)$', section_of(name), re.MULTILINE)
  assert line.split(' · ')[1:] == facts


def test_optional_fields_and_memory_are_facts():
  optional = 'and if present `behaviour_logp`, `behaviour_token_logp` '
  assert f'batch fields: `label`, `response_length`, {optional}' in section_of('importance_weighted')
  assert ' · couples rows: yes · memory: yes\n' in section_of('beta_dpo')


@pytest.mark.parametrize('composition', texts.COMPOSITIONS, ids=lambda composition: composition.method)
def test_compositions_can_be_read(composition):
  parsed = objectives.parse(composition.expression)
  assert objectives.parse(parsed.name).name == parsed.name
  assert f'`{composition.expression}`' in OVERVIEW


def test_a_section_has_all_pieces():
  lines = objectives_page.section(factory(WHOLE)).splitlines()
  assert lines[0] == '## `mine`'
  assert lines[2] == 'Mine, in one sentence.'
  assert lines[4:] == [
    '$$',
    r'\mathrm{loss} = - \log \sigma(\beta h)',
    '$$',
    '',
    '$$',
    r'h = \rho(y_{w}) - \rho(y_{l})',
    '$$',
    '',
    'where $h$ is the margin',
    '',
    r'A caveat of \[mine\].',
    '',
    '**Use it when** nothing else helps.',
    '',
    '| argument | default | description |',
    '|---|---|---|',
    '| `beta` | `0.1` | strength, > 0, 1/nats. |',
    '',
    '**Defaults:** beta ours.',
    '',
    '- **Needs** `logp`, `reference_logp` · reference: yes · batch fields: `label` · N = 2 · couples rows: no'
    ' · memory: no',
    r'- **Returns** An objective; \[B\] nats.',
    '- **Requirements**, or else a `ValueError`: beta must be positive.',
    '- [A *title*: with commas, and more](https://example.org/abs/1), Nobody et al. 2031.',
    '- [The second](https://example.org/2.pdf), Someone 2032, equation 3.',
    '- [Source](../../tests/docs/objectives_page_test.py)',
  ]


@pytest.mark.parametrize(
  ('old', 'new', 'missing'),
  [
    (WHOLE, '', 'full stop'),
    ('Mine, in one sentence.', 'Mine, in one\n  sentence.', 'full stop'),
    ('Mine, in one sentence.', 'Mine, without end', 'full stop'),
    ('loss = -log', 'It is -log', 'loss ='),
    ('(beta h)', '(beta h', "'\\)' is missing"),
    ('Use it when:', 'Use it:', 'unknown section "Use it:"'),
    ('  Use it when:\n    nothing else helps.\n\n', '', 'no section "Use it when:"'),
    ('beta: strength', 'alpha: strength', 'describes alpha; the arguments are beta'),
    ('Args:', 'Returns:', 'describes none; the arguments are beta'),
    ('    beta: strength, > 0,\n      1/nats.', '    The strength.', 'describes The strength'),
    ('  Raises:\n    ValueError: if beta <= 0.\n\n', '', 'requirements in its source differ'),
    ('beta ours.\n', 'beta ours.\n\n  A late caveat.\n', 'A late caveat'),
    ('Defaults:', 'Remarks:', 'Remarks'),
    ('References:', 'Papers:', 'Papers'),
    ('https://example.org/abs/1', 'in a book', 'https'),
    ('et al. 2031', 'et al.', 'year'),
  ],
)
def test_a_gap_in_a_docstring_is_an_error_that_names_the_objective(old, new, missing):
  with pytest.raises(docstrings.DocstringError, match=f'^mine: .*{missing}'):
    objectives_page.section(factory(WHOLE.replace(old, new)))


@pytest.mark.parametrize(('old', 'missing'), [('value =', 'value ='), ('gradient in', 'gradient in the values is')])
def test_a_gap_in_a_risk_measure_is_an_error_that_names_it(old, missing):
  def mine():
    """Set below."""

  mine.__doc__ = risk.expectation.__doc__
  risk_page.section(mine)
  mine.__doc__ = mine.__doc__.replace(old, 'nothing')
  with pytest.raises(docstrings.DocstringError, match=f'^mine: .*{missing}'):
    risk_page.section(mine)


def test_formulas_are_no_markdown():
  assert docstrings.escaped('pi*(y|x) in [0, 1], a < b, `p*[q]` and a *word*') == (
    r'pi\*(y\|x) in \[0, 1\], a \< b, `p*[q]` and a *word*'
  )
