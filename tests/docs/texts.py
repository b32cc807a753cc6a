"""The text of the README and of the hand-written pages: their blocks of code, links, headings and flags."""

import pathlib
import re
import shlex
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
GENERATED = {'objectives.md', 'papers.md', 'risk.md'}
PAGES = {
  str(path.relative_to(ROOT)): path.read_text(encoding='utf-8')
  for path in (
    ROOT / 'README.md',
    ROOT / 'CONTRIBUTING.md',
    ROOT / 'SECURITY.md',
    *sorted((ROOT / 'docs').glob('*.md')),
  )
  if path.name not in GENERATED
}

# A fence, and the comment before it that gives the reason why it is not run.
_BLOCK = re.compile(
  r'(?:^ *<!-- not run: (?P<reason>.+?) -->\n+)?^(?P<indent> *)```(?P<kind>\w+)\n(?P<text>.*?)^ *```$', re.M | re.S
)


class Block(NamedTuple):
  """A block of code of a page."""

  page: str
  line: int
  kind: str  # 'sh', 'python', ...
  text: str
  reason: str | None  # why it is not run

  @property
  def id(self) -> str:
    return f'{self.page}:{self.line}'


def blocks(*kinds: str) -> list[Block]:
  """The blocks of all pages that are of the given kinds."""
  found = []
  for page, text in PAGES.items():
    for match in _BLOCK.finditer(text):
      if match['kind'] in kinds:
        line = text[: match.start('kind')].count('\n') + 1
        body = re.sub(rf'^{match["indent"]}', '', match['text'], flags=re.MULTILINE)
        found.append(Block(page, line, match['kind'], body, match['reason']))
  return found


def commands(block: Block) -> list[list[str]]:
  """The commands of a block of shell, as lists of words, without comments."""
  lines = block.text.replace('\\\n', ' ').splitlines()
  return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def prose(text: str) -> str:
  """A page without its blocks of code."""
  return _BLOCK.sub('', text)


def slug(heading: str) -> str:
  """The anchor of a heading, as GitHub and MyST make it."""
  heading = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading).replace('`', '').lower()
  return re.sub(r'[^\w\- ]', '', heading).strip().replace(' ', '-')
