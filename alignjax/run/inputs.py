"""Reads the inputs of a run: its datasets, and the reference model."""

from collections.abc import Callable, Sequence
import functools
import pathlib
from typing import Any, NamedTuple

import jax

from alignjax import objectives, stats
from alignjax.data.batches import batching, packed, reference_cache
from alignjax.data.tokens import artefact, dataset, encoding, tokenization
from alignjax.models import checkpoint_io, fingerprints
from alignjax.parallel import mesh as parallel_mesh
from alignjax.run import adapters, packing_choice, settings, token_cache
from alignjax.training import caching, processes, references, rows
from alignjax.training.policy import Policy
from alignjax.types import Params

Announce = Callable[[str], None]


class Split(NamedTuple):
  """One dataset of a run."""

  data: dataset.TokenDataset
  batches: batching.Batches
  training: bool  # True: shuffled and repeated forever; False: each example once, in order
  rows: packed.Rows | None = None  # of packed batches; None: the batches are not packed


class Reading(NamedTuple):
  """Everything besides the settings that reading data needs."""

  tokenizer: tokenization.Tokenizer
  vocab_size: int  # vocabulary size of the model
  mesh: jax.sharding.Mesh
  announce: Announce
  cache: token_cache.Cache = token_cache.NONE
  max_positions: int | None = None  # of the model
  rows: packed.Rows | None = None  # what packed rows must be; None: no batch is packed


def read_split(paths: Sequence[str], config: settings.DataSettings, reading: Reading, *, training: bool) -> Split:
  """Reads and tokenises a dataset, announces what was dropped, and plans its batches."""
  cut = config.long_responses == 'cut'
  limits = encoding.Limits(config.max_prompt, config.max_response, reading.vocab_size, truncate_response=cut)
  request = artefact.Request(
    tuple(paths), reading.tokenizer, limits, config.on_error, config.ignore_fields, config.unknown_columns
  )
  data = token_cache.read(request, reading.cache, reading.announce)
  if not data.responses:
    raise ValueError(
      f'{", ".join(paths)}: the rows are prompts without responses, but an objective needs responses; '
      'use data in another form, such as preference'
    )
  reading.announce(f'{", ".join(paths)}: {data.report}')
  if not data.weight.any():
    raise ValueError(
      f'{", ".join(paths)}: all {len(data)} examples have weight 0, so they would change nothing; give some of them a '
      'positive weight'
    )
  if config.weighting == 'tokens':
    data = data.weighted_by_tokens()
  return planned(data, config, reading, training=training)


def planned(data: dataset.TokenDataset, config: settings.DataSettings, reading: Reading, *, training: bool) -> Split:
  """Plans the batches of a dataset, in buckets or in packed rows."""
  spec = _spec(config, training, reading.max_positions)
  rows = packing_choice.choose(data, spec, reading.rows, config.packing, reading.announce)
  return Split(data, _batches(data, spec, reading.mesh, rows), training, rows)


def _spec(config: settings.DataSettings, training: bool, max_positions: int | None) -> batching.BatchSpec:
  return batching.BatchSpec(
    config.batch_size,
    seed=config.seed,
    epochs=None if training else 1,
    buckets=config.buckets or None,
    max_positions=max_positions,
    shuffle=training,
  )


def _batches(
  data: dataset.TokenDataset,
  spec: batching.BatchSpec,
  mesh: jax.sharding.Mesh,
  rows: packed.Rows | None,
  cache: reference_cache.ReferenceCache | None = None,
) -> batching.Batches:
  share = batching.Share(*parallel_mesh.batch_shards_of(mesh))
  if rows is None:
    return batching.make_batches(data, spec, share, cache)
  return packed.make_batches(data, spec, rows, share, cache)


