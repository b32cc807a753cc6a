"""Writes the generated pages, or checks that they are up to date."""

from collections.abc import Mapping, Sequence
import pathlib
import sys

from absl import app, flags

from docs.pages import findings_page, forms_page, objectives_page, papers_page, registry_pages, results_page, risk_page

FOLDER = pathlib.Path(__file__).parents[1]
CHECK = flags.DEFINE_bool('check', False, 'Write nothing; fail if a page is out of date.')
GENERATED = ('objectives', 'reference')  # folders in which every page is generated


def pages() -> Mapping[str, str]:
  """All generated pages: paths in the folder docs, and their texts."""
  sources = (objectives_page, risk_page, papers_page, results_page, forms_page, findings_page, registry_pages)
  return {path: text for source in sources for path, text in source.pages().items()}


def outdated(folder: pathlib.Path, wanted: Mapping[str, str]) -> list[str]:
  """The paths of pages that are missing, differ, or are left over from an earlier version."""
  differ = [
    path
    for path, text in wanted.items()
    if not (folder / path).exists() or (folder / path).read_text(encoding='utf-8') != text
  ]
  found = {str(path.relative_to(folder)) for name in GENERATED for path in (folder / name).glob('*.md')}
  return sorted({*differ, *(found - set(wanted))})


def main(argv: Sequence[str]) -> None:
  """Writes all pages, or with --check exits with an error if one is out of date."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
  wanted = pages()
  stale = outdated(FOLDER, wanted)
  if CHECK.value:
    if stale:
      sys.exit(f'out of date: {", ".join(f"docs/{path}" for path in stale)}; run python -m docs.pages')
    return
  for path in stale:
    if path in wanted:
      (FOLDER / path).parent.mkdir(exist_ok=True)
      (FOLDER / path).write_text(wanted[path], encoding='utf-8')
    else:
      (FOLDER / path).unlink()
