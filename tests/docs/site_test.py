"""How the site is staged and checked. Building it takes minutes, so only a slow test does that."""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest

from alignjax import objectives
from docs.site import api, checking, notebooks, staging, sweeps

INDEX = (staging.ROOT / 'docs' / 'index.md').read_text(encoding='utf-8')
PAGES = {
  'docs/a.md': 'a.md',
  'docs/objectives/b.md': 'objectives/b.md',
  'experiments/notebooks/n.md': 'notebooks/n.ipynb',
  'launch/README.md': 'launch.md',
}


@pytest.fixture(name='root')
def make_repository(tmp_path):
  for name in (*PAGES, 'README.md', 'alignjax/dpo.py', 'docs/_static/x.svg'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  return tmp_path


@pytest.mark.parametrize(
  ('source', 'link', 'expected'),
  [
    ('docs/a.md', 'objectives/b.md#dpo', 'objectives/b.md#dpo'),
    ('docs/a.md', '../experiments/notebooks/n.md', 'notebooks/n.ipynb'),
    ('docs/a.md', '../launch/README.md#plan', 'launch.md#plan'),
    ('docs/a.md', '../README.md', 'index.md'),
    ('docs/a.md', '_static/x.svg', '_static/x.svg'),
    ('docs/a.md', '#here', '#here'),
    ('docs/a.md', 'https://example.org/a.md', 'https://example.org/a.md'),
    ('docs/a.md', '../alignjax', f'{staging.REPOSITORY}/tree/main/alignjax'),
    ('docs/objectives/b.md', '../a.md', '../a.md'),
    ('docs/objectives/b.md', '../../alignjax/dpo.py', f'{staging.REPOSITORY}/blob/main/alignjax/dpo.py'),
    ('launch/README.md', '../docs/a.md', 'a.md'),
    ('experiments/notebooks/n.md', '../../docs/a.md', '../a.md'),
  ],
)
def test_links_become_those_of_the_site(root, source, link, expected):
  assert staging.staged(source, f'See [`x`]({link}) and [y]({link}).\n', PAGES, root) == (
    f'See [`x`]({expected}) and [y]({expected}).\n'
  )


def test_pages_are_those_of_the_folders_of_the_site(root):
  for name in ('docs/results/study/table.md', 'docs/reference/c.md', 'CHANGELOG.md'):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).touch()
  assert staging.places(root) == {**PAGES, 'docs/reference/c.md': 'reference/c.md', 'CHANGELOG.md': 'changelog.md'}


def test_links_to_no_file_are_errors_that_name_the_page(root):
  with pytest.raises(
    staging.LinkError, match=r'^docs/a\.md: the link none\.md .*\ndocs/a\.md: the link \.\./\.\./up\.md'
  ):
    staging.staged('docs/a.md', '[x](none.md) [y](objectives/b.md)\n\n[z](../../up.md)', PAGES, root)


def test_code_stays_as_it_is_and_comments_become_directives(root):
  text = '```text\n[x](none.md)\n<!-- figure: f -->\n```\n\n<!-- figure: f -->\n\n<!-- toctree: objectives/* -->\n'
  code, *found = staging.staged('docs/objectives/b.md', text, PAGES, root).split('\n\n')
  assert code == text.split('\n\n')[0]
  assert found[:3] == [
    '````{container} wide\n```{image} ../figures/f-light.svg\n:class: only-light\n```',
    '```{image} ../figures/f-dark.svg\n:class: only-dark\n```\n````',
    '```{include} ../figures/f.txt\n```',
  ]
  assert found[3:] == ['```{toctree}\n:hidden:\n:glob:', 'objectives/*\n```\n']


def test_every_link_of_the_documentation_leads_to_a_file(tmp_path):
  staging.stage(tmp_path)
  assert (tmp_path / 'objectives' / 'pairwise.md').exists()


def test_every_page_is_in_the_contents_once():
  listed = re.findall(
    r'^(?:.+<)?([a-z_/*]+)>?$', ''.join(re.findall(r'```\{toctree\}\n(.*?)```', INDEX, re.DOTALL)), re.MULTILINE
  )
  assert len(listed) == len(set(listed))
  pages = {str(pathlib.PurePath(page).with_suffix('')) for page in staging.places().values()} - {'index'}
  below = {page for page in pages if page.startswith(('objectives/', 'notebooks/'))}
  assert pages - below <= set(listed)
  assert 'notebooks/*' in listed
  assert '<!-- toctree: objectives/* -->' in (staging.ROOT / 'docs' / 'objectives.md').read_text(encoding='utf-8')


def test_every_family_has_a_figure_that_is_drawn():
  figures = pytest.importorskip('docs.site.figures', reason='figures need matplotlib, of the extra `demo`')
  wanted = [
    name
    for source in staging.places()
    for name in re.findall(r'<!-- figure: (\S+) -->', (staging.ROOT / source).read_text(encoding='utf-8'))
  ]
  assert sorted(wanted) == sorted(figures.drawings())