class Reference:
  """The reference of a run: none, separate parameters, the base of an adapter, or a cache on disk.

  Args:
    config: the models, the data and how the run computes.
    policy: the policy. The reference has the same architecture. If the policy trains an adapter and config.reference
      is empty, the frozen base is the reference.
    objective: the objective, which may need no reference.
    mesh: the mesh of the run.
    shardings: shardings of the parameters.
    announce: called with progress messages.
  """

  def __init__(
    self,
    config: settings.InputSettings,
    policy: Policy,
    objective: objectives.Objective,
    mesh: jax.sharding.Mesh,
    shardings: Any,
    announce: Announce,
  ):
    self._config, self._model, self._needs, self._mesh = config, policy.model, objective.needs, mesh
    self._shardings, self._announce = shardings, announce
    self._loaded: Params | None = None
    self.folder = config.reference or config.model
    of_model = self.folder == config.model
    self._base = policy.adapter if of_model else None
    self._merges = bool(config.adapter_from) and of_model and policy.adapter is None
    self.needed = bool(stats.missing_reference(objective.needs, ()))
    if config.reference_cache and not self.needed:
      raise ValueError(
        f'config.reference_cache = {config.reference_cache!r} is set, but {objective.name} reads no reference: '
        'remove the setting'
      )
    if self.needed and config.adapter_from and policy.adapter and not config.reference:
      raise ValueError(
        f'config.adapter_from = {config.adapter_from!r}: the reference is the model before training, which is '
        f'{config.model} with this adapter: write it with alignjax merge --models={config.model} '
        f'--adapter={config.adapter_from} --out=<folder>, and give --reference=<folder>'
      )

  def load(self) -> references.Reference:
    """Loads the part of the reference that the step needs in addition to the cached fields of its batches."""
    if not self.needed:
      return references.NotLoaded()
    if not self._config.reference_cache:
      loaded, self._loaded = self._loaded, None
      return references.Base() if self._base else references.Live(self._params() if loaded is None else loaded)
    if self._columns().keys() == {references.STATES}:
      head = checkpoint_io.load_head(self.folder, self._model.config, self._shardings, self._loading)
      return references.CachedStates(head)
    return references.NotLoaded()

  def of_model(self) -> Params | None:
    """The reference's parameters if they are those of the model before training. `load` does not read them again."""
    live = self.needed and not self._base and not self._config.reference_cache
    if live and self.folder == self._config.model and self._loaded is None:
      self._loaded = self._params()
    return self._loaded

  def cached(self, splits: Sequence[Split]) -> list[Split]:
    """Adds the cached outputs of the reference to the batches of each dataset. Computes what its cache lacks.

    Raises:
      CacheError: the processes do not share the folder of the caches.
    """
    if not self._config.reference_cache:
      return list(splits)
    root, columns = pathlib.Path(self._config.reference_cache), self._columns()
    weights = processes.from_first(lambda alive: fingerprints.of(self.folder, whole=True, alive=alive))
    if self._merges:
      weights += processes.from_first(lambda alive: fingerprints.of(self._config.adapter_from, whole=True, alive=alive))
    how = {'compute_dtype': self._config.compute_dtype}
    if self._base:
      how['quantization'] = self._config.base_quantization
    load, result = functools.cache(self._run), []
    for split in splits:
      identity = reference_cache.identity(split.data, weights, columns, **how)
      once = _batches(split.data, self._spec(False), self._mesh, None)
      location = reference_cache.Location(root, identity, split.data)
      cache = caching.complete(location, once, load, self._announce)
      batches = _batches(split.data, self._spec(split.training), self._mesh, split.rows, cache)
      result.append(split._replace(batches=batches))
    return result

  def _spec(self, training: bool) -> batching.BatchSpec:
    return _spec(self._config, training, self._model.config.max_positions)

  def _run(self) -> caching.ReferenceRun:
    layout = rows.Layout(self._config.chunk, mesh=self._mesh)
    return caching.ReferenceRun(self._model, self._params(), self._needs, layout)

  def _columns(self) -> dict[str, reference_cache.Column]:
    return caching.columns(self._needs, self._model.config.width, self._config.compute_dtype)

  def _params(self) -> Params:
    if self._base:
      return adapters.load_base(self._base, self._config, self._model.config, self._mesh)
    loading = self._loading
    if self._merges:
      loading = adapters.with_adapter(loading, self._config, self._model.config)
    return checkpoint_io.load_params(self.folder, self._model.config, self._shardings, loading)

  @property
  def _loading(self) -> checkpoint_io.Loading:
    """A reference keeps the dtype of its file."""
    score = adapters.drawing_score(self._model.config, self._config.seed)
    return checkpoint_io.Loading(dtype=None, together=processes.on_all, score=score)
