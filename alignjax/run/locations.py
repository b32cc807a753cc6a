"""Finds what users name: a folder, or a repository on the Hugging Face Hub, in the cache that other tools use too.

models/base      ../base      Qwen/Qwen2.5-0.5B      Qwen/Qwen2.5-0.5B@main
"""

import dataclasses
import os
import pathlib
import re

from alignjax import paths
from alignjax.models import folders, peft
from alignjax.run import settings

NAME = re.compile(r'(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w.][\w./-]*))?')
_FILES = [*folders.MODEL, 'model-*-of-*.safetensors', peft.CONFIG, peft.WEIGHTS]
_SNAPSHOT = re.compile(r'models--(?P<name>[^/]+)/snapshots/[0-9a-f]+')
_FIELDS = ('model', 'reference', 'base_model', 'adapter_from')


def resolve(location: str | os.PathLike[str], flag: str) -> str:
  """The folder of a model or an adapter: the folder with this path, or a snapshot of the Hub, downloaded if needed.

  Args:
    location: the path of a folder, or the name of a repository with an optional revision.
    flag: the setting that has this value, for errors.

  Raises:
    ValueError: there is no such folder, and the repository is unknown, closed, or neither cached nor reachable.
  """
  location = os.fspath(location)
  if paths.scheme(location) or os.path.exists(location):
    return location
  named = NAME.fullmatch(location)
  if named is None:
    raise ValueError(
      f'{flag}={location}: there is no such folder; models on the Hugging Face Hub have names such as Qwen/Qwen2.5-0.5B'
    )
  try:
    return _snapshot(named['name'], named['revision'])
  except ValueError as error:
    hint = f'; or type: alignjax download smollm2 --out={location}' if named['name'].endswith('/smollm2') else ''
    raise ValueError(f'{flag}={location}: there is no such folder, and {error}{hint}') from error


def _snapshot(name: str, revision: str | None) -> str:
  """The folder of a repository in the cache, after downloading what it lacks.

  Raises:
    ValueError: the repository cannot be had. The message gives the reason and what to type.
  """
  import huggingface_hub  # slow to import, and not needed for folders
  from huggingface_hub import constants, errors

  try:
    return huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_FILES)
  except errors.GatedRepoError:
    raise ValueError(
      f'{name} asks for a licence: accept it on https://huggingface.co/{name}, and type: hf auth login'
    ) from None
  except errors.RevisionNotFoundError:
    raise ValueError(f'{name} has no revision {revision} on the Hugging Face Hub: check the part after @') from None
  except errors.RepositoryNotFoundError:
    raise ValueError(
      f'the Hugging Face Hub has no repository {name} that you may read: check the name; for a private one, type: '
      'hf auth login'
    ) from None
  except Exception as error:  # each network library has its own
    option = f' --revision {revision}' if revision else ''
    raise ValueError(
      f'{constants.HF_HUB_CACHE} does not hold {name} completely and the Hugging Face Hub cannot be reached '
      f'({type(error).__name__}): give a folder, or type on a machine with access: hf download {name}{option} '
      '--local-dir <folder>'
    ) from error


def name_of(folder: str | os.PathLike[str]) -> str:
  """The name on the Hub of a folder in the cache; other folders by their path."""
  found = _SNAPSHOT.search(pathlib.Path(folder).as_posix())
  return found['name'].replace('--', '/', 1) if found else os.fspath(folder)


def with_folders[S: settings.ModelSettings](config: S) -> S:
  """The settings of a run with folders in place of names on the Hub.

  Raises:
    ValueError: see `resolve`.
  """
  named = {name: getattr(config, name) for name in _FIELDS}
  found = {name: resolve(value, f'--{name}') for name, value in named.items() if value}
  return dataclasses.replace(config, **found) if found != {k: v for k, v in named.items() if v} else config
