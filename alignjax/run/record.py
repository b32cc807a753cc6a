"""Records of a run: its identity in checkpoints, its configuration on disk, and the summary that it prints."""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any

from absl import logging
import jax

from alignjax import files
from alignjax.data.batches import order, packing
from alignjax.models import fingerprints
from alignjax.optim import schedules
from alignjax.run import (
  adapters,
  fields,
  first_start,
  on_policy,
  preparation,
  rollout_settings,
  settings,
  user_code,
)
from alignjax.training import checkpoint


def identity(config: settings.Config, prepared: preparation.Prepared) -> dict[str, Any]:
  """The settings and inputs that must not change when a run is resumed."""
  values = settings.flat(config)
  same = {name: values[name] for name, kind in settings.on_resume().items() if kind == settings.IDENTITY}
  if prepared.prompts is None:
    same = {name: value for name, value in same.items() if name not in _OF_ROLLOUTS}
  else:
    same['prompts_fingerprint'] = prepared.prompts.fingerprint
    if read := on_policy.reward(config).fingerprints:
      same['reward_models'] = read
  same['buckets'] = prepared.training.batches.plan.identity  # includes buckets chosen from the data
  same['data_fingerprint'] = prepared.training.data.fingerprint
  template = prepared.tokenizer.template
  if template is not None and template.date is not None:
    same[first_start.IDENTITY] = template.date.isoformat()
  folders = {'model': config.model}
  if prepared.reference.needed:
    folders['reference'] = prepared.reference.folder
  if config.adapter_from:
    folders['adapter_from'] = config.adapter_from
  if prepared.recipe.needs_delta:
    folders['base_model'] = config.base_model
  same |= {f'{name}_fingerprint': fingerprints.of(folder) for name, folder in folders.items()}
  if config.imports:
    same['imports'] = user_code.fingerprints(config.imports)
  return same


_OF_ROLLOUTS = frozenset(leaf.name for leaf in fields.leaves(rollout_settings.RolloutSettings))
FINGERPRINT_DIGITS = 16  # of the data, in config.accept_data


def accepted(config: settings.Config, identity: Mapping[str, Any]) -> frozenset[str]:
  """The entries of the identity that the user allows to change on resume.

  Raises:
    ValueError: config.accept_data names other data than config.data holds.
  """
  now = identity['data_fingerprint'][:FINGERPRINT_DIGITS]
  if not config.accept_data:
    return frozenset()
  if config.accept_data != now:
    raise ValueError(
      f'config.accept_data = {config.accept_data!r}: the training data has the fingerprint {now!r}. Check that '
      'config.data is what you mean to accept'
    )
  return _of_the_data(config)


def _of_the_data(config: settings.Config) -> frozenset[str]:
  """The entries of the identity that follow from the data alone."""
  return frozenset({'data_fingerprint', 'prompts_fingerprint', *([] if config.buckets else ['buckets'])})


def explain(error: checkpoint.MismatchError, now: Mapping[str, Any], config: settings.Config) -> ValueError:
  """Explains why a run cannot be resumed: edited user code, other data or settings, or (most likely) another optimizer.

  Args:
    error: the error that `Checkpoints.restore` raised.
    now: the identity of the run that resumes.
    config: its configuration.
  """
  if error.identity is not None:
    saved, imports = error.identity.get('imports', {}), now.get('imports', {})
    edited = [name for name in imports if saved.get(name, imports[name]) != imports[name]]
    if edited:
      return ValueError(
        f'{", ".join(edited)} changed since this run was started, and the training depends on it: restore it, or '
        'choose another workdir'
      )
    saved, models = error.identity.get('reward_models', {}), now.get('reward_models', {})
    changed = [name for name in models if saved.get(name, models[name]) != models[name]]
    if changed:
      return ValueError(
        f'{", ".join(changed)}: its model, its reward.json or its Python file changed since this run was started, so '
        'scores would change too: restore it, or choose another workdir'
      )
    names = error.identity.keys() | now.keys()
    differ = {name for name in names if error.identity.get(name) != _as_json(now.get(name))}
    if 'data_fingerprint' in differ - {'jax_threefry_partitionable'} <= _of_the_data(config):
      return ValueError(
        f'{error}. If you have changed the data on purpose, such as to repair or remove an example, '
        f'--accept_data={now["data_fingerprint"][:FINGERPRINT_DIGITS]} resumes the run with the new data'
      )
    if differ - {'base_model_fingerprint', 'jax_threefry_partitionable'}:  # the former follows from the optimizer
      return error
  before, optimizer = error.config.get('optimizer'), config.optimizer
  if before == optimizer:
    return error
  return ValueError(
    f'config.optimizer was {before!r} and is now {optimizer!r}. Its numbers may change when a run resumes, but not '
    f'the state that it keeps: {error}'
  )


