"""Builds the source of an on-policy run, and the dataset of its first round, which the doctor examines."""

import dataclasses
import pathlib
from typing import Any

import optax

from alignjax.data.batches import batching
from alignjax.data.reading import rows
from alignjax.parallel import mesh as parallel_mesh
from alignjax.run import inputs, on_policy, preparation, settings
from alignjax.sampling import sampler
from alignjax.training import (
  joint,
  rollout_datasets,
  rollout_drawing,
  rollout_keeping,
  rollout_rows,
  rollouts,
  skipping,
  source,
)
from alignjax.training import rows as training_rows
from alignjax.training import state as training_state
from alignjax.training import step as training_step

LARGEST_GAP = {'float32': 0.02}  # nats per token between sampling and training; types without an entry have no limit


def configured(
  config: settings.Config, prepared: preparation.Prepared, folder: pathlib.Path, announce: inputs.Announce
) -> source.Source:
  """The source of a run: the policy's own responses if there are prompts, otherwise its training data. See `build`."""
  if prepared.prompts is None:
    return source.GrainSource(iter(prepared.training.batches))
  drawn = build(config, prepared, folder, announce)
  return joint.JointSource(source.GrainSource(iter(prepared.training.batches)), drawn) if prepared.joint else drawn


def first_round(
  config: settings.Config,
  prepared: preparation.Prepared,
  batches: source.Source,
  state: training_state.TrainState,
) -> preparation.Prepared:
  """The run as the doctor examines it: a purely on-policy one as one that trains on its first round."""
  if prepared.prompts is None or prepared.joint:
    return prepared
  return with_first_round(config, prepared, batches, state)


def build_step(
  config: settings.Config, prepared: preparation.Prepared, tx: optax.GradientTransformation
) -> skipping.Step:
  """The training step of a run."""
  if prepared.joint:
    both = joint.Objectives(prepared.objective, on_policy.objective_of(config, prepared.objective))
    layout = training_rows.Layout(config.chunk, config.microbatches, prepared.mesh)
    return joint.build_step(prepared.policy, both, tx, layout)
  return training_step.build_train_step(
    prepared.policy,
    prepared.objective,
    tx,
    chunk=config.chunk,
    microbatches=config.microbatches,
    mesh=prepared.mesh,
  )


def build(
  config: settings.Config, prepared: preparation.Prepared, folder: pathlib.Path, announce: inputs.Announce
) -> rollouts.RolloutSource:
  """Builds the source. Its `frozen` is set once the reference is loaded.

  Args:
    config: the configuration of the run.
    prepared: the result of `preparation.prepare`.
    folder: the folder of the rounds.
    announce: called with progress messages.
  """
  reward = on_policy.reward(config)
  ((prompt_size, _),) = prepared.prompts.split.batches.plan.buckets
  decoding = sampler.Decoding(
    config.samples, config.max_new_tokens, on_policy.strategy(config), tuple(sorted(prepared.tokenizer.end_ids))
  )
  layout = training_rows.Layout(config.chunk, mesh=prepared.mesh)
  gap = LARGEST_GAP.get(config.compute_dtype, float('inf'))

  def text_of(prompt: rows.Prompt, tokens: Any) -> str:
    return prepared.tokenizer.decode(tokens, continues=isinstance(prompt, str))

  made = rollout_drawing.Rollouts(
    prepared.prompts.questions,
    on_policy.rounds(config),
    rollout_drawing.Drawing(prepared.policy, decoding, prompt_size, layout, gap, announce),
    rollout_drawing.Scoring(reward, text_of, config.reward_seconds),
    folder,
    {
      'seed': config.seed,
      'reward': reward.name,
      'temperature': config.temperature,
      'top_k': config.top_k,
      'top_p': config.top_p,
      'model': config.model,
      'vocab_size': prepared.policy.model.config.vocab_size,
    },
  )
  share = batching.Share(*parallel_mesh.batch_shards_of(prepared.mesh))
  shaping = on_policy.shaping(config, on_policy.objective_of(config, prepared.objective))
  return rollouts.RolloutSource(made, shaping, share, _keeping(config, folder))


def _keeping(config: settings.Config, folder: pathlib.Path) -> rollout_keeping.Keeping | None:
  """Which of the rounds in the folder stay; None for all."""
  if not config.keep_rounds:
    return None
  return rollout_keeping.Keeping(config.keep_rounds, on_policy.rounds(config).updates, folder.parent / 'checkpoints')


def with_first_round(
  config: settings.Config,
  prepared: preparation.Prepared,
  batches: rollouts.RolloutSource,
  state: training_state.TrainState,
) -> preparation.Prepared:
  """Draws the first round, and returns the run with this round as its dataset. The doctor examines it."""
  first = batches.peek(state)
  shaping = dataclasses.replace(batches.shaping, ties='keep')  # the doctor looks for a signal in all pairs
  data = rollout_datasets.pack([batches.current(state)], shaping, batches.rollouts.folder)
  of_prompt = rollout_rows.PAIRINGS[config.pairing].rows(config.samples)
  spec = batching.BatchSpec(
    batches.rollouts.rounds.minibatch * of_prompt, seed=config.seed, buckets=prepared.training.batches.plan.buckets
  )
  planned = dataclasses.replace(batching.make_batches(data, spec), dataset=[first], steps=1, source=[first])
  split = inputs.Split(data, planned, True)
  return dataclasses.replace(prepared, training=split, prompts=prepared.prompts._replace(split=split))
