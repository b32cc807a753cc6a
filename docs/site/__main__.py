"""Builds the site in build/docs/html: python -m docs.site, or make docs.

The pages are staged in build/docs/source. Outputs of notebooks are kept in build/docs/jupyter_cache until their code
changes. Warnings are errors, and so are links within the site that lead nowhere.
"""

import pathlib
import shutil
import sys

from sphinx.cmd import build

from docs.site import api, checking, figures, notebooks, staging

OUT = staging.ROOT / 'build' / 'docs'


def main(builder: str) -> int:
  """Builds the site.

  Args:
    builder: the builder of Sphinx, 'html' or 'linkcheck'.

  Returns:
    The exit code.
  """
  source, html = OUT / 'source', OUT / builder
  try:
    staging.stage(source)
  except staging.LinkError as error:
    print(error, file=sys.stderr)
    return 1
  for folder in staging.ASSETS:
    if (staging.ROOT / folder).exists():
      ignored = shutil.ignore_patterns('*.md', '*.json')  # only pictures
      shutil.copytree(staging.ROOT / folder, source / pathlib.Path(folder).name, ignore=ignored, dirs_exist_ok=True)
  notebooks.stage(source, OUT / 'downloads')
  figures.draw(source / 'figures')
  api.stage(source / 'api')
  shutil.rmtree(html, ignore_errors=True)  # no page of an earlier build stays
  options = ['-E', '-W', '--keep-going', '-q', '-c', str(staging.ROOT / 'docs'), '-d', str(OUT / 'doctrees')]
  code = build.main(['-b', builder, *options, str(source), str(html)])
  problems = checking.problems(html) if builder == 'html' else []
  print('\n'.join(problems), file=sys.stderr, end='\n' if problems else '')
  if not code and not problems:
    print(f'{html.relative_to(pathlib.Path.cwd())}/index.html' if builder == 'html' else 'all links work')
  return code or bool(problems)


if __name__ == '__main__':
  sys.exit(main(*sys.argv[1:] or ['html']))
