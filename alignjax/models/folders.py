"""The files of a Hugging Face folder: JSON, safetensors, and writing a folder that appears complete or not at all.

Weights are read and written only as safetensors, never as pickles.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import secrets
import shutil
import types
from typing import Any, NamedTuple

import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from alignjax import files, paths
from alignjax.models import manifest

CONFIG = 'config.json'
WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
SHARD = re.compile(r'model-\d{5}-of-\d{5}\.safetensors')
ASSETS = (
  'added_tokens.json',
  'chat_template.jinja',
  'chat_template.json',
  'generation_config.json',
  'merges.txt',
  'special_tokens_map.json',
  'tokenizer.json',
  'tokenizer.model',
  'tokenizer_config.json',
  'vocab.json',
)
TEMPLATES = '*.jinja'  # the files of `paths.SUBFOLDERS`
DTYPES = {'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16'}  # supported dtypes of stored weights
SHARD_BYTES = 5 * 10**9
CARD = 'README.md'
REWARD = 'reward.json'  # the scale of a reward model, which the manifest does not cover
MODEL = (CONFIG, WEIGHTS, INDEX, CARD, REWARD) + ASSETS  # the files of a model folder, apart from shards


class About(NamedTuple):
  """Where the weights in a folder come from."""

  source: Mapping[str, Any] = types.MappingProxyType({})  # identifies the run and the step; stored in the manifest
  card: str = ''  # the text of README.md; empty: no such file


UNTOLD = About()


@contextlib.contextmanager
def replacing(
  folder: str | os.PathLike[str], files: Iterable[str] = MODEL, about: About = UNTOLD
) -> Iterator[pathlib.Path]:
  """Yields an empty folder that replaces `folder` if the block succeeds, and is removed if it fails.

  Args:
    folder: the folder to write. It gets a manifest.
    files: names of the files that an existing `folder` may hold, besides its manifest.
    about: the source of the files, stored in the manifest, and the model card.

  Raises:
    ValueError: `folder` is a file, or holds other files, which would be lost.
  """
  folder = pathlib.Path(folder).resolve()
  _check_replaceable(folder, files)
  token = f'{os.getpid()}-{secrets.token_hex(4)}'
  partial = folder.with_name(f'.{folder.name}.{token}.partial')
  previous = folder.with_name(f'.{folder.name}.{token}.previous')
  partial.mkdir(parents=True)
  try:
    yield partial
    if about.card:
      (partial / CARD).write_text(about.card, encoding='utf-8')
    manifest.write(partial, about.source)
    mode = partial.stat().st_mode & 0o666
    for name in paths.file_names(partial):
      path = partial / name
      path.chmod(mode)  # safetensors creates files that only their owner can read
      with path.open('rb') as file:
        os.fsync(file.fileno())  # without it, a power failure after the rename could leave empty files
    if folder.exists():
      folder.rename(previous)
    partial.rename(folder)
  except BaseException:
    if previous.exists() and not folder.exists():
      previous.rename(folder)
    shutil.rmtree(partial, ignore_errors=True)
    raise
  shutil.rmtree(previous, ignore_errors=True)


def write_json(path: pathlib.Path, entries: Mapping[str, Any]) -> None:
  """Writes `entries` as indented JSON."""
  path.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON object.

  Raises:
    ValueError: the file is missing or does not hold a JSON object; the message names the file.
  """
  entries = files.read_json(path)
  if not isinstance(entries, dict):
    raise ValueError(f'{path}: must hold a JSON object')
  return entries


