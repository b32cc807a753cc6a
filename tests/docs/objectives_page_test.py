"""docs/objectives.md says what the docstrings say, its links lead somewhere, and a docstring's gap has a name."""

import pathlib
import re

from absl.testing import flagsaver
import pytest

from alignjax import objectives, risk
from alignjax.objectives import base
from docs.pages import docstrings, objectives_page, texts

PAGE = pathlib.Path(objectives_page.PAGE)
TEXT = PAGE.read_text(encoding='utf-8')
NAMES = [*objectives.OBJECTIVES, *risk.MEASURES]

WHOLE = """Mine, in one sentence.

  loss = -log sigmoid(beta h)

  Defaults:
    beta ours.

  References:
    Nobody et al. 2031, A *title*: with commas, and more, https://example.org/abs/1.
    Someone 2032, The second,
    https://example.org/2.pdf, equation 3.
"""


def factory(docstring, build=objectives.dpo):
  def mine(beta: float = 0.1) -> base.Objective:
    return build(beta)

  mine.__doc__ = docstring
  return base.factory(mine)


def anchors():
  return {re.sub(r'[^\w -]', '', title).lower().replace(' ', '-') for title in headings()}


def headings():
  lines = re.findall(r'^#+ (.+)$', re.sub(r'```.*?```', '', TEXT, flags=re.DOTALL), re.MULTILINE)
  return [re.sub(r'\[(.+)\]\(.+\)', r'\1', line).strip('`') for line in lines]


def test_the_page_is_up_to_date():
  assert objectives_page.page() == TEXT, 'run python -m docs.pages.objectives_page'


def test_check_passes_on_the_page_and_tells_how_to_mend_another(tmp_path, monkeypatch):
  monkeypatch.setattr(objectives_page, 'page', lambda: TEXT)
  with flagsaver.as_parsed(check='true'):
    objectives_page.main([''])
    monkeypatch.setattr(objectives_page, 'PAGE', tmp_path / 'objectives.md')
    for content in (None, TEXT.replace('beta', 'gamma')):
      if content is not None:
        objectives_page.PAGE.write_text(content, encoding='utf-8')
      with pytest.raises(SystemExit, match=r'python -m docs\.pages\.objectives_page'):
        objectives_page.main([''])
  assert objectives_page.PAGE.read_text(encoding='utf-8') == TEXT.replace('beta', 'gamma')
  with flagsaver.as_parsed(check='false'):
    objectives_page.main([''])
  assert objectives_page.PAGE.read_text(encoding='utf-8') == TEXT


def test_every_name_has_one_section_and_links_to_its_file():
  sections = re.findall(r'^### \[`(\w+)`\]\((.+)\)$', TEXT, re.MULTILINE)
  assert sorted(name for name, _ in sections) == sorted(NAMES)
  for name, link in sections:
    assert f'def {name}(' in (PAGE.parent / link).read_text(encoding='utf-8')


def test_links_lead_somewhere():
  links = re.findall(r'\]\((?!https://)([^)]+)\)', TEXT)
  local = {link for link in links if not link.startswith('#')}
  assert [link for link in local if not (PAGE.parent / link).exists()] == []
  assert {link[1:] for link in links if link.startswith('#')} <= anchors()
  assert len(set(headings())) == len(headings())  # a second heading of one name would have another anchor


def test_the_overview_has_a_row_for_every_objective():
  rows = re.findall(r'^\| \[`(\w+)`\]\(#\1\)[^|]*((?:\|[^|]*){5})\|$', TEXT, re.MULTILINE)
  assert sorted(name for name, _ in rows) == sorted(objectives.OBJECTIVES)


def test_tables_have_rows_of_one_width():
  for table in re.findall(r'(?:^\|.*\n)+', TEXT, re.MULTILINE):
    assert len({len(re.findall(r'(?<!\\)\|', row)) for row in table.splitlines()}) == 1


@pytest.mark.parametrize(
  ('name', 'facts'),
  [
    ('dpo', ['reference: yes', 'couples rows: no', 'N = 2']),
    ('simpo', ['reference: no', 'couples rows: no', 'N = 2']),
    ('sft', ['reference: no', 'couples rows: no', 'any N']),
    ('kto', ['reference: yes', 'couples rows: yes', 'N = 1 or 2']),
    ('rebel', ['reference: yes', 'couples rows: no', 'N = 2', 'reads scores']),
    ('beta_dpo', ['reference: yes', 'couples rows: yes', 'N = 2', 'remembers batches']),
  ],
)
def test_facts_of_well_known_objectives(name, facts):
  (line,) = re.findall(r'^- \*\*Needs\*\* (.+)$', objectives_page.section(objectives.OBJECTIVES[name]), re.MULTILINE)
  assert line.split(' · ')[1:] == facts


@pytest.mark.parametrize('composition', texts.COMPOSITIONS, ids=lambda composition: composition.method)
def test_compositions_can_be_read(composition):
  parsed = objectives.parse(composition.expression)
  assert objectives.parse(parsed.name).name == parsed.name
  assert f'`{composition.expression}`' in TEXT


def test_a_section_has_all_pieces():
  lines = objectives_page.section(factory(WHOLE)).splitlines()
  assert lines[0].startswith('### [`mine`]')
  assert lines[2] == 'Mine, in one sentence.'
  assert lines[4:7] == ['```text', 'loss = -log sigmoid(beta h)', '```']
  assert lines[8:] == [
    '- `mine(beta=0.1)`: beta ours.',
    '- **Needs** `logp`, `reference_logp` · reference: yes · couples rows: no · N = 2',
    '- [A *title*: with commas, and more](https://example.org/abs/1), Nobody et al. 2031.',
    '- [The second](https://example.org/2.pdf), Someone 2032, equation 3.',
  ]


@pytest.mark.parametrize(
  ('old', 'new', 'missing'),
  [
    (WHOLE, '', 'full stop'),
    ('Mine, in one sentence.', 'Mine, in one\n  sentence.', 'full stop'),
    ('Mine, in one sentence.', 'Mine, without end', 'full stop'),
    ('loss = -log', 'It is -log', 'loss ='),
    ('Defaults:', 'Remarks:', 'Defaults'),
    ('References:', 'Papers:', 'References'),
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
  objectives_page.measure_section(mine)
  mine.__doc__ = mine.__doc__.replace(old, 'nothing')
  with pytest.raises(docstrings.DocstringError, match=f'^mine: .*{missing}'):
    objectives_page.measure_section(mine)


def test_formulas_are_no_markdown():
  assert docstrings.escaped('pi*(y|x) in [0, 1], a < b, `p*[q]` and a *word*') == (
    r'pi\*(y\|x) in \[0, 1\], a \< b, `p*[q]` and a *word*'
  )
