"""Trains on the rollouts of an earlier run: --data=rollouts:runs/a/rollouts."""

from collections.abc import Sequence

from alignjax import objectives, paths
from alignjax.run import inputs, on_policy, settings
from alignjax.training import rollout_datasets, rollout_files

PREFIX = 'rollouts:'


def named(sources: Sequence[str]) -> bool:
  """Whether data expressions name rollouts.

  Raises:
    ValueError: some do and some do not.
  """
  found = [source.startswith(PREFIX) for source in sources]
  if any(found) and not all(found):
    raise ValueError(f'{", ".join(sources)}: rollouts cannot be mixed with other data; give one of the two')
  return any(found)


def read(
  sources: Sequence[str],
  config: settings.Config,
  reading: inputs.Reading,
  objective: objectives.Objective,
  *,
  training: bool,
) -> inputs.Split:
  """Reads all rounds of some folders, and forms rows of them by `config.pairing`, `ties` and `kl_in_score`.

  Raises:
    RolloutError: a round is missing or damaged.
    ValueError: the tokens are those of another vocabulary.
  """
  folders = [paths.path(source.removeprefix(PREFIX)) for source in sources]
  rounds = [drawn for folder in folders for drawn in rollout_files.read_all(folder)]
  for drawn in rounds:
    if drawn.settings.get('vocab_size') != reading.vocab_size:
      raise ValueError(
        f'{", ".join(sources)}: the tokens are those of {drawn.settings.get("model")} with a vocabulary of '
        f'{drawn.settings.get("vocab_size")}, but config.model has {reading.vocab_size}'
      )
  data = rollout_datasets.pack(rounds, on_policy.shaping(config, objective), folders[0])
  reading.announce(f'{", ".join(sources)}: {len(rounds)} rounds, {data.report}')
  return inputs.planned(data, config, reading, training=training)
