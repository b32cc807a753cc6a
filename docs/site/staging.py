"""Lays out the pages for Sphinx: where each file of the repository goes, and what its links become there.

Pages are written for GitHub, with links relative to their files. On the site a link to another page stays a link to a
page, a link to any other file of the repository leads to GitHub, and a link to a file that does not exist is an error.
The site replaces these comments in the pages:

  <!-- figure: pairwise -->          a figure of `docs.site.figures`
  <!-- toctree: objectives/* -->     the pages below this one
"""

from collections.abc import Iterator, Mapping
import os
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
REPOSITORY = 'https://github.com/alignjax/alignjax'
BRANCH = 'main'
NOTEBOOKS = 'experiments/notebooks'
ASSETS = ('docs/_static', 'docs/figures', 'docs/results')  # folders with pictures of the pages
_PROJECT = ('CHANGELOG.md', 'CONTRIBUTING.md', 'SECURITY.md')

_LINK = re.compile(r'(?<=\]\()(?![a-z]+:|#)([^)\s#]*)(#[^)\s]*)?(?=\))')
_FENCE = re.compile(r'^ *(```+|~~~+)')
_COMMENT = re.compile(r'<!-- (figure|toctree): (\S+) -->')


class LinkError(ValueError):
  """A link to a file that is not in the repository."""


def places(root: pathlib.Path = ROOT) -> Mapping[str, str]:
  """The pages: paths in the repository, and on the site."""
  found = {
    str(path.relative_to(root)): str(path.relative_to(root / 'docs'))
    for folder in ('docs', 'docs/objectives', 'docs/reference')
    for path in root.glob(f'{folder}/*.md')
  }
  found |= {f'{NOTEBOOKS}/{path.name}': f'notebooks/{path.stem}.ipynb' for path in root.glob(f'{NOTEBOOKS}/*.md')}
  found |= {name: name.lower() for name in _PROJECT if (root / name).exists()}
  found['launch/README.md'] = 'launch.md'
  return dict(sorted(found.items()))


def staged(source: str, text: str, pages: Mapping[str, str], root: pathlib.Path = ROOT) -> str:
  """The text of a page on the site.

  Args:
    source: the path of the page in the repository.
    text: its Markdown.
    pages: the paths of all pages, see `places`.
    root: the folder of the repository.

  Raises:
    LinkError: links that lead nowhere, one per line.
  """
  broken: list[str] = []

  def target(link: re.Match[str]) -> str:
    path, anchor = link[1], link[2] or ''
    found = os.path.normpath(os.path.join(os.path.dirname(source), path))
    if found in pages or found == 'README.md':
      page = pages.get(found, 'index.md')
      return os.path.relpath(page, os.path.dirname(pages[source]) or '.') + anchor
    if found.startswith(ASSETS) and (root / found).exists():
      return os.path.relpath(found.removeprefix('docs/'), os.path.dirname(pages[source]) or '.')
    if found.startswith('..') or not (root / found).exists():
      broken.append(f'{source}: the link {path} leads to no file')
      return link[0]
    return f'{REPOSITORY}/{"tree" if (root / found).is_dir() else "blob"}/{BRANCH}/{found}{anchor}'

  depth = os.path.relpath('.', os.path.dirname(pages[source]) or '.')
  lines = [
    line if code else _COMMENT.sub(lambda match: _directive(match, depth), _LINK.sub(target, line))
    for line, code in _lines(text)
  ]
  if broken:
    raise LinkError('\n'.join(broken))
  return '\n'.join(lines) + '\n'


def _lines(text: str) -> Iterator[tuple[str, bool]]:
  """Each line, and whether it belongs to a block of code."""
  fence = ''
  for line in text.splitlines():
    mark = _FENCE.match(line)
    if fence:
      yield line, True
      if mark and mark[1].startswith(fence):
        fence = ''
    else:
      fence = mark[1] if mark else ''
      yield line, bool(fence)


def _directive(comment: re.Match[str], depth: str) -> str:
  """The directive that replaces a comment on the site.

  Args:
    comment: the match of the comment.
    depth: the path from the folder of the page to that of the site.
  """
  kind, name = comment.groups()
  if kind == 'toctree':
    return f'```{{toctree}}\n:hidden:\n:glob:\n\n{name}\n```'
  images = (f'```{{image}} {depth}/figures/{name}-{mode}.svg\n:class: only-{mode}\n```' for mode in ('light', 'dark'))
  both = '\n\n'.join(images)
  return f'````{{container}} wide\n{both}\n````\n\n```{{include}} {depth}/figures/{name}.txt\n```'


def stage(folder: pathlib.Path, root: pathlib.Path = ROOT) -> None:
  """Writes all pages except notebooks into a folder. Files that have not changed keep their time.

  Raises:
    LinkError: all links that lead nowhere, one per line.
  """
  pages, broken = places(root), []
  for source, page in pages.items():
    try:
      text = staged(source, (root / source).read_text(encoding='utf-8'), pages, root)
    except LinkError as error:
      broken.append(str(error))
    else:
      if not page.startswith('notebooks/'):
        write(folder / page, text)
  if broken:
    raise LinkError('\n'.join(broken))


def write(path: pathlib.Path, text: str) -> None:
  """Writes a file unless it holds this text already, because Sphinx builds a page again if its time has changed."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if not path.exists() or path.read_text(encoding='utf-8') != text:
    path.write_text(text, encoding='utf-8')
