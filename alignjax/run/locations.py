"""Finds what users name: a path, or a repository on the Hugging Face Hub, in the cache that other tools use too.

  models/base    Qwen/Qwen2.5-0.5B    Qwen/Qwen2.5-0.5B@main            a model or an adapter
  pairs.jsonl    binarised:argilla/some-pairs    hh:Anthropic/hh-rlhf@main/harmless-base:test      data

Data on the Hub is `[form:]owner/name[@revision][/path][:split][part]`. The path is a file or a folder of the
repository. In a folder, the files of the split are read: `train` if none is given.
"""

from collections.abc import Sequence
import dataclasses
import os
import pathlib
import re
from typing import Any

from alignjax import hub
from alignjax.data.reading import readers, sources
from alignjax.models import folders, naming

NAME, resolve, name_of = naming.NAME, naming.resolve, naming.name_of  # of models
_DATA = re.compile(
  rf'{naming.OWNER_AND_NAME}(@(?P<revision>refs/\w+/\w+|[\w.][\w.-]*))?(/(?P<path>[^:]+?))?/?(:(?P<split>[\w.-]+))?'
)
_MODELS = ('model', 'reference', 'base_model', 'adapter_from')  # settings that name a model or an adapter
_DATA_SETTINGS = ('data', 'eval_data', 'prompts')
_ABOUT_DATA = ('dataset_info.json', 'dataset_infos.json')  # metadata
# The name of a file without its ending: 0000, train, train-00000-of-00002 or train-00000-of-00002-1f2e3d4c5b6a7988.
_SHARD = re.compile(r'\d+|(?P<split>.*?)([-_]\d{5,}(-of-(?P<count>\d{5,}))?(-[0-9a-f]{16})?)?')


def resolve_data(source: sources.Source, flag: str) -> tuple[sources.Source, ...]:
  """The data expressions of local files for an expression that may name a dataset on the Hub.

  Args:
    source: `[form:]location[part]`. If the location is a path or has a scheme, the expression is returned unchanged.
    flag: the setting that has this value; errors name it.

  Raises:
    ValueError: the dataset is unknown, closed, or neither cached nor reachable; or it is not clear which of its files
      are meant. The message gives what to type.
  """
  expression = sources.parse_expression(source)
  named = _DATA.fullmatch(expression.location)
  if not isinstance(source, str) or named is None or _is_local(expression.location, named):
    return (source,)
  repository = hub.Repository('dataset', named['name'], named['revision'])
  try:
    chosen = _chosen(repository, hub.file_names(repository), named)
    folder = pathlib.Path(hub.snapshot(repository, chosen))
  except ValueError as error:
    raise ValueError(f'{flag}={source}: there is no such file, and {error}') from error
  part = expression.part
  if len(chosen) > 1 and (part.start or part.stop is not None):
    raise ValueError(
      f'{flag}={source}: a range of rows needs one file, but these are {len(chosen)}: name one of them, such as '
      f'{_typed(repository, chosen[0])}'
    )
  head, _, tail = source.rpartition(expression.location)
  return tuple(f'{head}{folder / name}{tail}' for name in chosen)


def _is_local(location: str, named: re.Match[str]) -> bool:
  """Whether a location that could be a name on the Hub is a path, of a file that may be missing."""
  file = named['path'] is None and location.endswith(tuple(readers.ENDINGS))
  return file or os.path.exists(location) or os.path.isdir(location.partition('/')[0])


def _chosen(repository: hub.Repository, names: Sequence[str], named: re.Match[str]) -> list[str]:
  """The files of a repository that a name means: one file, or the files of one split in one folder.

  Raises:
    ValueError: there are none, or not all of them, or they are in several folders.
  """
  path, split = named['path'], named['split'] or 'train'
  files = sorted(name for name in names if name.endswith(tuple(readers.ENDINGS)))
  files = [name for name in files if pathlib.PurePosixPath(name).name not in _ABOUT_DATA]
  if path in files:
    if named['split']:
      raise ValueError(f'{path} is a file, which has no splits: leave out :{named["split"]}')
    return [path]
  files = [name for name in files if path is None or name.startswith(f'{path}/')]
  if not files:
    where = f'{repository.name} has no folder {path} with' if path else f'{repository.name} has no'
    raise ValueError(f'{where} data files, whose names end with {", ".join(readers.ENDINGS)}')
  found = [name for name in files if _in_split(name, split)]
  if not found and len(files) == 1 and not named['split']:
    return files
  if not found:
    raise ValueError(
      f'{repository.name} has no files of the split {split}: name another one, such as {repository.name}:test, or a '
      f'file, such as {_typed(repository, files[0])}; its data files are {folders.listed(files)}'
    )
  groups = {(str(pathlib.PurePosixPath(name).parent), _ending(name)) for name in found}
  if len(groups) > 1:
    parents = sorted({parent for parent, _ in groups})
    several = parents if len(parents) == len(groups) else found
    raise ValueError(
      f'{repository.name} has the split {split} more than once: name a part of it, such as '
      f'{_typed(repository, several[0])}; there are {folders.listed(several)}'
    )
  counts = {int(shard['count']) for shard in map(_shard, found) if shard['count']}
  if counts and counts != {len(found)}:
    raise ValueError(
      f'of the {max(counts)} files of the split {split} of {repository.name}, only {len(found)} are there: download '
      'the dataset again'
    )
  return found


def _in_split(name: str, split: str) -> bool:
  """Whether a file belongs to a split: its name, without the number of a shard, or a folder above it is the split."""
  *parents, _ = pathlib.PurePosixPath(name).parts
  return split in parents or _shard(name)['split'] == split


def _shard(name: str) -> re.Match[str]:
  return _SHARD.fullmatch(pathlib.PurePosixPath(name).name.removesuffix(_ending(name)))


def _ending(name: str) -> str:
  return next(ending for ending in readers.ENDINGS if name.endswith(ending))


def _typed(repository: hub.Repository, path: str) -> str:
  """What to type for a file or a folder of a repository."""
  revision = f'@{repository.revision}' if repository.revision else ''
  return f'{repository.name}{revision}/{path}'


def with_paths[S](config: S, models: Sequence[str] = _MODELS, data: Sequence[str] = _DATA_SETTINGS) -> S:
  """Settings with paths in place of names on the Hub.

  Args:
    config: a dataclass of settings.
    models: its fields that name a model or an adapter; those that it lacks are left out.
    data: its fields with a tuple of data expressions; those that it lacks are left out.

  Raises:
    ValueError: see `resolve` and `resolve_data`.
  """
  changes: dict[str, Any] = {}
  for name in models:
    if value := getattr(config, name, ''):
      changes[name] = resolve(value, f'--{name}')
  for name in data:
    given = getattr(config, name, ())
    changes[name] = tuple(path for source in given for path in resolve_data(source, f'--{name}'))
  changes = {name: value for name, value in changes.items() if value and value != getattr(config, name)}
  return dataclasses.replace(config, **changes) if changes else config
