"""Names of models: a folder, or a repository on the Hugging Face Hub, in the cache that other tools use too.

models/base    Qwen/Qwen2.5-0.5B    Qwen/Qwen2.5-0.5B@main
"""

from collections.abc import Sequence
import os
import pathlib
import re

from alignjax import hub, paths
from alignjax.models import folders, peft

OWNER_AND_NAME = r'(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)'
NAME = re.compile(rf'{OWNER_AND_NAME}(@(?P<revision>[\w.][\w./-]*))?')
_FILES = [*folders.MODEL, 'model-*-of-*.safetensors', peft.CONFIG, peft.WEIGHTS]
_FILES += [f'{folder}/{folders.TEMPLATES}' for folder in paths.SUBFOLDERS]
_SNAPSHOT = re.compile(r'models--(?P<name>[^/]+)/snapshots/[0-9a-f]+')


def resolve(location: str | os.PathLike[str], flag: str, patterns: Sequence[str] = _FILES) -> str:
  """The folder of a model or an adapter: the folder with this path, or a snapshot of the Hub, downloaded if needed.

  Args:
    location: the path of a folder, or the name of a repository with an optional revision.
    flag: the setting that has this value; errors name it.
    patterns: the files to download, by name or pattern; by default all that a model or an adapter may need.

  Raises:
    ValueError: there is no such folder, and the repository is unknown, closed, or neither cached nor reachable.
  """
  location = os.fspath(location)
  if os.path.isfile(location):
    raise ValueError(f'{flag}={location}: is a file; a model or an adapter is a folder in Hugging Face format')
  if paths.scheme(location) or os.path.exists(location):
    return location
  named = NAME.fullmatch(location)
  if named is None:
    raise ValueError(
      f'{flag}={location}: there is no such folder; models on the Hugging Face Hub have names such as Qwen/Qwen2.5-0.5B'
    )
  try:
    return hub.snapshot(hub.Repository('model', named['name'], named['revision']), patterns)
  except ValueError as error:
    hint = f'; or type: alignjax download smollm2 --out={location}' if named['name'].endswith('/smollm2') else ''
    raise ValueError(f'{flag}={location}: there is no such folder, and {error}{hint}') from error


def name_of(folder: str | os.PathLike[str]) -> str:
  """The name on the Hub of a folder in the cache; other folders by their path."""
  found = _SNAPSHOT.search(pathlib.Path(folder).as_posix())
  return found['name'].replace('--', '/', 1) if found else os.fspath(folder)
