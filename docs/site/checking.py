"""Checks the built site: links within it lead somewhere, and no page asks the network for anything."""

import html.parser
import pathlib
from urllib import parse

_LOADED = {('script', 'src'), ('img', 'src'), ('iframe', 'src'), ('source', 'src'), ('video', 'src')}
_LOADED_LINKS = ('stylesheet', 'preload', 'prefetch', 'icon', 'preconnect', 'dns-prefetch', 'modulepreload')


class _Page(html.parser.HTMLParser):
  """What a page loads, its links, and its anchors."""

  def __init__(self) -> None:
    super().__init__()
    self.loaded: list[str] = []
    self.links: list[str] = []
    self.anchors: set[str] = {'', 'top'}

  def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
    given = {name: value or '' for name, value in attrs}
    self.anchors |= {given[name] for name in ('id', 'name') if name in given}
    self.loaded += [given[name] for wanted, name in _LOADED if tag == wanted and name in given]
    if tag == 'link' and any(kind in given.get('rel', '').split() for kind in _LOADED_LINKS):
      self.loaded.append(given.get('href', ''))
    if tag == 'a' and 'href' in given:
      self.links.append(given['href'])


def _parsed(path: pathlib.Path) -> _Page:
  page = _Page()
  page.feed(path.read_text(encoding='utf-8'))
  return page


def _outside(link: str) -> bool:
  return link.startswith('//') or bool(parse.urlsplit(link).scheme)


def problems(folder: pathlib.Path) -> list[str]:
  """One line for each link that leads nowhere within the site, and for each file that is loaded from elsewhere.

  Args:
    folder: the built site.
  """
  found = []
  pages = {path.resolve(): _parsed(path) for path in sorted(folder.rglob('*.html'))}
  for path, page in pages.items():
    name = path.relative_to(folder.resolve())
    for link in dict.fromkeys(page.loaded):
      if _outside(link) and not link.startswith('data:'):
        found.append(f'{name}: loads {link} from the network')
      elif not _outside(link) and not (path.parent / parse.unquote(parse.urlsplit(link).path)).exists():
        found.append(f'{name}: loads {link}, which does not exist')
    for link in dict.fromkeys(page.links):
      if _outside(link):
        continue
      place, anchor = parse.unquote(parse.urlsplit(link).path), parse.unquote(parse.urlsplit(link).fragment)
      target = (path.parent / place).resolve() if place else path
      if not target.exists():
        found.append(f'{name}: the link {link} leads to no file')
      elif target in pages and anchor not in pages[target].anchors:
        found.append(f'{name}: the link {link} leads to no section')
  for path in sorted(folder.rglob('*.css')):
    text = path.read_text(encoding='utf-8')
    found += [
      f'{path.relative_to(folder)}: loads from the network'
      for mark in ('url(http', 'url("http', "url('http", '@import url(//')
      if mark in text
    ]
  return found
