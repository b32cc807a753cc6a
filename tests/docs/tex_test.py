"""The translation of plain notation into TeX, on single formulas and on every formula of a docstring."""

import re

import pytest

from alignjax import objectives, risk
from alignjax.objectives import preference
from docs.pages import docstrings, tex
from docs.pages.writing import FOLDER

PATHS = (FOLDER / 'objectives.md', FOLDER / 'risk.md', *(FOLDER / 'objectives').glob('*.md'))
PAGE = '\n'.join(path.read_text(encoding='utf-8') for path in PATHS)
DISPLAYED = re.findall(r'^\$\$\n(.*)\n\$\$$', PAGE, re.MULTILINE)
INLINE = re.findall(r'(?<!\$)\$([^$\n]+)\$(?!\$)', PAGE)


@pytest.mark.parametrize(
  ('plain', 'expected'),
  [
    ('beta h', r'\beta h'),
    ('-log sigmoid(beta h)', r'- \log \sigma(\beta h)'),
    ('y_w', 'y_{w}'),
    ('log pi_ref(y_w|x)', r'\log \pi_{\mathrm{ref}}(y_{w} \mid x)'),
    ('pi(v|x, y_<t)', r'\pi(v \mid x, y_{< t})'),
    ('rho(y) / |y_l|', r'\rho(y) / \vert y_{l} \vert'),
    ('(a + b)^2', '(a + b)^{2}'),
    ('u^-alpha', r'u^{- \alpha}'),
    ('pi*(y|x)', r'\pi^{\ast}(y \mid x)'),
    ("f'(u_w)", "f'(u_{w})"),
    ('x^(beta / (beta + gamma)) y', r'x^{\beta / (\beta + \gamma)} y'),
    ('u_(k)', 'u_{(k)}'),
    ('sum_t D_t(v)', r'\sum_{t} D_{t}(v)'),
    ('sum_{t <= s} rho_t(y)', r'\sum_{t \leq s} \rho_{t}(y)'),
    ('sum_{t in T(y)} u', r'\sum_{t \in T(y)} u'),
    ('mean_{m != n} R_m', r'\mathrm{mean}_{m \neq n} R_{m}'),
    ('E_{y ~ pi}[score(y)]', r'\mathrm{E}_{y \sim \pi}[\mathrm{score}(y)]'),
    ('sg[w] objective', r'\mathrm{sg}[w] \text{ objective}'),
    ('max(0, 1 - beta h)', r'\max(0, 1 - \beta h)'),
    ('max { d_v : p_v > 0 }', r'\max \lbrace d_{v} : p_{v} > 0 \rbrace'),
    ('E[(d - eta)^+] / level', r'\mathrm{E}[(d - \eta)^{+}] / \text{level}'),
    ('KL(pi || pi_ref)', r'\mathrm{KL}(\pi \parallel \pi_{\mathrm{ref}})'),
    ('e = label_smoothing', r'e = \text{label smoothing}'),
    ('beta_prime log u', r"\beta' \log u"),
    ('u if y is desirable, else v', r'u \text{ if } y \text{ is desirable}, \text{ else } v'),
    ('N clip', r'N \, \mathrm{clip}'),
    ('int_0^level F^-1(u) d u', r'\int_{0}^{\text{level}} F^{- 1}(u) d u'),
  ],
)
def test_a_formula(plain, expected):
  assert tex.tex(plain) == expected


@pytest.mark.parametrize(
  ('plain', 'message'),
  [
    ('max(0, 1', "'\\)' is missing"),
    ('(a]', "']' closes nothing"),
    ('a)', "'\\)' closes nothing"),
    ('u^', 'nothing follows'),
    ('a # b', "'#' has no"),
  ],
)
def test_a_formula_in_another_notation_is_an_error(plain, message):
  with pytest.raises(tex.TexError, match=message):
    tex.tex(plain)


def test_every_equation_of_a_docstring_is_displayed():
  builds = {**objectives.OBJECTIVES, **risk.MEASURES}
  for name, build in builds.items():
    if build.__module__.startswith('alignjax.'):
      formula = docstrings.Docstring.of(build, 'value' if name in risk.MEASURES else 'loss').formula
      assert docstrings.equations(formula) in PAGE, name
  assert len(DISPLAYED) > len(builds)
  assert any('\\rho(y) =' in formula for formula in DISPLAYED), preference.__doc__


def test_formulas_are_portable_tex():
  assert PAGE.count('\n\n$$\n') == len(DISPLAYED)
  assert PAGE.count('\n$$\n\n') == len(DISPLAYED)
  for formula in sorted({*DISPLAYED, *INLINE}):
    assert formula.count('{') == formula.count('}'), formula
    bare = re.sub(r'\\(?:text|mathrm)\{[^}]*\}|\\[a-z]+', ' ', formula, flags=re.IGNORECASE)
    assert not re.search(r'[A-Za-z]{2}', bare), f'a word outside of text: {formula}'
    assert not re.search(r'\\\\|\\[_{}]|\\operatorname|\*|<\S', formula), f'not portable: {formula}'


def test_matplotlib_can_set_every_formula():
  parser = pytest.importorskip('matplotlib.mathtext').MathTextParser('path')
  for formula in sorted({*DISPLAYED, *INLINE}):
    parser.parse(f'${formula}$')
