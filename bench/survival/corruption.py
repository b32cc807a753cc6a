"""Damages the files of checkpoints, exported models, reference caches and tokenised datasets, and reads them again.

  python -m bench.survival.corruption --count=1000

Each time, one random file of a sound folder is damaged in one random way, and the library reads the folder as a program
does. What it returns is compared bit for bit with what was written.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import hashlib
import logging
import pathlib
import random
import shutil
import traceback
from typing import Any, NamedTuple

from absl import logging as absl_logging
import jax
import numpy as np

from alignjax.commands import program
from alignjax.data.batches import batching, reference_cache
from alignjax.data.tokens import artefact, encoding, tokenization
from alignjax.models import checkpoint_io
from alignjax.optim import recipes, schedules
from alignjax.run import preparation, record, recovery, settings, training
from alignjax.training import caching, checkpoint, checksums, placement, source
from bench.survival import campaign, damage, worlds

SHARD = 16  # examples in a shard of the reference cache
RIGHT, AGAIN, REFUSED = 'bits right', 'bits right, with a warning that names the file', 'refused, naming the file'
OLDER, VAGUE = 'fell back, with a warning that names the checkpoint', 'refused or warned without a name'
SILENT, TRACEBACK = 'SILENT WRONG', 'traceback'
OUTCOMES = (RIGHT, AGAIN, OLDER, REFUSED, VAGUE, SILENT, TRACEBACK)


class Content(NamedTuple):
  """What a read returned."""

  digest: str  # of all of its bits
  older: bool = False  # whether it is an earlier version, as it was written


class Subject(NamedTuple):
  """A folder that is damaged."""

  folder: pathlib.Path
  damaged: Callable[[pathlib.Path], list[pathlib.Path]]  # the files that may be damaged
  read: Callable[[pathlib.Path], Content]
  what: str = ''  # a warning or an error names the damaged file, or this

  def named(self, file: pathlib.Path, text: str) -> bool:
    """Whether a text names a damaged file."""
    return file.name in text or bool(self.what and self.what in text)


def digest_of(tree: Any) -> str:
  """A hash of the bits of all leaves."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(tree):
    leaf = checksums.raw_data(leaf) if isinstance(leaf, jax.Array) else leaf
    digest.update(np.asarray(leaf).tobytes() if not isinstance(leaf, str) else leaf.encode())
  return digest.hexdigest()


def files_of(folder: pathlib.Path) -> list[pathlib.Path]:
  """All files of a folder, in a fixed order, except those with nothing in them."""
  return sorted(path for path in folder.rglob('*') if path.is_file() and path.stat().st_size)


def checkpoints(config: settings.Config) -> Subject:
  """The checkpoints of a run of two steps; the newest is damaged."""
  training.train(config)
  prepared = preparation.prepare(config, _silent)
  schedule = schedules.build_schedule(config.schedule, prepared.recipe.learning_rate, steps=config.steps, warmup=0)
  tx = recipes.build_optimizer(prepared.recipe, schedule, config.gradient_clip)
  memory = prepared.objective.memory.initial
  like = placement.abstract_state(prepared.mesh, prepared.trained, tx, jax.random.key(config.seed), memory)
  identity = record.identity(config, prepared)

  def restore(folder: pathlib.Path) -> tuple[int, str]:
    batches = source.GrainSource(iter(prepared.training.batches))
    with checkpoint.Checkpoints(folder, config=dataclasses.asdict(config), identity=identity, keep=3) as opened:
      restored = recovery.restore(opened, like, batches)
    return restored.step, digest_of((restored.state, str(batches.get_state())))

  folder = pathlib.Path(config.workdir) / 'checkpoints'
  (folder / '2').rename(folder.with_name('2'))
  previous = restore(folder)
  folder.with_name('2').rename(folder / '2')

  def read(folder: pathlib.Path) -> Content:
    found = restore(folder)
    return Content(found[1], older=found == previous)

  return Subject(folder, lambda folder: files_of(folder / '2'), read, 'checkpoint 2')


def models(config: settings.Config) -> Subject:
  """The model that a run exports."""

  texts = [('The film was', [' wonderful.', ' dull, and awful.'])]

  def read(folder: pathlib.Path) -> Content:
    parsed = checkpoint_io.load_config(folder)
    params = checkpoint_io.load_params(folder, parsed)
    tokens = list(tokenization.Tokenizer.load(folder).encode_all(texts))
    return Content(digest_of((params, repr(parsed), repr(tokens))))

  return Subject(pathlib.Path(config.workdir) / 'model', files_of, read)


def caches(config: settings.Config) -> Subject:
  """A reference cache of several shards."""
  caching.SHARD = SHARD
  prepared = preparation.prepare(config, _silent)
  root, data = pathlib.Path(config.reference_cache), prepared.training.data
  columns = caching.columns(prepared.objective.needs, prepared.policy.model.config.width, config.compute_dtype)
  identity = reference_cache.identity(data, 'reference', columns)
  spec = batching.BatchSpec(config.batch_size, seed=0, epochs=1, buckets=config.buckets, shuffle=False)
  batches = batching.make_batches(data, spec)

  @functools.cache
  def load() -> caching.ReferenceRun:
    return prepared.reference._run()

  def read(root: pathlib.Path) -> Content:
    cache = caching.complete(reference_cache.Location(root, identity, data), batches, load, _silent)
    return Content(digest_of([cache.read(index) for index in range(len(data))]))

  shutil.rmtree(root, ignore_errors=True)
  read(root)
  return Subject(root, files_of, read)


