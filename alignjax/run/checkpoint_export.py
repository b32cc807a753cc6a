"""Exports a run from its checkpoint on one machine, without the data and whatever the mesh of the run was."""

import contextlib
import dataclasses
import functools
import pathlib

import jax
import numpy as np

from alignjax import objectives, paths
from alignjax.models import checkpoint_io, fingerprints, transformer
from alignjax.optim import recipes, schedules
from alignjax.parallel import mesh as parallel_mesh
from alignjax.run import (
  adapters,
  exports,
  loaded,
  locations,
  model_card,
  places,
  reward_scales,
  settings,
  user_code,
)
from alignjax.training import checkpoint, forward, owner, placement, saved, step_folders
from alignjax.training.policy import Policy
from alignjax.types import Array


def export(workdir: str, to: str, step: int | None = None, model: str = '') -> None:
  """Writes what the run would have exported at a checkpoint. See `exports.export`.

  Args:
    workdir: the folder of the run.
    to: the folder in which model/ and so on are written.
    step: the step of the checkpoint; None: the newest.
    model: the folder of the model that the run started from, if it has been moved.

  Raises:
    ValueError: there is no such checkpoint, it cannot be used, or the model has changed.
    OwnerError: a run owns the work directory.
    ExportError: a folder cannot be written.
  """
  folder = paths.path(workdir) / 'checkpoints'
  found = step_folders.steps(folder)
  if not found:
    raise ValueError(f'{workdir}: holds no checkpoint of a run, so there is nothing to export')
  if step is not None and step not in found:
    raise ValueError(f'{workdir}: holds no checkpoint of step {step}, only of {", ".join(map(str, found))}')
  with owner.owned(paths.path(workdir)):
    try:
      read = saved.read(folder, found[-1] if step is None else step)
      with places.on_disk(_config(read, model)) as config:
        folder = locations.resolve(config.model, '--model')
        records = exports.Records(
          functools.partial(model_card.render, read.content['config'], paths.path(workdir)),
          functools.partial(reward_scales.after, paths.path(workdir)),
        )
        _export(read, dataclasses.replace(config, model=folder), paths.path(to), records)
    except checkpoint.CorruptCheckpointError as error:
      others = [other for other in found if other != (found[-1] if step is None else step)]
      hint = f'. --step={others[-1]} exports another checkpoint' if others else ''
      raise ValueError(f'{error}{hint}') from error


def _config(read: saved.Saved, model: str) -> settings.Config:
  """The configuration of the run, without the files that are not needed."""
  values = read.content['config']
  return dataclasses.replace(settings.saved(values), model=model or values['model'], imports=tuple(values['imports']))


def _export(read: saved.Saved, config: settings.Config, to: pathlib.Path, records: exports.Records) -> None:
  fingerprint = _check_model(config, read)
  user_code.load(config.imports)
  recipe = recipes.parse_optimizer(config.optimizer)
  objective = objectives.parse(config.objective)
  model_config = checkpoint_io.load_config(config.model, output=forward.output(objective.needs))
  policy = Policy(transformer.build(model_config), adapters.configured(config, recipe, model_config))
  mesh = parallel_mesh.make_mesh()
  schedule = schedules.build_schedule('constant', recipe.learning_rate, steps=1, warmup=0)  # not part of the state
  tx = recipes.build_optimizer(recipe, schedule, config.gradient_clip)
  like = placement.abstract_state(mesh, policy.trained_shapes(), tx, jax.random.key(config.seed))
  state = read.deferred(like)

  def compare(path: str, leaf: Array) -> None:
    weights = loaded.Loaded(model_config)
    weights.add_leaf('base', config.model, path, leaf)
    weights.check(read.content.get('loaded', {}), read.content['config'])

  with contextlib.ExitStack() as stack:
    exports.export(
      to,
      exports.Origin(config.model, fingerprint, policy, recipe.averages, records),
      dataclasses.replace(state, step=np.int32(read.step)),
      adapters.deferred_base(policy.adapter, config, model_config, mesh, stack, compare),
      print,
      saved.fingerprint,
    )


def _check_model(config: settings.Config, read: saved.Saved) -> str:
  """Checks that the model that the run started from is unchanged, and returns its fingerprint."""
  fingerprint = fingerprints.of(config.model)
  if fingerprint != read.content['identity']['model_fingerprint']:
    raise ValueError(
      f'{config.model}: has changed since the run was started. Restore it, or name an unchanged copy with --model=...'
    )
  return fingerprint
