"""Reads the prompts of an on-policy run, and checks that its settings fit together."""

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import json
from typing import Any, NamedTuple

from absl import logging

from alignjax import objectives, rewards, stats
from alignjax.data.batches import batching
from alignjax.data.reading import drops, rows, sources
from alignjax.data.tokens import encoding
from alignjax.parallel import mesh as parallel_mesh
from alignjax.run import fields, inputs, rollout_settings, settings
from alignjax.sampling import strategies
from alignjax.training import rollout_drawing, rollout_rows

MULTIPLE = 32  # prompts are padded to a multiple of this many tokens, as far as the model's positions allow
_FIELDS = ('behaviour_logp', 'behaviour_token_logp', 'score')


class Prompts(NamedTuple):
  """The prompts of a run."""

  split: inputs.Split  # their tokens, without responses; the batches are the shape of a round, not its order
  questions: Sequence[rollout_drawing.Question]
  fingerprint: str  # of their texts and of the columns that rewards read


def strategy(config: rollout_settings.RolloutSettings) -> strategies.Strategy:
  """The distribution that responses are drawn from: temperature first, then top-k and top-p."""
  chosen = [strategies.temperature(config.temperature)]
  if config.top_k:
    chosen.append(strategies.top_k(config.top_k))
  chosen.append(strategies.nucleus(config.top_p))
  return strategies.chain(*chosen)


def reward(config: rollout_settings.RolloutSettings) -> rewards.Reward:
  """The reward; 0 for every response if none is given, for objectives that read no score."""
  return _built(config.reward, frozenset(rewards.REWARDS.items())) if config.reward else rewards.Reward(())


@functools.lru_cache(maxsize=1)
def _built(text: str, known: frozenset) -> rewards.Reward:
  """Builds a reward once for the checks and for the run, because it may load a model.

  Args:
    text: the expression.
    known: the registered factories, so that one that is registered again counts.
  """
  del known
  return fields.naming('config.reward', rewards.parse, text)


def rounds(config: settings.Config) -> rollout_drawing.Rounds:
  """The size of a round and the updates on it."""
  prompts = config.prompts_per_round
  return rollout_drawing.Rounds(
    prompts,
    config.minibatch or prompts,
    config.inner_epochs,
    config.sampling_batch or prompts,
    config.refresh,
    config.seed,
  )


def shaping(config: rollout_settings.RolloutSettings, objective: objectives.Objective) -> rollout_rows.Shaping:
  """How scored responses become rows for an objective."""
  fields = objective.reads | {stat.name for stat in objective.needs}
  return rollout_rows.Shaping(config.pairing, config.ties, config.kl_in_score, config.ratio_reference, fields)


def objective_of(config: settings.Config, objective: objectives.Objective) -> objectives.Objective:
  """The objective of the responses drawn: `config.rollout_objective`, or else the only one."""
  if not config.rollout_objective:
    return objective
  return fields.naming('config.rollout_objective', objectives.parse, config.rollout_objective)


def reference_needs(config: settings.Config, objective: objectives.Objective) -> objectives.Objective:
  """The objective with the statistics of the reference that the run computes, for loading the reference.

  With refresh=1, the policy that draws a round is the reference. Otherwise the score may read it too.
  """
  needs = objective_of(config, objective).needs
  if config.refresh == 1:
    needs = frozenset(stat for stat in needs if not stat.reference)
  elif config.kl_in_score:
    needs |= {stats.reference_logp}
  return dataclasses.replace(objective, needs=needs | objective.needs if config.data else needs)


def check(config: settings.Config, objective: objectives.Objective) -> None:
  """Checks what needs no file: the reward, and whether the objective can be trained on the rows of a round.

  Raises:
    ValueError: the settings cannot be used together.
  """
  if not config.prompts:
    for name in ('reward', 'rollout_objective'):
      if getattr(config, name):
        raise ValueError(f'config.{name} = {getattr(config, name)!r} concerns responses to prompts: give --prompts too')
    return
  if config.data and not config.rollout_objective:
    raise ValueError(
      'config.data and config.prompts are both set: give --data to train on given responses, --prompts to train on '
      'responses of the policy, or --rollout_objective to train on both in each update'
    )
  if config.rollout_objective and not config.data:
    raise ValueError(
      f'config.rollout_objective = {config.rollout_objective!r} is trained beside --objective on --data: without data, '
      'give it as --objective'
    )
  objective = objective_of(config, objective)
  if config.pairing != 'all' or 'score' in objective.reads:
    settings.require(config, 'reward')
  reward(config)
  if config.reference_cache:
    raise ValueError(
      'config.reference_cache holds outputs for given responses: remove it, because --prompts trains on '
      'responses of the policy. The reference runs once per round'
    )
  rounds(config)
  pairing = rollout_rows.PAIRINGS[config.pairing]
  if config.samples < pairing.fewest:
    raise ValueError(
      f'config.pairing = {config.pairing!r} forms pairs from the responses to a prompt: draw '
      f'--samples={pairing.fewest} or more, not {config.samples}'
    )
  if stats.reads_final(objective.needs):
    raise ValueError(
      f'{objective.name} trains a reward model, which draws no responses: give --data in place of --prompts'
    )
  _check_rows(config, objective)
  if objective.on_policy:
    _check_on_policy(config, objective)


