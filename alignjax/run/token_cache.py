"""Where a run keeps its tokenised data, and how its processes share it."""

from collections.abc import Callable
import pathlib
import time
from typing import NamedTuple

from alignjax import paths, storage, transfers
from alignjax.data.reading import drops, fingerprints, sources
from alignjax.data.tokens import artefact, dataset, encoding
from alignjax.training import processes

OFF = 'off'
FOLDER = 'tokens'  # in the work directory
SMALLEST = 2**20  # bytes of files; tokenising less takes about a second, so it is not kept in the work directory
VISIBLE = 5.0  # seconds until a folder that process 0 has made must be visible to the others

Announce = Callable[[str], None]


class Cache(NamedTuple):
  """A folder of tokenised datasets."""

  root: pathlib.Path | None  # None: tokenise at every start
  smallest: int = 0  # bytes of files from which on tokens are kept


NONE = Cache(None)


def configured(setting: str, workdir: str) -> Cache:
  """The cache of a run.

  Args:
    setting: config.token_cache.
    workdir: config.workdir; may be empty.
  """
  if setting == OFF or not (setting or workdir):
    return NONE
  if setting:
    return Cache(pathlib.Path(setting))
  # Tokens are memory-mapped, so those of a run in an object store are kept on each machine.
  return Cache((transfers.root() if paths.scheme(workdir) else pathlib.Path(workdir)) / FOLDER, SMALLEST)


def read(request: artefact.Request, cache: Cache, announce: Announce) -> dataset.TokenDataset:
  """Opens the tokens of a dataset, which are made if they are missing. All processes must call it.

  Process 0 looks for them or makes them, while the others wait. A process that does not see its folder, because the
  cache is on a disk of its own, does the same for itself.

  Raises:
    DataError, ValueError: the data cannot be tokenised.
  """
  mine = None

  def make(alive: storage.Tick) -> str:
    nonlocal mine
    if not _kept(request, cache):
      return ''
    name, mine = artefact.obtain(cache.root, request, artefact.Making(announce, alive))
    return name

  name = processes.from_first(make)
  if name and mine is None and cache.root is not None:
    mine = _seen(cache.root / name, request)
    if mine is None and _kept(request, cache):
      _, mine = artefact.obtain(cache.root, request, artefact.Making(announce))
  if mine is not None:
    return mine
  report = drops.DropReport()
  examples = sources.read_examples(
    request.sources, report, on_error=request.on_error, ignore_fields=request.ignore_fields
  )
  data = encoding.tokenize(examples, request.tokenizer, request.limits, report, on_error=request.on_error)
  if cache.root is not None and (obstacle := artefact.obstacle(request)):
    announce(f'{obstacle}, so its tokens are not cached: it is tokenised at every start')
  return data


def _kept(request: artefact.Request, cache: Cache) -> bool:
  """Whether the tokens of a request are kept on disk."""
  if cache.root is None or artefact.obstacle(request):
    return False
  return sum(map(fingerprints.size, request.sources)) >= cache.smallest


def _seen(folder: pathlib.Path, request: artefact.Request) -> dataset.TokenDataset | None:
  """Opens a folder that process 0 has made; None if it does not appear here in time."""
  deadline = time.monotonic() + VISIBLE
  while True:
    try:
      return artefact.open_at(folder, request)
    except storage.DamageError:
      if time.monotonic() > deadline:
        return None
    time.sleep(storage.POLL)
