"""Reads samples: responses to the same prompts, to be shown side by side."""

from collections.abc import Iterator, Mapping
import json
import pathlib
import re
from typing import Any

from alignjax.report import facts

MOST_PROMPTS = 8
MOST_RESPONSES = 4  # of one model to a prompt
MOST_COLUMNS = 6
MOST_BYTES = 2**24  # read of a file of samples
MOST_ROUNDS = 16  # the first ones, searched for prompts of the last one

Drawn = dict[str, tuple[facts.Response, ...]]  # responses by prompt


def of_rollouts(folder: pathlib.Path, label: str) -> tuple[facts.Samples, ...]:
  """The responses of the last round, beside the first ones to the same prompts, or those of the first round."""
  if not folder.is_dir():
    return ()
  rounds = sorted(path for path in folder.iterdir() if re.fullmatch(r'round_\d+\.jsonl', path.name))
  if not rounds:
    return ()
  last, early = _responses(rounds[-1]), {}
  for path in rounds[:MOST_ROUNDS] if len(rounds) > 1 else ():
    if path != rounds[-1]:
      early = {**_responses(path), **early}
  both = [prompt for prompt in last if prompt in early][:MOST_PROMPTS]
  title = f'{label}: on-policy samples'
  if both:
    rows = tuple(facts.Row(prompt, (_most(early[prompt]), _most(last[prompt]))) for prompt in both)
    return (facts.Samples(title, ('when first drawn', 'in the last round'), rows),)
  found = {'first round': _responses(rounds[0]), 'last round': last} if len(rounds) > 1 else {'first round': last}
  return tuple(
    facts.Samples(
      f'{title}, {name}', ('responses',), tuple(facts.Row(prompt, (_most(each),)) for prompt, each in _first(drawn))
    )
    for name, drawn in found.items()
  )


def _first(drawn: Drawn) -> list[tuple[str, tuple[facts.Response, ...]]]:
  return list(drawn.items())[:MOST_PROMPTS]


def _most(responses: tuple[facts.Response, ...]) -> tuple[facts.Response, ...]:
  return responses[:MOST_RESPONSES]


def drawn(folder: pathlib.Path) -> Drawn:
  """The responses in the first file samples*.jsonl of a folder, as `alignjax sample` writes it; empty without one."""
  found = sorted(folder.glob('samples*.jsonl'))
  return _responses(found[0]) if found else {}


def beside(runs: Mapping[str, Drawn]) -> facts.Samples | None:
  """The responses that runs have drawn to the same prompts, by the names of the runs; None if there are none."""
  runs = {name: each for name, each in list(runs.items())[:MOST_COLUMNS] if each}
  if not runs:
    return None
  count = {prompt: sum(prompt in each for each in runs.values()) for each in runs.values() for prompt in each}
  prompts = sorted(count, key=lambda prompt: -count[prompt])[:MOST_PROMPTS]
  rows = tuple(facts.Row(prompt, tuple(_most(each.get(prompt, ())) for each in runs.values())) for prompt in prompts)
  return facts.Samples('Samples in the folders of the runs', tuple(runs), rows)


def _responses(path: pathlib.Path) -> Drawn:
  found: Drawn = {}
  for row in _rows(path):
    if 'prompt' in row and isinstance(row.get('response'), str):
      prompt = text_of(row['prompt'])
      found[prompt] = (*found.get(prompt, ()), facts.Response(row['response'], _number(row.get('score'))))
  return found


def of_evaluation(path: pathlib.Path, labels: Mapping[str, str]) -> facts.Samples | None:
  """The samples of an evaluation; None without any.

  Args:
    path: its samples.jsonl.
    labels: the models to show by their names.
  """
  names = list(labels)[:MOST_COLUMNS]
  rows = []
  for row in _rows(path):
    responses = row.get('responses')
    if isinstance(responses, dict) and len(rows) < MOST_PROMPTS:
      cells = [responses.get(name) for name in names]
      rows.append(facts.Row(text_of(row.get('prompt')), tuple(map(_cell, cells))))
  return (
    facts.Samples('Samples of the evaluation', tuple(labels[name] for name in names), tuple(rows)) if rows else None
  )


def _cell(value: Any) -> tuple[facts.Response, ...]:
  if not isinstance(value, dict) or not isinstance(value.get('response'), str):
    return ()
  return (facts.Response(value['response'], _number(value.get('reward'))),)


def _rows(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """The objects in a file of JSON lines; others are left out."""
  if not path.is_file():
    return
  with path.open('rb') as stream:
    for line in stream.readlines(MOST_BYTES):
      try:
        row = json.loads(line)
      except (ValueError, RecursionError):
        continue
      if isinstance(row, dict):
        yield row


def _number(value: Any) -> float | None:
  return float(value) if isinstance(value, int | float) else None


def text_of(prompt: Any) -> str:
  """A prompt as text: messages with their roles."""
  if isinstance(prompt, str):
    return prompt
  if isinstance(prompt, list) and all(isinstance(each, dict) for each in prompt):
    return '\n'.join(f'{each.get("role", "")}: {each.get("content", "")}' for each in prompt)
  return json.dumps(prompt, ensure_ascii=False)