def test_a_curve_is_the_loss_and_its_gradient():
  x = np.linspace(-30, 30, sweeps.POINTS)
  curve = sweeps.Sweep('margin', x, sweeps.margin, relative=False).curve(objectives.dpo(beta=0.3))
  np.testing.assert_allclose(curve.loss, np.logaddexp(0.0, -0.3 * x), rtol=1e-5)
  expected = 0.3 / (1.0 + np.exp(0.3 * x))
  np.testing.assert_allclose(curve.pull, np.stack([expected, -expected], axis=-1), rtol=1e-4)
  relative = sweeps.Sweep('margin', x, sweeps.margin).curve(objectives.dpo(beta=0.3))
  np.testing.assert_allclose(relative.loss, (np.logaddexp(0.0, -0.3 * x) - np.log(2.0)) / 0.15, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(relative.pull, curve.pull / 0.15, rtol=1e-5)


HEAD = '---\njupyter:\n  kernelspec:\n    display_name: Python 3\n    name: python3\n---\n\n'
NOTEBOOK = HEAD + '# Title\n\nText.\n\n```python\nx = 1\n```\n\n```python\nx\n```\n'


def test_a_notebook_has_a_badge_on_the_site_and_installs_alignjax_elsewhere():
  page, file = (json.loads(text) for text in (notebooks.page('n', NOTEBOOK), notebooks.download(NOTEBOOK)))
  (head, *_), code = page['cells'], [cell for cell in page['cells'] if cell['cell_type'] == 'code']
  badge = ''.join(head['source'])
  assert badge.startswith('# Title\n\n[![Open in Colab]')
  assert 'colab.research.google.com/github/alignjax/alignjax/blob/gh-pages/notebooks/n.ipynb)' in badge
  assert [''.join(cell['source']) for cell in code] == ['x = 1', 'x']
  install, *others = [cell for cell in file['cells'] if cell['cell_type'] == 'code']
  assert "'alignjax[demo] @ git+https://github.com/alignjax/alignjax'" in ''.join(install['source'])
  assert [''.join(cell['source']) for cell in others] == ['x = 1', 'x']
  assert notebooks.page('n', NOTEBOOK) == notebooks.page('n', NOTEBOOK)


def test_the_repository_is_that_of_the_package():
  assert f"URL = '{staging.REPOSITORY}'" in (staging.ROOT / 'setup.py').read_text(encoding='utf-8')


def test_docstrings_become_restructured_text():
  lines = [
    *('The `beta` of *x_ a|b.', '', '  y = beta h_', '', 'm = x y', '', 'Args:', '  beta: of `a`,', '    b*c.', ''),
    *('References:', '  A 2031, title,', '  https://example.org.', '  B 2032, other.'),
  ]
  assert api.rst(lines) == [
    *(r'The ``beta`` of \*x\_ a\|b.', '', '::', '', '      y = beta h_', '', '::', '', '    m = x y', ''),
    *('Args:', '  beta: of ``a``,', r'    b\*c.', ''),
    *('References:', '  - A 2031, title, https://example.org.', '  - B 2032, other.', ''),
  ]


class Fields(NamedTuple):
  """A tuple."""

  plain: int
  beside: int = 1  # [B], nats
  # A line above,
  # and another one.
  above: tuple[int, ...] = ()  # and beside


def test_the_comments_of_fields_are_documented_and_properties_keep_their_text():
  lines = ['A tuple.']
  api.process_docstring(None, 'class', 'Fields', Fields, None, lines)
  assert lines[2:5] == ['Attributes:', '  beside: [B], nats', '  above: A line above, and another one. and beside']
  lines = ['The whole: all of it.']
  api.process_docstring(None, 'property', 'x', Fields.plain, None, lines)
  assert lines[:3] == ['..', '', 'The whole: all of it.']
  signature = '(update=<function <lambda>>, x=1, f=<function no_summary>)'
  assert api.process_signature(None, '', '', None, None, signature, None)[0] == '(update=..., x=1, f=...)'


def test_every_public_name_is_in_the_api_or_on_a_page_of_its_own():
  for package in api.PACKAGES:
    text = api.page(package)
    for module, names in api.public(package):
      elsewhere = api.ELSEWHERE.get(module, ({}, ''))[0]
      for name in names:
        listed = f':: {module}.{name}\n' in f'{text}\n' or f'- `{name}`: see [' in text
        assert listed != (name in elsewhere), f'{module}.{name}'


def test_a_built_site_is_checked(tmp_path):
  (tmp_path / 'sub').mkdir()
  (tmp_path / 'a.html').write_text(
    '<link rel="stylesheet" href="https://cdn.example.org/x.css"><link rel="canonical" href="https://example.org">'
    '<script src="//cdn.example.org/y.js"></script><img src="none.png"><img src="data:x"><h1 id="here"></h1>'
    '<a href="#here"></a><a href="#gone"></a><a href="sub/b.html#there"></a><a href="sub/b.html#gone"></a>'
    '<a href="c.html"></a><a href="https://example.org/gone"></a>'
  )
  (tmp_path / 'sub' / 'b.html').write_text('<p id="there"></p><a href="../a.html?x=1#here"></a>')
  (tmp_path / 'x.css').write_text('@font-face { src: url("https://fonts.example.org/f.woff") }')
  assert checking.problems(tmp_path) == [
    'a.html: loads https://cdn.example.org/x.css from the network',
    'a.html: loads //cdn.example.org/y.js from the network',
    'a.html: loads none.png, which does not exist',
    'a.html: the link #gone leads to no section',
    'a.html: the link sub/b.html#gone leads to no section',
    'a.html: the link c.html leads to no file',
    'x.css: loads from the network',
  ]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('sphinx') is None, reason='Sphinx is not installed: make docs')
def test_the_site_is_built_without_warnings():
  subprocess.run([sys.executable, '-m', 'docs.site', 'html'], cwd=staging.ROOT, check=True)
  html = staging.ROOT / 'build' / 'docs' / 'html'
  assert checking.problems(html) == []
  assert (html / 'objectives' / 'pairwise.html').exists()
  assert (html / 'notebooks' / 'nested_risk.ipynb').exists()
