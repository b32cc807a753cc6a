"""Labels prompts: draws responses, scores them, and forms rows of training data from them.

All responses are kept beside the rows, in a file that is written while they are drawn. A run that was interrupted reads
it and continues with the next prompt. The draws for a prompt depend on the seed and its number, so the files do not
depend on interruptions, batch size or devices.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import json
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from alignjax import rewards
from alignjax.data.reading import json_rows, rows
from alignjax.sampling import text
from alignjax.training import processes, rollout_rows


class Answer(NamedTuple):
  """A drawn response with its score."""

  response: str
  tokens: int  # the end token included
  finished: bool
  behaviour_logp: float  # nats, under the distribution that it was drawn from
  score: float
  parts: Mapping[str, float]  # of the reward, by name


class Forming(NamedTuple):
  """How scored responses become rows.

  Attributes:
    pairing: a name in `rollout_rows.PAIRINGS`.
    ties: 'drop' or 'keep' pairs of equal scores, the latter with the label 1/2.
    unfinished: 'keep' or 'drop' responses that were cut off.
    behaviour_logp: whether rows have this column, and only finished responses, whose tokens are those of training.
  """

  pairing: str
  ties: str = 'drop'
  unfinished: str = 'keep'
  behaviour_logp: bool = False

  @property
  def form(self) -> str:
    """The form in `sources.FORMS` that reads the rows."""
    return {'all': 'scored', 'best': 'supervised'}.get(self.pairing, 'preference')

  def formed(self, prompt: rows.Prompt, answers: Sequence[Answer]) -> Iterator[dict[str, Any]]:
    """Yields the rows of a prompt."""
    filled = [each for each in answers if each.response.strip()]  # training refuses empty responses
    if self.form == 'scored' and len(filled) < len(answers):
      return  # all rows have the same number of responses
    answers = filled
    if self.unfinished == 'drop' or self.behaviour_logp:
      answers = [each for each in answers if each.finished]
    pairing = rollout_rows.PAIRINGS[self.pairing]
    if len(answers) < pairing.fewest:
      return
    score = np.array([[each.score for each in answers]], np.float64)
    index, tied = pairing.choose(score, np.ones_like(score, bool))
    for chosen, equal in zip(index[0], tied[0], strict=True):
      row = self._row(prompt, [answers[i] for i in chosen], bool(equal))
      if row is not None:
        yield row

  def _row(self, prompt: rows.Prompt, chosen: Sequence[Answer], equal: bool) -> dict[str, Any] | None:
    texts = [each.response for each in chosen]
    row = json_rows.of_prompt(prompt)
    if self.form == 'supervised':
      return row | {'completion': texts[0]}
    if self.form == 'scored':
      row |= {'responses': texts, 'scores': [each.score for each in chosen]}
    elif texts[0] == texts[1] or (equal and self.ties == 'drop'):
      return None
    else:
      row |= {'chosen': texts[0], 'rejected': texts[1], 'score': [each.score for each in chosen]}
      row |= {'label': 0.5} if equal else {}
    return row | ({'behaviour_logp': [each.behaviour_logp for each in chosen]} if self.behaviour_logp else {})


class Store:
  """The file of all responses: a first line that identifies how they are made, then one line for each prompt.

  Args:
    path: the file. While it is written, its name ends with `.partial`.
    identity: what must be equal to continue, in JSON types.
  """

  def __init__(self, path: pathlib.Path, identity: Mapping[str, Any]):
    self.path, self._identity = path, json.loads(json.dumps(identity))
    self._partial = path.with_name(path.name + '.partial')

  def start(self) -> int:
    """Creates or continues the partial file, after removing a line that was cut short. Returns its prompts.

    Raises:
      ValueError: the file was written with other settings.
    """
    if not self._partial.exists():
      self._partial.write_text(_line({'made_by': self._identity}), encoding='utf-8')
      return 0
    content = self._partial.read_bytes()
    whole = content[: content.rfind(b'\n') + 1]
    lines = whole.splitlines()
    found = json.loads(lines[0])['made_by'] if lines else self._identity
    if changed := [name for name in self._identity if found.get(name) != self._identity[name]]:
      name = changed[0]
      raise ValueError(
        f'{self._partial}: was begun with {name} = {found.get(name)!r}, not {self._identity[name]!r}; give the same '
        'settings to continue, or remove the file to start again'
      )
    if not lines:
      whole = _line({'made_by': self._identity}).encode()
    if whole != content:
      self._partial.write_bytes(whole)
    return max(0, len(lines) - 1)

  def append(self, prompt: rows.Prompt, answers: Sequence[Answer]) -> None:
    """Writes the responses to the next prompt to the disk."""
    line = _line(json_rows.of_prompt(prompt) | {'responses': [each._asdict() for each in answers]})
    with self._partial.open('ab') as stream:
      stream.write(line.encode())
      stream.flush()
      os.fsync(stream.fileno())

  def finish(self) -> None:
    os.replace(self._partial, self.path)

  def answers(self) -> Iterator[list[Answer]]:
    """Yields the responses to each prompt."""
    with self._partial.open(encoding='utf-8') as stream:
      next(stream)
      for line in stream:
        yield [Answer(**each) for each in json.loads(line)['responses']]


def _line(entries: Mapping[str, Any]) -> str:
  return json.dumps(entries, ensure_ascii=False) + '\n'


class Counts(NamedTuple):
  """What came of the prompts."""

  prompts: int
  rows: int
  responses: int
  finished: float  # share
  score: float  # mean


def label(
  model: text.Loaded,
  options: text.Options,
  prompts: Sequence[rows.Example],
  reward: rewards.Reward,
  store: Store,
) -> None:
  """Draws and scores responses to all prompts that the store does not have. All processes call it.

  Raises:
    ValueError: the store belongs to other settings.
    RewardError: a reward fails.
  """
  done = int(processes.from_first(lambda alive: str(store.start())))
  samples = options.samples
  drawn = model.sample([each.prompt for each in prompts[done:]], options, first=done)
  groups = _groups(drawn, samples * options.batch_size)
  for group in groups:
    first = done
    asked = prompts[first : first + len(group) // samples]
    scored = [
      rewards.Sample(asked[i // samples].prompt, each.response, each.tokens, each.finished, asked[i // samples].fields)
      for i, each in enumerate(group)
    ]
    found = _scores(reward, scored, first * samples)
    done += len(asked)
    if jax.process_index() == 0:
      answers = [
        Answer(
          each.response,
          each.tokens,
          each.finished,
          each.strategy_logp,
          float(found.total[i]),
          {name: float(values[i]) for name, values in found.parts.items()},
        )
        for i, each in enumerate(group)
      ]
      for i, each in enumerate(asked):
        store.append(each.prompt, answers[i * samples : (i + 1) * samples])


def _scores(reward: rewards.Reward, samples: Sequence[rewards.Sample], first: int) -> rewards.Scores | None:
  """Scores on process 0, or on all processes for a reward that needs them; None on the others."""
  if reward.collective:
    return processes.on_all(lambda: reward.scores(samples, first=first))
  found: list[rewards.Scores] = []

  def score(alive: Any) -> str:
    found.append(reward.scores(samples, first=first, tick=alive))
    return ''

  processes.from_first(score)
  return found[0] if found else None


def form(store: Store, prompts: Iterable[rows.Example], forming: Forming, out: pathlib.Path) -> Counts:
  """Forms the rows of all prompts and writes them; then both files are complete. Process 0 calls it."""
  partial = out.with_name(out.name + '.partial')
  rows_written, answers_seen, finished, score = 0, 0, 0, 0.0
  count = 0
  with partial.open('w', encoding='utf-8') as stream:
    for each, answers in zip(prompts, store.answers(), strict=True):
      count += 1
      answers_seen += len(answers)
      finished += sum(answer.finished for answer in answers)
      score += sum(answer.score for answer in answers)
      for row in forming.formed(each.prompt, answers):
        stream.write(_line(row))
        rows_written += 1
  if not rows_written:
    partial.unlink()
    raise ValueError(
      f'no row can be formed from the responses in {store.path}.partial: all scores are tied, or too few responses are '
      'finished; draw more --samples, or give --ties=keep'
    )
  os.replace(partial, out)
  store.finish()
  return Counts(count, rows_written, answers_seen, finished / answers_seen, score / answers_seen)


def _groups(responses: Iterable[text.Response], size: int) -> Iterator[list[text.Response]]:
  """Collects responses, those of a batch together, and yields each group when it is complete."""
  group: list[text.Response] = []
  for each in responses:
    group.append(each)
    if len(group) == size:
      yield group
      group = []
  if group:
    yield group
