"""Sphinx settings of the site; `docs.site` stages the pages and starts Sphinx."""

import importlib.util
import pathlib
import shutil
import sys

from docutils import nodes

ROOT = pathlib.Path(__file__).resolve().parents[1]
OUT = ROOT / 'build' / 'docs'
sys.path.insert(0, str(ROOT))

import alignjax  # noqa: E402
from docs.site import api  # noqa: E402

project = 'alignjax'
author = 'alignjax contributors'
version = release = alignjax.__version__
extensions = [
  'myst_nb',
  'sphinx.ext.autodoc',
  'sphinx.ext.linkcode',
  'sphinx.ext.mathjax',
  'sphinx.ext.napoleon',
  'sphinx_copybutton',
]
html_title = 'alignjax'
highlight_language = 'none'  # of formulas in docstrings; other blocks name their language
html_show_copyright = False
smartquotes = False  # --flags keep both of their dashes

# Markdown as on GitHub: anchors of headings, formulas between dollars.
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 4
myst_links_external_new_tab = False

# Notebooks run once; their outputs are kept until their code changes.
nb_execution_mode = 'cache'
nb_execution_cache_path = str(OUT / 'jupyter_cache')
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

# Furo: it works on narrow and wide screens, follows the system's light or dark mode, and loads nothing from elsewhere.
html_theme = 'furo'
html_static_path = ['_static']
html_css_files = ['site.css']
html_extra_path = [str(OUT / 'downloads')]
html_copy_source = False
html_show_sphinx = False
pygments_style = 'tango'
pygments_dark_style = 'monokai'
copybutton_exclude = '.linenos, .gp, .go'

# MathJax and its fonts are copied into the site.
mathjax_path = 'mathjax/tex-chtml.js'
mathjax3_config = {'tex': {'inlineMath': [['\\(', '\\)']]}, 'chtml': {'displayAlign': 'left'}}

autodoc_member_order = 'bysource'
autodoc_typehints_format = 'short'
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True

linkcheck_workers = 4
linkcheck_anchors = False


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
  """The address of the source of a name."""
  return api.source_link(info['fullname'], info['module']) if domain == 'py' and info['module'] else None


def copy_mathjax(app, error) -> None:
  """Copies the part of MathJax that the pages load."""
  if error or app.builder.name != 'html':
    return
  (package,) = importlib.util.find_spec('sphinx-mathjax-offline').submodule_search_locations
  source, target = pathlib.Path(package) / 'static' / 'mathjax', pathlib.Path(app.outdir) / '_static' / 'mathjax'
  target.mkdir(parents=True, exist_ok=True)
  shutil.copy(source / 'tex-chtml.js', target)
  fonts = pathlib.Path('output', 'chtml', 'fonts', 'woff-v2')
  shutil.copytree(source / fonts, target / fonts, dirs_exist_ok=True)


def mend_dashes(app, doctree) -> None:
  """Sphinx separates a parameter from its description by `--`, and expects `smartquotes` to make a dash of it."""
  for text in list(doctree.findall(nodes.Text)):
    if text.astext() == ' -- ':
      text.parent.replace(text, nodes.Text(' – '))


def keep_flags_whole(app, doctree) -> None:
  """Marks short pieces of code, such as flags, so that no line ends after their dashes."""
  for code in doctree.findall(nodes.literal):
    if len(code.astext()) <= 30:
      code['classes'].append('short')


def setup(app) -> None:
  app.connect('doctree-read', keep_flags_whole)
  app.connect('doctree-read', mend_dashes)
  app.connect('autodoc-process-docstring', api.process_docstring, priority=400)  # before napoleon
  app.connect('autodoc-process-signature', api.process_signature)
  app.connect('autodoc-skip-member', api.skip_member)
  app.connect('build-finished', copy_mathjax)
