"""Rounds of rollouts as a dataset, for training on them again and for examining them."""

from collections.abc import Iterator, Sequence
import dataclasses
import pathlib

from alignjax import stats
from alignjax.data.reading import drops
from alignjax.data.tokens import dataset
from alignjax.training import rollout_files, rollout_rows


def pack(
  rounds: Sequence[rollout_files.Round], shaping: rollout_rows.Shaping, folder: pathlib.Path
) -> dataset.TokenDataset:
  """The rows of some rounds as a dataset, with scores and the log-probabilities of the policy that drew them.

  Rows that the shaping drops are left out and counted.

  Args:
    rounds: the rounds.
    shaping: forms rows of them.
    folder: the folder of the rounds, part of the origin of each example.

  Raises:
    RolloutError: no row is left.
  """
  report = drops.DropReport()
  examples = list(_examples(rounds, shaping, folder, report))
  if not examples:
    raise rollout_files.RolloutError(
      f'{folder}: no row is left: {report}. All responses to a prompt have equal scores, or were cut off: use another '
      'reward, draw more or longer responses, or give --pairing=all with an objective that reads scores'
    )
  return dataset.pack(examples, report)


def _examples(
  rounds: Sequence[rollout_files.Round],
  shaping: rollout_rows.Shaping,
  folder: pathlib.Path,
  report: drops.DropReport,
) -> Iterator[dataset.TokenExample]:
  shaping = dataclasses.replace(shaping, fields=('behaviour_logp', stats.BEHAVIOUR_TOKEN_LOGP))
  for drawn in rounds:
    rows = shaping.rows(drawn)
    cut = shaping.cut(drawn).reshape(-1)
    path = str(rollout_files.path(folder, drawn.number))
    for row, weight in enumerate(rows.weight):
      report.read += 1
      if cut[row]:
        report.drop('unfinished', f'{path}:{row + 1}', 'a response was cut off')
        continue
      if not weight:
        report.drop('tied_scores', f'{path}:{row + 1}', 'the responses have equal scores')
        continue
      lengths = rows.response_length[row]
      token_logp = rows.cached[stats.BEHAVIOUR_TOKEN_LOGP][row]
      yield dataset.TokenExample(
        prompt=rows.prompt[row, : rows.prompt_length[row]],
        responses=[tokens[:length] for tokens, length in zip(rows.response[row], lengths, strict=True)],
        label=float(rows.label[row]),
        weight=float(weight),
        score=rows.score[row],
        behaviour_logp=rows.behaviour_logp[row],
        behaviour_token_logp=[logp[:length] for logp, length in zip(token_logp, lengths, strict=True)],
        path=path,
        line=row + 1,
      )
