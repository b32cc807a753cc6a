"""A tokenised dataset on disk: made once, then opened by memory map.

An artefact is a folder, named by a hash of its *identity*: everything that determines the tokens. It does not depend on
where the files are. The folder contains:

  manifest.json    the identity, the drop report, and size and SHA-256 of each file
  <array>.npy      the arrays of a `TokenDataset`
  lengths.npy      [n, 2] int32: all that planning batches reads, 8 bytes per example

A changed file is never missed, because identities contain the SHA-256 of the sources' bytes, computed at every start:
about 1 s per GB. A damaged artefact is never used, because every byte is compared with its checksum when it is opened,
in a stream that stays out of the process's memory: again 1 s per GB. Neither parses a row.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import pathlib
import shutil
from typing import Any, NamedTuple

from absl import logging
import jinja2
import numpy as np
import tokenizers

from alignjax import storage
from alignjax.data.reading import drops, fingerprints, rows, sources
from alignjax.data.tokens import dataset, encoding, growing, tokenization, tokenizer_files

VERSION = 1
WAITING = 'waiting for another process that tokenises the same data'

_DTYPES = {
  'prompt_tokens': '<i4',
  'prompt_offsets': '<i8',
  'response_tokens': '<i4',
  'response_offsets': '<i8',
  'label': '<f4',
  'weight': '<f4',
  'score': '<f4',
  'behaviour_logp': '<f4',
  'behaviour_token_logp': '<f4',
  'path_index': '<i4',
  'line': '<i8',
}
_OFFSETS = ('prompt_offsets', 'response_offsets')


@dataclasses.dataclass(frozen=True)
class Request:
  """What to tokenise, and how."""

  sources: tuple[str, ...]  # expressions `[form:]location[part]`
  tokenizer: tokenization.Tokenizer
  limits: encoding.Limits
  on_error: str = 'raise'
  ignore_fields: tuple[str, ...] = ()
  unknown_columns: str = 'refuse'

  @property
  def locations(self) -> list[str]:
    """Where each source is: the part of an origin before the line."""
    return [sources.parse_expression(source).location for source in self.sources]


def read(request: Request, report: drops.DropReport) -> Iterator[rows.Example]:
  """Yields the examples of a request; see `sources.read_examples`."""
  return sources.read_examples(
    request.sources,
    report,
    on_error=request.on_error,
    ignore_fields=request.ignore_fields,
    unknown_columns=request.unknown_columns,
  )


class Making(NamedTuple):
  """How an artefact is made."""

  announce: Callable[[str], None]  # called with progress messages
  tick: storage.Tick = storage.silent  # called often during long work
  workers: int = 1  # processes that tokenise


def obstacle(request: Request) -> str:
  """Why there can be no artefact for a request; '' if there can be one."""
  return next(filter(None, map(fingerprints.obstacle, request.sources)), '')


def identity(request: Request, tick: storage.Tick = storage.silent) -> dict[str, Any]:
  """Identifies an artefact: two with the same identity hold the same tokens.

  Args:
    request: a request without an obstacle.
    tick: called often while the sources are read.
  """
  template, folder = request.tokenizer.template, pathlib.Path(request.tokenizer.origin).parent
  return {
    'version': VERSION,
    'code': _code(),
    'libraries': {'tokenizers': tokenizers.__version__, 'jinja2': jinja2.__version__},
    'sources': [fingerprints.fingerprint(source, tick) for source in request.sources],
    'tokenizer': {name: storage.sha256(folder / name) for name in tokenizer_files.FILES if (folder / name).exists()},
    'date': template.date.isoformat() if template is not None and template.date is not None else '',
    'template_arguments': {} if template is None else template.arguments,
    'limits': dataclasses.asdict(request.limits),
    'on_error': request.on_error,
    'ignore_fields': sorted(request.ignore_fields),
    'unknown_columns': request.unknown_columns,
  }


@functools.cache
def _code() -> str:
  """A hash of the code that turns rows into tokens."""
  data = pathlib.Path(__file__).parents[1]
  files = sorted(path for wing in ('reading', 'tokens') for path in (data / wing).glob('*.py'))
  return storage.name_of({path.relative_to(data).as_posix(): storage.sha256(path) for path in files})


def obtain(root: pathlib.Path, request: Request, making: Making) -> tuple[str, dataset.TokenDataset]:
  """Opens the artefact of a request, which is made if it is missing, and returns its name with it.

  While another process makes it, this one waits. A damaged artefact is made again, with a warning.

  Args:
    root: the folder of all artefacts.
    request: a request without an obstacle.
    making: how to make it.

  Raises:
    DataError, ValueError: the data cannot be tokenised; as for `sources.read_examples` and `encoding.tokenize`.
  """
  states = [fingerprints.state(source) for source in request.sources]
  content = identity(request, making.tick)
  folder = root / storage.name_of(content)
  with contextlib.suppress(storage.DamageError):
    return folder.name, open_at(folder, request, making.tick)
  with storage.locked(folder, storage.telling(making.announce, WAITING, making.tick)):
    if folder.exists():  # made by another process in the meantime, or damaged
      try:
        return folder.name, open_at(folder, request, making.tick)
      except storage.DamageError as error:
        logging.warning('%s. The data is tokenised again', error)
        shutil.rmtree(folder)
    storage.sweep(root)
    making.announce(f'tokenising {", ".join(request.sources)} into {folder}')
    with storage.committing(folder) as partial:
      _write(partial, content, request, making)
      if [fingerprints.state(source) for source in request.sources] != states:
        raise ValueError(f'{", ".join(request.locations)}: changed while it was read; start again')
    return folder.name, open_at(folder, request, making.tick)


def open_at(folder: pathlib.Path, request: Request, tick: storage.Tick = storage.silent) -> dataset.TokenDataset:
  """Opens an artefact. Its arrays are memory-mapped, so rows are read on demand.

  Raises:
    DamageError: the artefact is missing, or differs from what was written.
  """
  content, locations = storage.verify(folder, tick), request.locations
  paths = [locations[source] for source in content['paths']]
  data = _mapped(folder, content['arrays'], paths, _report(content['report'], locations))
  lengths = np.asarray(np.load(folder / 'lengths.npy', mmap_mode='r'))
  vars(data).update(lengths=lengths, fingerprint=content['fingerprint'])  # cached properties, computed when it was made
  return data


def _mapped(
  folder: pathlib.Path, names: Sequence[str], paths: Sequence[str], report: drops.DropReport
) -> dataset.TokenDataset:
  """The dataset in the files of a folder."""
  arrays = {name: np.asarray(np.load(folder / f'{name}.npy', mmap_mode='r')) for name in names}
  return dataset.TokenDataset(
    **{name: arrays.get(name) for name in _DTYPES},
    responses=(len(arrays['response_offsets']) - 1) // len(arrays['label']),
    paths=tuple(paths),
    report=report,
  )


def _write(partial: pathlib.Path, content: Mapping[str, Any], request: Request, making: Making) -> None:
  """Writes all files of an artefact."""
  report, locations = drops.DropReport(), request.locations
  examples = read(request, report)
  with contextlib.ExitStack() as stack:
    writer = _Writer(partial, stack)
    for part in encoding.tokenize_parts(
      examples, request.tokenizer, request.limits, on_error=request.on_error, workers=making.workers
    ):
      report.add(part.report)
      if part.data is not None:
        writer.append(part.data)
      making.tick()
    if not writer.arrays:
      raise ValueError(f'no examples are left: {report}')
    for array in writer.arrays.values():
      array.finish()
  written = _mapped(partial, sorted(writer.arrays), list(writer.paths), report)
  encoding.check_vocabulary(written, request.tokenizer, request.limits.vocab_size)
  np.save(partial / 'lengths.npy', written.lengths)
  kept = {
    'identity': dict(content),
    'fingerprint': written.fingerprint,
    'arrays': sorted(writer.arrays),
    'paths': [locations.index(path) for path in written.paths],
    'report': _relative(report, locations),
  }
  storage.write_manifest(partial, kept, making.tick)


class _Writer:
  """Appends parts of a dataset to the files of a folder."""

  def __init__(self, folder: pathlib.Path, stack: contextlib.ExitStack):
    self._folder, self._stack = folder, stack
    self.arrays: dict[str, growing.GrowingArray] = {}
    self.paths: dict[str, int] = {}
    self._ends = dict.fromkeys(_OFFSETS, 0)

  def append(self, part: dataset.TokenDataset) -> None:
    """Appends the examples of a part.

    Raises:
      ValueError: it has other columns than the parts before.
    """
    columns = {name: getattr(part, name) for name in _DTYPES}
    columns = {name: column for name, column in columns.items() if column is not None}
    if self.arrays and columns.keys() != self.arrays.keys():
      different = ', '.join(sorted(columns.keys() ^ self.arrays.keys()))
      raise ValueError(f'some examples have a {different} and some have none; give one to all of them, or to none')
    places = np.array([self.paths.setdefault(path, len(self.paths)) for path in part.paths], np.int32)
    columns['path_index'] = places[part.path_index]
    for name in _OFFSETS:
      shifted = columns[name] + self._ends[name]
      self._ends[name] = shifted[-1]
      columns[name] = shifted[1:] if self.arrays else shifted
    for name, column in columns.items():
      if name not in self.arrays:
        array = growing.GrowingArray(self._folder / f'{name}.npy', _DTYPES[name], column.shape[1:])
        self.arrays[name] = self._stack.enter_context(array)
      self.arrays[name].append(column)


def _relative(report: drops.DropReport, locations: Sequence[str]) -> dict[str, Any]:
  """A drop report as JSON, with the number of a source in place of its location."""

  def entry(tally: drops.Tally) -> list[Any]:
    places = [
      max((len(where), where) for where in locations if text.startswith(f'{where}:')) for text in tally.examples
    ]
    pairs = zip(tally.examples, places, strict=True)
    return [tally.count, [[locations.index(where), text[size:]] for text, (size, where) in pairs]]

  tables = {name: getattr(report, name) for name in ('dropped', 'noted')}
  return {'read': report.read} | {
    name: {reason: entry(tally) for reason, tally in table.items()} for name, table in tables.items()
  }


def _report(stored: Mapping[str, Any], locations: Sequence[str]) -> drops.DropReport:
  """The inverse of `_relative`."""
  tables = {
    name: {
      reason: drops.Tally(count, [locations[source] + rest for source, rest in examples])
      for reason, (count, examples) in stored[name].items()
    }
    for name in ('dropped', 'noted')
  }
  return drops.DropReport(stored['read'], **tables)
