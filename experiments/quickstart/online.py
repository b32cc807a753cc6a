"""Aligns a real language model on its own samples, on this machine, and shows the result.

  QUICKSTART=online make quickstart        RLOO, rlhf(beta=0.05)
  QUICKSTART=online OBJECTIVE='dpo(beta=0.1)' make quickstart ARGS='--pairing=best_worst --workdir=runs/online_dpo'

Controlled sentiment generation, on-policy: in every round, SmolLM2-135M-Instruct draws answers to everyday prompts, a
gold reward (VADER sentiment) scores them, and one update trains a LoRA adapter on them. The model answers held-out
prompts before and after training. The folder --workdir receives

  summary.json   results, costs, settings and versions
  figure.png     gold reward, KL and entropy by round; gold reward before and after
  samples.md     answers before and after, side by side
  rollouts/      the answers of every round, with their scores and log-probabilities
  metrics.jsonl  the metrics of every round
  model/         the aligned model, in Hugging Face layout; its adapter is in adapter/

It trains as `alignjax train --prompts=...` does: the same command resumes an interrupted run, and other settings need
another --workdir.
"""

from collections.abc import Sequence
import json
import sys
from typing import Any

import jax
from rich import console as rich_console

from alignjax import exit_codes, objectives, rewards
from alignjax.commands import program, train
from alignjax.run import costs, training
from alignjax.run import settings as run_settings
from alignjax.training import metrics
from experiments.quickstart import command_line, figures, outputs, prompts, responses, shared


def run(settings: command_line.OnlineSettings, reward: str) -> dict[str, Any]:
  """Runs all stages.

  Args:
    settings: the command-line settings.
    reward: the expression of the gold reward.

  Returns:
    The contents of summary.json.

  Raises:
    ValueError: an objective or setting is invalid.
  """
  objective = objectives.parse(settings.objective)
  if settings.adapter and settings.compute_dtype != 'float32':
    raise ValueError(
      f'--compute_dtype={settings.compute_dtype}: adapters need float32; give --adapter= to train the whole model'
    )
  figures.drawing()
  train_prompts, held_out = prompts.split(settings.train_prompts, settings.held_out_prompts)
  console, clock = rich_console.Console(), costs.Clock()
  with clock('load'):
    setup = shared.set_up(settings, rewards.parse(reward), train_prompts + held_out)
    responder = setup.responder(settings.group, settings.samples)
  with clock('train'):
    if training.train(configure(setup, settings, reward, train_prompts)).preempted:
      sys.exit('quickstart: stopped by SIGTERM; the same command resumes the run')
    params = setup.load(setup.workdir / 'model')
  with clock('evaluate'), console.status('sampling answers to the held-out prompts'):
    key = jax.random.key(settings.seed)
    before, after = (responder.draw(side, held_out, key) for side in (setup.reference, params))
    kl = responder.kl(params, setup.reference, after)
  with clock('report'):
    records = metrics.read_jsonl(setup.workdir / 'metrics.jsonl')
    results = outputs.compare(before, after, kl) | {'rounds': [_round(record) for record in records]}
    title = outputs.title(objective.name, before, after)
    panels = [
      figures.reward_of_rounds(records),
      figures.kl_of_rounds(records),
      figures.entropy_of_rounds(records),
      figures.histogram(before.rewards, after.rewards),
    ]
    figures.save(setup.workdir / 'figure.png', title, panels)
    outputs.write_samples(setup, title, held_out, params)
  return outputs.report(setup, objective.name, results, clock, console)


def configure(
  setup: shared.Setup, settings: command_line.OnlineSettings, reward: str, texts: Sequence[str]
) -> run_settings.Config:
  """Writes the training prompts, and returns the configuration of the run: one update per round."""
  path = setup.workdir / 'prompts.jsonl'
  lines = [json.dumps({'prompt': responses.messages(text)}, ensure_ascii=False) for text in texts]
  path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
  return run_settings.Config(
    imports=settings.imports,
    model=str(setup.folder),
    prompts=(str(path),),
    reward=reward,
    objective=settings.objective,
    pairing=settings.pairing,
    samples=settings.samples,
    prompts_per_round=settings.prompts_per_round,
    max_new_tokens=settings.max_new_tokens,
    steps=settings.rounds,
    adapter=settings.adapter,
    optimizer=settings.optimizer,
    gradient_clip=settings.gradient_clip,
    seed=settings.seed,
    compute_dtype=setup.config.compute_dtype,
    chunk=responses.CHUNK,
    log_every=1,
    doctor='off',  # prompts and model are known to fit together
    watch=run_settings.WatchConfig(step=0),  # a laptop that is busy or asleep does not hang
    workdir=str(setup.workdir),
  )


def _round(record: metrics.Values) -> dict[str, float]:
  """The metrics of a round without its times, which are not reproducible."""
  return {name.removeprefix('rollout/'): value for name, value in record.items() if name.startswith('rollout/')}


PROGRAM = program.Program(
  'quickstart online',
  __doc__,
  command_line.OnlineSettings,
  lambda settings: run(settings, 'vader()') and exit_codes.DONE,
  codes={**dict.fromkeys(program.EXPECTED, exit_codes.REFUSED), **train.PROGRAM.codes},
)


if __name__ == '__main__':
  program.start(PROGRAM)