def write_weights(
  folder: pathlib.Path, tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int = SHARD_BYTES
) -> None:
  """Writes model.safetensors or, above `shard_bytes`, numbered files with an index.

  Args:
    folder: the folder to write to.
    tensors: stored names and values. They are consumed one at a time; at most one file's worth is held in memory.
    shard_bytes: largest size of one file, in bytes; a larger tensor gets a file of its own.

  Raises:
    ValueError: a tensor holds a value that is not finite.
  """
  shards: list[list[str]] = []
  pending: dict[str, np.ndarray] = {}
  total = held = 0

  def flush():
    path = folder / f'shard-{len(shards)}'
    safetensors_numpy.save_file(pending, path, metadata={'format': 'pt'})
    shards.append(list(pending))
    pending.clear()

  for name, tensor in tensors:
    check_finite(name, tensor)
    if pending and held + tensor.nbytes > shard_bytes:
      flush()
      held = 0
    pending[name] = np.ascontiguousarray(tensor)  # safetensors ignores the strides of a view
    held += tensor.nbytes
    total += tensor.nbytes
  flush()
  if len(shards) == 1:
    (folder / 'shard-0').rename(folder / WEIGHTS)
    return
  weight_map = {}
  for index, names in enumerate(shards):
    file = f'model-{index + 1:05d}-of-{len(shards):05d}.safetensors'
    (folder / f'shard-{index}').rename(folder / file)
    weight_map |= dict.fromkeys(names, file)
  write_json(folder / INDEX, {'metadata': {'total_size': total}, 'weight_map': weight_map})


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """A tensor in an open file. Its values are read, not mapped: pages of a memory map stay in memory."""

  name: str
  path: pathlib.Path
  shape: tuple[int, ...]
  dtype: str  # the safetensors name, a key of DTYPES
  offset: int  # of its values in the file, in bytes
  file: int  # a file descriptor

  def read(self, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
    """Reads a block of a matrix, or of a vector as a column, in the stored dtype.

    Args:
      rows: the first row, and one past the last.
      columns: the first column, and one past the last.

    Raises:
      ValueError: the values cannot be read, or are not all finite.
    """
    dtype, width = np.dtype(DTYPES[self.dtype]), self.shape[1] if len(self.shape) > 1 else 1
    block = np.empty((rows[1] - rows[0], columns[1] - columns[0]), dtype)
    if columns == (0, width):
      runs = [(block.reshape(-1), rows[0] * width)]
    else:
      runs = [(row, number * width + columns[0]) for number, row in enumerate(block, rows[0])]
    with naming(self.path):
      for values, first in runs:
        self._fill(values.view(np.uint8), self.offset + first * dtype.itemsize)
      check_finite(self.name, block)
    return block

  def _fill(self, values: np.ndarray, offset: int) -> None:
    left = memoryview(values)
    while left:  # one call reads at most 2 GiB
      count = os.preadv(self.file, [left], offset)
      if not count:
        raise ValueError(f'tensor {self.name}: the file ends in the middle of it')
      left, offset = left[count:], offset + count


def open_tensors(
  folder: pathlib.Path,
  stack: contextlib.ExitStack,
  ignored: tuple[str, ...] = (),
  verify: Callable[[pathlib.Path], None] = manifest.check_weights,
) -> dict[str, StoredTensor]:
  """Opens the weight files of a folder until `stack` closes, and lists their tensors by name.

  Args:
    folder: a Hugging Face folder.
    stack: the exit stack that keeps the files open.
    ignored: name suffixes of tensors to skip.
    verify: compares the folder with its manifest.

  Raises:
    ValueError: a file is missing, malformed, outside the folder or different from the index or the manifest, or the
      dtype of a tensor is not in DTYPES.
  """
  tensors: dict[str, StoredTensor] = {}
  verify(folder)
  for path, indexed in _weight_files(folder).items():
    files.check_regular(path)
    with naming(path):
      with safetensors.safe_open(path, framework='np') as checked:  # it checks the header
        names = set(checked.keys())
      if indexed is not None and names != indexed:
        raise ValueError(f'tensors differ from those in {INDEX}: {listed(names ^ indexed)}')
      file = os.open(path, os.O_RDONLY)
      stack.callback(os.close, file)
      header, start = _read_header(file)
      for name in sorted(names):
        if name.endswith(ignored):
          continue
        entry = header[name]
        if entry['dtype'] not in DTYPES:
          raise ValueError(f'tensor {name}: type {entry["dtype"]} is not one of {", ".join(DTYPES)}')
        offset = start + entry['data_offsets'][0]
        tensors[name] = StoredTensor(name, path, tuple(entry['shape']), entry['dtype'], offset, file)
  return tensors


def _read_header(file: int) -> tuple[Mapping[str, Mapping[str, Any]], int]:
  """The header of a safetensors file, and the offset of the first value in bytes."""
  size = int.from_bytes(os.pread(file, 8, 0), 'little')
  return json.loads(os.pread(file, size, 8)), 8 + size


def _weight_files(folder: pathlib.Path) -> dict[pathlib.Path, set[str] | None]:
  """The weight files of a folder, with the tensor names that the index lists for each, or None without an index."""
  single, index = folder / WEIGHTS, folder / INDEX
  if single.exists() and index.exists():
    raise ValueError(f'{folder}: holds both {WEIGHTS} and {INDEX}: remove one of them')
  if single.exists():
    return {single: None}
  if not index.exists():
    raise ValueError(f'{folder}: holds neither {WEIGHTS} nor {INDEX}{_conversion(folder)}')
  weight_map = read_json(index).get('weight_map')
  if not isinstance(weight_map, dict) or not weight_map:
    raise ValueError(f'{index}: weight_map must be an object that maps tensor names to file names')
  files: dict[pathlib.Path, set[str] | None] = {}
  for name, file in weight_map.items():
    if not isinstance(file, str) or not re.fullmatch(r'[\w-][\w.-]*\.safetensors', file):
      raise ValueError(f'{index}: weight_map[{name!r}]={file!r} must name a .safetensors file in the same folder')
    files.setdefault(folder / file, set()).add(name)
  return files


def _conversion(folder: pathlib.Path) -> str:
  """How to convert the weights of a folder that has no safetensors."""
  if not any((folder / name).exists() for name in ('pytorch_model.bin', 'pytorch_model.bin.index.json')):
    return '; other weight formats are not supported'
  return (
    ', only pytorch_model.bin, whose pickles can run code. If you trust its source, convert it where transformers is '
    'installed: python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
    f"[c.from_pretrained('{folder}').save_pretrained('{folder}-safetensors') for c in (M, T)]\""
  )


def copy_assets(source: pathlib.Path, target: pathlib.Path) -> None:
  """Copies the tokenizer, chat templates and generation settings that `source` has."""
  for name in ASSETS:
    if (source / name).exists():
      shutil.copyfile(source / name, target / name)
  for name in paths.SUBFOLDERS:
    for path in sorted((source / name).glob(TEMPLATES)):
      (target / name).mkdir(exist_ok=True)
      shutil.copyfile(path, target / name / path.name)


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
  """Turns any exception in the block into a ValueError that names the file."""
  try:
    yield
  except Exception as error:
    raise ValueError(f'{path}: {error}') from error


def listed(names: Iterable[str], limit: int = 8) -> str:
  """Formats the first names in sorted order, and the number of remaining ones."""
  names = sorted(names)
  return ', '.join(names[:limit]) + (f' and {len(names) - limit} more' if len(names) > limit else '')


def check_finite(name: str, value: np.ndarray) -> None:
  """Raises a ValueError with the name of the tensor unless all values are finite."""
  if not np.isfinite(value).all():
    raise ValueError(f'tensor {name} ({value.dtype}) holds values that are not finite')


def _check_replaceable(folder: pathlib.Path, files: Iterable[str]) -> None:
  if not folder.exists():
    return
  if not folder.is_dir():
    raise ValueError(f'{folder}: is a file, not a folder: choose another path for the model')
  names = {path.name for path in folder.iterdir() if not SHARD.fullmatch(path.name)} - set(paths.SUBFOLDERS)
  for name in paths.SUBFOLDERS:
    nested = (folder / name).iterdir() if (folder / name).is_dir() else ()
    names |= {f'{name}/{path.name}' for path in nested if not path.match(TEMPLATES)}
  if foreign := names - {manifest.FILE, *files}:
    raise ValueError(
      f'{folder}: holds files that are not part of a model ({listed(foreign)}): move them, or choose another folder'
    )