def _check_rows(config: settings.Config, objective: objectives.Objective) -> None:
  """Raises if an objective cannot be trained on rows of this form."""
  pairing = rollout_rows.PAIRINGS[config.pairing]
  if 'label' in objective.reads and config.pairing == 'all' and config.samples > 1:
    raise ValueError(
      f"{objective.name} reads which response is preferred, but config.pairing = 'all' keeps the responses in the "
      'order in which they were drawn: give --pairing=best_worst, two or all_pairs, or best for one response'
    )
  objectives.check_batch(objective, _FIELDS, pairing.responses(config.samples))
  distributions = stats.missing_reference(objective.needs, (stats.reference_logp.name,))
  if distributions and (config.refresh or config.ratio_reference == 'round'):
    raise ValueError(
      f'{objective.name} reads {", ".join(distributions)} of the reference, and only its log-probabilities are kept '
      'with a round: give --ratio_reference=initial and --refresh=0'
    )
  if config.eval_data and config.refresh and stats.missing_reference(objective.needs, ()):
    raise ValueError('config.eval_data cannot be evaluated with --refresh, because the reference changes: remove it')


def _check_on_policy(config: settings.Config, objective: objectives.Objective) -> None:
  """Raises if the responses of a row are not independent samples of the policy."""
  at_fault = ' and '.join(dict.fromkeys(leaf.label for leaf in objective.leaves if leaf.on_policy))
  if (config.temperature, config.top_k, config.top_p) != (1.0, 0, 1.0):
    raise ValueError(
      f'{at_fault} needs samples of the policy itself, but config.temperature = {config.temperature}, config.top_k = '
      f'{config.top_k} and config.top_p = {config.top_p} draw from another distribution: give --temperature=1 without '
      'top_k and top_p, or use a pairwise objective such as dpo() or rebel()'
    )
  as_drawn = config.pairing == 'all' or (config.pairing, config.samples, config.ties) == ('two', 2, 'keep')
  if not as_drawn:
    raise ValueError(
      f'{at_fault} needs all responses that were drawn, but config.pairing = {config.pairing!r} selects some: give '
      '--pairing=all, or for pairs --samples=2 --pairing=two --ties=keep'
    )
  if config.samples == 1:
    logging.warning(
      'config.samples = 1: %s has no baseline with one response per prompt, so its gradient is noisy: draw two or more',
      at_fault,
    )
  if rounds(config).updates > 1:
    logging.warning(
      '%s needs samples of the current policy, but there are %d updates on each round: after the first one, the '
      'responses are those of an earlier policy. Use clipped_policy_gradient(), or one update per round',
      at_fault,
      rounds(config).updates,
    )


def check_size(config: settings.Config, mesh: Any) -> None:
  """Raises a ValueError if an update does not divide into microbatches and shards."""
  shards = parallel_mesh.batch_shards(mesh)
  size = rounds(config)
  of_prompt = rollout_rows.PAIRINGS[config.pairing].rows(config.samples)
  for name, count, parts in (
    ('minibatch', size.minibatch * of_prompt, config.microbatches),
    ('sampling_batch', size.group, 1),
  ):
    least = shards * parts
    if count % least:
      raise ValueError(
        f'config.{name}: {count} rows must be a multiple of {least}, because '
        f'{parallel_mesh.describe_division(mesh, parts)}; change config.{name} or config.prompts_per_round'
      )


def read(config: settings.Config, reading: inputs.Reading) -> Prompts:
  """Reads and tokenises the prompts of a run."""
  report = drops.DropReport()
  found = sources.read_examples(
    config.prompts,
    report,
    on_error=config.on_error,
    ignore_fields=config.ignore_fields,
    unknown_columns=config.unknown_columns,
    default='prompts',
    kept=config.reward_fields,
  )
  examples = [
    rows.Example(each.prompt, (), weight=each.weight, path=each.path, line=each.line, fields=each.fields)
    for each in found
  ]
  limits = encoding.Limits(config.max_prompt, max(config.max_new_tokens, 2), reading.vocab_size)
  data = encoding.tokenize(examples, reading.tokenizer, limits, report, on_error=config.on_error)
  reading.announce(f'{", ".join(config.prompts)}: {report}')
  of_origin = {each.origin: each for each in examples}
  kept = [of_origin[data.origin(i)] for i in range(len(data))]
  questions = [
    rollout_drawing.Question(each.prompt, data[i].prompt, each.weight, each.fields) for i, each in enumerate(kept)
  ]
  shape = _prompt_size(data.prompt_length.max(), config, reading.max_positions), config.max_new_tokens
  spec = batching.BatchSpec(config.prompts_per_round, seed=config.seed, buckets=[shape])
  text = json.dumps([[each.prompt, dict(each.fields)] for each in kept], sort_keys=True, default=str)
  digest = hashlib.sha256(text.encode('utf-8', 'backslashreplace')).hexdigest()
  return Prompts(inputs.Split(data, batching.make_batches(data, spec), True), questions, digest)


def _prompt_size(longest: int, config: settings.Config, max_positions: int | None) -> int:
  """The number of tokens that prompts are padded to."""
  size = -(-int(longest) // MULTIPLE) * MULTIPLE
  if max_positions is None:
    return size
  room = max_positions - config.max_new_tokens + 1
  if longest > room:
    raise ValueError(
      f'config.max_new_tokens = {config.max_new_tokens}: a prompt of {longest} tokens and its response have more than '
      f'the {max_positions} positions of the model; lower it, or config.max_prompt'
    )
  return min(size, room)


def steps(config: settings.Config, count: int) -> int:
  """Updates of a run without config.steps: rounds that see each of `count` prompts `epochs` times, or more often."""
  size = rounds(config)
  return -(-count * (config.epochs or 1) // size.prompts) * size.updates
