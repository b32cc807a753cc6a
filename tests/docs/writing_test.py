"""The generated pages are up to date, and `python -m docs.pages` writes and checks them."""

import re

from absl.testing import flagsaver
import pytest

from alignjax.data.reading import sources
from docs.pages import findings_page, sample_rows, writing


@pytest.fixture(name='wanted', scope='module')
def generate():
  return writing.pages()


def test_the_pages_are_up_to_date(wanted):
  assert writing.outdated(writing.FOLDER, wanted) == [], 'run python -m docs.pages'


def test_check_names_what_is_outdated_and_writing_mends_it(tmp_path, monkeypatch):
  wanted = {'a.md': 'one', 'objectives/b.md': 'two'}
  monkeypatch.setattr(writing, 'pages', lambda: wanted)
  monkeypatch.setattr(writing, 'FOLDER', tmp_path)
  (tmp_path / 'a.md').write_text('another')
  (tmp_path / 'hand.md').write_text('by hand')
  (tmp_path / 'reference').mkdir()
  (tmp_path / 'reference' / 'old.md').write_text('left over')
  with flagsaver.as_parsed(check='true'):
    with pytest.raises(
      SystemExit, match=r'docs/a\.md, docs/objectives/b\.md, docs/reference/old\.md; run python -m docs'
    ):
      writing.main([''])
    assert (tmp_path / 'a.md').read_text() == 'another'
  with flagsaver.as_parsed(check='false'):
    writing.main([''])
  found = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob('*.md')}
  assert found == {**wanted, 'hand.md': 'by hand'}
  with flagsaver.as_parsed(check='true'):
    writing.main([''])


def test_every_form_has_a_sample_row():
  assert set(sample_rows.ROWS) == set(sources.FORMS)


def test_every_finding_that_the_doctor_names_is_on_the_page():
  page = (writing.FOLDER / 'reference' / 'findings.md').read_text(encoding='utf-8')
  listed = re.findall(r'^\| `(\w+)` \|', page, re.MULTILINE)
  doctor = writing.FOLDER.parent / 'alignjax' / 'doctor'
  named = [
    name for path in doctor.glob('*.py') for name in re.findall(r"(?:Finding|Symptom)\(\s*'(\w+)'", path.read_text())
  ]
  assert len(named) > 40
  assert sorted(listed) == sorted(set(named))
  rows = [re.split(r' (?<!\\)\| ', line.strip('| ')) for line in page.splitlines() if line.startswith('| `')]
  assert all(len(row) == 4 and all(cell.strip(' …') for cell in row) for row in rows)


def test_a_finding_is_read_from_the_source_where_it_is_reported():
  source = """
def check(data):
  seen, advice = 1, 2
  seen = f'{data.count} rows are odd'
  if data:
    advice = 'Remove them'
    yield findings.Finding('odd', findings.ERROR, seen, advice)
  else:
    advice = 'Keep them' if data.fine else 'Count them'
    yield findings.Finding('even', findings.WARNING if data.many else findings.NOTE, seen, advice)
  yield from shares.found(Symptom('long', 'are long', 'Cut ' + 'them', shares.SOME_IS_WARNING), data, data)
"""
  assert findings_page.entries(source) == [
    ('odd', 'error', '… rows are odd', 'Remove them'),
    ('even', 'warning or note', '… rows are odd', 'Keep them / Count them'),
    ('long', 'note, warning above 5%, error above 50%', '… are long', 'Cut them'),
  ]