def datasets(config: settings.Config) -> Subject:
  """A tokenised dataset."""
  tokenizer = tokenization.Tokenizer.load(config.model)
  limits = encoding.Limits(config.max_prompt, config.max_response, 384)
  request = artefact.Request(config.data, tokenizer, limits)

  def read(root: pathlib.Path) -> Content:
    _, data = artefact.obtain(root, request, artefact.Making(_silent))
    examples = [[np.asarray(each) for each in (row.prompt, *row.responses)] for row in data]
    places = [data.origin(index) for index in range(len(data))]
    return Content(digest_of((examples, places, data.fingerprint, str(data.report), np.asarray(data.lengths))))

  root = pathlib.Path(config.workdir) / 'tokens'
  read(root)
  return Subject(root, files_of, read)


SUBJECTS: dict[str, Callable[[settings.Config], Subject]] = {
  'checkpoint': checkpoints,
  'exported model': models,
  'reference cache': caches,
  'tokenised dataset': datasets,
}


def _silent(text: str) -> None:
  del text


class _Listener(logging.Handler):
  """Keeps warnings and errors."""

  def __init__(self):
    super().__init__(logging.WARNING)
    self.messages: list[str] = []

  def emit(self, record: logging.LogRecord) -> None:
    self.messages.append(record.getMessage())


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
  """The warnings and errors that are logged in the block; they are not printed."""
  listener, logger = _Listener(), absl_logging.get_absl_logger()
  handlers, logger.handlers = logger.handlers, [listener]
  propagate, logger.propagate = logger.propagate, False
  try:
    yield listener.messages
  finally:
    logger.handlers, logger.propagate = handlers, propagate


def judge(subject: Subject, sound: str, folder: pathlib.Path, file: pathlib.Path) -> tuple[str, str]:
  """Reads a damaged folder; returns the outcome, and the message that goes with it."""
  with listening() as messages:
    try:
      content = subject.read(folder)
    except program.EXPECTED as error:
      return REFUSED if subject.named(file, str(error)) else VAGUE, str(error)
    except Exception:
      return TRACEBACK, traceback.format_exc()
  text = '\n'.join(messages)
  named = subject.named(file, text)
  if content.older:
    return (OLDER if named else SILENT), text
  if content.digest != sound:
    return SILENT, text
  return (RIGHT if not messages else AGAIN if named else VAGUE), text


def run(results: campaign.Results, count: int, seed: int) -> None:
  """Damages files until the results hold so many outcomes."""
  draw = random.Random(seed)
  with campaign.workspace() as folder:
    jax.config.update('jax_compilation_cache_dir', str(folder))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
    files = worlds.write_files(folder / 'files')
    options = {'steps': 2, 'warmup': 0.0, 'reference_cache': str(folder / 'run' / 'cache')}
    config = worlds.configure(files, folder / 'run', 'cached reference', **options)
    subjects = {name: make(config) for name, make in SUBJECTS.items()}
    sound = {name: subject.read(subject.folder).digest for name, subject in subjects.items()}
    if any(subject.read(subject.folder).digest != sound[name] for name, subject in subjects.items()):
      raise AssertionError('two reads of a sound folder differ')
    kinds = list(damage.KINDS)
    for number in range(len(results.records), count):
      name, kind = list(subjects)[number % len(subjects)], kinds[number // len(subjects) % len(kinds)]
      subject, copy = subjects[name], folder / 'damaged'
      shutil.copytree(subject.folder, copy)
      while not damage.damage(file := draw.choice(subject.damaged(copy)), kind, draw):
        pass
      outcome, message = judge(subject, sound[name], copy, file)
      place = str(file.relative_to(copy))
      results.add({'subject': name, 'kind': kind, 'file': place, 'outcome': outcome, 'message': message[-2000:]})
      shutil.rmtree(copy)
      shutil.rmtree(copy.with_name(f'{copy.name}-corrupt'), ignore_errors=True)
      if number % 50 == 49:
        results.progress(number + 1, count)


def report(results: campaign.Results) -> int:
  """Prints the tables, and returns how many reads were silently wrong, or ended with a traceback."""
  for key, values in (('subject', SUBJECTS), ('kind', damage.KINDS)):
    rows = [
      [name, len(results.of(**{key: name})), *(len(results.of(**{key: name, 'outcome': each})) for each in OUTCOMES)]
      for name in values
    ]
    rows.append(['all', len(results.records), *(len(results.of(outcome=outcome)) for outcome in OUTCOMES)])
    print(campaign.table(['damaged' if key == 'subject' else 'damage', 'times', *OUTCOMES], rows) + '\n')
  for each in (*results.of(outcome=SILENT), *results.of(outcome=TRACEBACK), *results.of(outcome=VAGUE)):
    print(f'{each["outcome"]}: {each["subject"]}, {each["kind"]}, {each["file"]}: {each["message"][-300:]}')
  return len(results.of(outcome=SILENT)) + len(results.of(outcome=TRACEBACK))


if __name__ == '__main__':
  campaign.main('corruption', __doc__, run, report)