def _as_json(value: Any) -> Any:
  return json.loads(json.dumps(value))


def warn_of_changes(restored: checkpoint.Restored, config: settings.Config) -> None:
  """Logs what changed since the run was started, if it affects its result: accepted data, and settings."""
  if restored.changed:
    logging.warning(
      '%s. From step %d on, this run takes the new data, in the order that the new data gives',
      '; '.join(restored.changed),
      restored.step + 1,
    )
  before, now = settings.flat(settings.saved(restored.config)), settings.flat(config)
  before['eval_data'] = tuple(restored.config['eval_data'])  # the only paths whose change affects the curves
  for name, kind in settings.on_resume().items():
    if kind == settings.WARNS and before[name] != now[name]:
      logging.warning('config.%s was %r and is now %r: the curves mix two settings', name, before[name], now[name])


def write_config(workdir: pathlib.Path, config: settings.Config) -> None:
  """Writes config.json, which --config reads again."""
  if jax.process_index() == 0:
    files.replace(workdir / 'config.json', (json.dumps(dataclasses.asdict(config), indent=2) + '\n').encode())


def summary(config: settings.Config, prepared: preparation.Prepared, steps: int) -> str:
  """Formats a summary of the run in a few lines."""
  recipe, mesh, plan = prepared.recipe, prepared.mesh, prepared.training.batches.plan
  warmup = schedules.warmup_steps(config.warmup, steps)
  count = sum(leaf.size for leaf in jax.tree.leaves(prepared.shapes))
  axes = ', '.join(f'{axis}={size}' for axis, size in mesh.shape.items())
  delta = f', delta to {config.base_model} in {config.delta_dtype}' if recipe.needs_delta else ''
  return '\n'.join(
    [
      f'objective  {config.objective}',
      *([f'imports    {", ".join(config.imports)}'] if config.imports else []),
      f'model      {config.model}, {count:,} parameters, computed in {config.compute_dtype}',
      *([f'start      with the adapter {config.adapter_from}'] if config.adapter_from else []),
      *([f'adapter    {adapters.describe(config, prepared.trained)}'] if config.adapter else []),
      f'optimizer  {config.optimizer}{delta}',
      f'devices    {mesh.size} x {mesh.devices.flat[0].device_kind}, mesh {axes}, processes {jax.process_count()}',
      *(_rollouts(config, prepared) if prepared.prompts else []),
      *(_batches(config, plan) if config.data else []),
      f'steps      {steps}, learning rate {recipe.learning_rate:g} {config.schedule}, warm-up {warmup} steps',
    ]
  )


def _batches(config: settings.Config, plan: order.Plan | packing.Plan) -> list[str]:
  return [f'batches    {config.batch_size} prompts{_microbatches(config)}, {plan.description}']


def _microbatches(config: settings.Config) -> str:
  return f' in {config.microbatches} microbatches' if config.microbatches > 1 else ''


def _rollouts(config: settings.Config, prepared: preparation.Prepared) -> list[str]:
  size, split = on_policy.rounds(config), prepared.prompts.split
  return [
    f'reward     {config.reward or "none"}',
    f'rollouts   {config.samples} responses to each of {size.prompts} prompts a round, {len(split.data)} in all, shape '
    f'{split.batches.plan.buckets[0]}, pairing {config.pairing}; {size.updates} updates a round of {size.minibatch} '
    f'prompts{_microbatches(config)}',
    *([f'           trained by {config.rollout_objective}, beside the data'] if config.rollout_objective else []),
  ]
