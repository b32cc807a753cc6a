"""Draws docs/figures/objectives.png: the same pairs, three objectives, and what each does to the two responses.

  python -m docs.pages.objectives_figure

Trains SmolLM2-135M-Instruct on eight pairs, once with each objective, in about ten minutes on two CPU cores. Every
update uses all pairs, so a curve shows the log-probabilities of the whole dataset.
"""

from collections.abc import Mapping, Sequence
import pathlib

from absl import app
import matplotlib
from matplotlib import figure as matplotlib_figure
import optax

import alignjax
from alignjax.run import notebook

FILE = pathlib.Path(__file__).parents[1] / 'figures' / 'objectives.png'
OBJECTIVES = ('dpo(beta=0.1)', 'dpo(beta=0.1) + 0.2 * sft()', 'apo_zero(beta=0.1)')
STEPS = 25
RATE = 1e-5
ANSWERS = {
  'Was the hotel any good?': ('The rooms were quiet and clean.', 'The rooms were small and dirty.'),
  'How was the soup?': ('It was warm and tasted fresh.', 'It was cold and tasted stale.'),
  'Did you enjoy the concert?': ('The band played well all night.', 'The band played badly all night.'),
  'How was the train ride?': ('We arrived on time and relaxed.', 'We arrived late and exhausted.'),
  'Is the new library nice?': ('It has wide windows and soft chairs.', 'It has tiny windows and hard chairs.'),
  'What did you think of the film?': (
    'The story kept me awake until the end.',
    'The story put me to sleep by the end.',
  ),
  'How is your new job?': ('My team helps me when I ask.', 'My team ignores me when I ask.'),
  'Was the museum worth it?': ('The guide knew a lot and made us laugh.', 'The guide knew little and made us wait.'),
}
STYLE = {
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.titlesize': 10,
  'axes.titlelocation': 'left',
  'axes.titlepad': 10,
  'font.size': 9,
}
SIDES = {'logp_chosen': ('chosen', 'tab:blue'), 'logp_rejected': ('rejected', 'tab:orange')}

History = Sequence[Mapping[str, float]]


def pairs() -> list[dict[str, object]]:
  """The rows of the dataset."""
  return [
    {'prompt': [{'role': 'user', 'content': question}], 'chosen': chosen, 'rejected': rejected}
    for question, (chosen, rejected) in ANSWERS.items()
  ]


def train(loaded: notebook.Loaded, steps: int = STEPS) -> dict[str, History]:
  """The metrics of each step, by objective."""
  examples = alignjax.read(pairs(), loaded)
  return {
    expression: alignjax.fit(
      loaded, expression, examples, steps=steps, optimizer=optax.adam(RATE), batch_size=len(examples)
    ).history
    for expression in OBJECTIVES
  }


def draw(histories: Mapping[str, History]) -> matplotlib_figure.Figure:
  """One panel for each objective: how far the log-probabilities of both responses have moved."""
  with matplotlib.rc_context(STYLE):
    figure = matplotlib_figure.Figure(figsize=(9, 2.7), layout='constrained')
    panels = figure.subplots(1, len(histories), sharex=True, sharey=True)
    for axes, (expression, history) in zip(panels, histories.items(), strict=True):
      updates = [row['step'] - 1 for row in history]  # a step reports the model before its update
      axes.axhline(0.0, color='0.8', linewidth=0.8)
      for name, (side, color) in SIDES.items():
        moved = [row[name] - history[0][name] for row in history]
        axes.plot(updates, moved, color=color)
        axes.annotate(side, (updates[-1], moved[-1]), (4, 0), textcoords='offset points', color=color, va='center')
      axes.set_title(expression, family='monospace')
      axes.set_xlabel('updates')
      axes.set_xlim(0, 1.3 * updates[-1])
      axes.set_xticks(range(0, updates[-1] + 1, 8))
    panels[0].set_ylabel('change of log π(response),\nnats')
  return figure


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
  draw(train(alignjax.load('smollm2'))).savefig(FILE, dpi=160)
  print(f'wrote {FILE}')


if __name__ == '__main__':
  app.run(main)
