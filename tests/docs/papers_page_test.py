"""docs/papers.md: complete, and its links lead somewhere."""

import re

from alignjax import objectives
from docs.pages.writing import FOLDER

TEXT = (FOLDER / 'papers.md').read_text(encoding='utf-8')


def test_every_objective_has_its_paper_and_every_file_exists():
  assert set(re.findall(r'objectives/\w+\.md#(\w+)', TEXT)) == set(objectives.OBJECTIVES)
  for link in re.findall(r'\]\((\.\./[^)]+)\)', TEXT):
    assert (FOLDER / link).exists(), link


def test_a_variant_stands_with_its_objective():
  (row,) = (line for line in TEXT.splitlines() if '[`importance_weighted`]' in line)
  assert '`is_dpo`' in row
  assert '`r_dpo`' not in row
