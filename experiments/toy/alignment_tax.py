"""What does alignment cost, and does online merging reduce the cost? A study that takes 17 minutes on two cores.

  python -m experiments.toy.alignment_tax

A byte-level transformer with a third of a million parameters is trained in three stages. It is pretrained on docstrings
(base). It is fine-tuned on a skill that docstrings do not teach, mixed with rehearsal text and a writing task:
continuing a docstring (fine-tuned). It is aligned with DPO on pairs of its own continuations, with noisy labels from a
gold reward, the fraction of vowels. The study measures two taxes: the loss on held-out questions of the skill, and on
held-out docstrings without the marker of the writing task. See `alignment_tax_world`.

  Adam, KL penalty, EMA, ChildTuning   DPO with beta = 0.1; with other betas; averages along Adam's runs; child_tuning
  OnTIES, OnDARE                       Adam with online merging as in the paper, tau = fine-tuned - base
  linear, TIES, DARE                   Adam's final models merged with the fine-tuned model, relative to the base
  Adam + tau                           our control: adds to Adam's models as much tau as OnDARE has added by then

The question, the contenders and the search over learning rates follow Lu et al. 2024 (2405.17931). All contenders
search the same number of rates, divided by the reserve p for OnDARE and by sqrt(p) for OnTIES and ChildTuning to
compensate for dropped entries. The scale, tasks, data and small grids are ours. So is the reward, which is exact and
not judged, and drift instead of alpha: the fraction of tau by which the kept entries (OnTIES), or all entries on
average (OnDARE), move in a run, drift = updates * alpha (* p). Results at this scale may not hold for large models.

The selection rule was fixed beforehand. Among the evaluations of a contender whose mean validation reward over seeds
exceeds that of the fine-tuned model by `rise`, it picks the one with the lowest validation skill loss. The table and
the figure show test values, from other questions and prompts. Base loss is not used for selection. `rise`, the rates
and the construction of pairs come from trial runs with another base and other seeds, so that plain Adam pays a visible
tax and no policy writes only vowels. Losses are compared at this reward, on the best curve of each contender.

Seeds change the order of fine-tuning, pairs, labels, the order of alignment, and masks, but share the base. Errors are
standard errors over seeds. Writes figure.png, table.md and summary.json (every evaluation) to --workdir.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import console as rich_console

from alignjax import merging, objectives, optim, paths, stats
from alignjax.commands import program
from alignjax.models import base as models
from alignjax.models import transformer
from alignjax.run import costs, fields
from alignjax.training import state
from alignjax.types import Array, Params, PreferenceBatch
from experiments.toy import alignment_tax_report as report
from experiments.toy import alignment_tax_world as world
from experiments.toy import descent

FIRST_SEED = 101  # the grids and the target were chosen with other, smaller seeds
BETA, EVALUATIONS = 0.1, 4  # beta of DPO unless the contender sets its own; evaluations per run
SKILL_ROWS, WRITING_ROWS = 0.5, 0.25  # fractions of the fine-tuning batch; the rest is base text


@dataclasses.dataclass(frozen=True)
class Setting:
  """The size of the study and the hyperparameter grids."""

  seeds: int = 3
  files: int | None = None  # number of standard library files to read; None for all
  width: int = 128
  layers: int = 2
  window: int = 64  # bytes per window of base text
  pretraining: int = 900  # updates
  tuning: int = 1400  # updates; with half as many, moving along tau would amount to more fine-tuning
  batch: int = 64  # windows or answers per update of pretraining and fine-tuning
  questions: int = 12_000  # training questions of the skill
  updates: int = 96  # updates of an alignment run
  pairs: int = 16  # pairs per update
  sharpness: float = 20.0  # sharpness of preferences: a reward difference of 0.05 gives odds of e
  held_out: int = 128  # questions, prompts and windows for validation, and the same number for testing
  samples: int = 4  # responses per prompt; the best and the worst form a pair
  rise: float = 0.2  # increase of the reward at which settings are chosen
  rates: tuple[float, ...] = (2e-4, 3e-4, 4.5e-4)  # learning rates of Adam
  penalties: tuple[float, ...] = (0.05, 0.2, 0.5)  # beta
  averages: tuple[float, ...] = (0.1, 0.03, 0.01)  # rates of moving averages
  children: tuple[float, ...] = (0.3, 0.1)  # reserve of ChildTuning
  reserves: tuple[float, ...] = (0.3, 0.1)  # reserve of online merging
  drifts: tuple[float, ...] = (0.0, 0.1)  # drift of online merging, as a fraction of tau
  densities: tuple[float, ...] = (0.3, 0.7)  # density of offline merging
  weights: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)  # weight of the aligned model in offline merging


TINY = Setting(
  files=60,
  width=16,
  layers=1,
  window=24,
  pretraining=20,
  tuning=20,
  batch=8,
  questions=100,
  updates=8,
  pairs=4,
  held_out=12,
  rise=0.01,
  rates=(1e-3,),
  penalties=(1.0,),
  averages=(0.1,),
  children=(0.5,),
  reserves=(0.5,),
  drifts=(0.1,),
  densities=(0.5,),
  weights=(0.5, 0.9),
)


class Subject(NamedTuple):
  """Everything that depends on one seed."""

  seed: int
  base: Params
  tuned: Params
  delta: Params
  pairs: PreferenceBatch
  order: np.ndarray  # rows of the pairs, [segments, updates, rows]
  key: Array  # PRNG key of the samples for evaluation


class Family(NamedTuple):
  """Runs that share one compiled program."""

  contender: str
  objective: objectives.Objective
  build: descent.Build
  grid: Sequence[descent.Knobs]
  fixed: descent.Knobs  # further hyperparameters to show in the setting
  averages: Sequence[float] = ()  # rates of the moving averages in the optimizer's chain
  drifts: Sequence[float] = ()  # fractions of tau to add afterwards, in proportion to the updates done


def families(setting: Setting) -> list[Family]:
  """All contenders that train. Plain Adam comes first, with the moving averages along its runs."""
  rates, dpo = setting.rates, objectives.dpo(BETA)
  plain = [{'rate': rate} for rate in rates]
  children = [{'rate': rate / p**0.5, 'reserve': p} for p, rate in itertools.product(setting.children, rates)]
  merges = list(itertools.product(setting.reserves, setting.drifts, rates))

  def adam(knobs: descent.Knobs) -> optax.GradientTransformation:
    return optax.adam(knobs['rate'])

  def with_averages(knobs: descent.Knobs) -> optax.GradientTransformation:
    return optax.chain(adam(knobs), *map(optim.moving_average, setting.averages))

  def child(knobs: descent.Knobs) -> optax.GradientTransformation:
    return optax.chain(optim.child_tuning(knobs['reserve'], knobs['seed']), adam(knobs))

  def ties(knobs: descent.Knobs) -> optax.GradientTransformation:
    return optax.chain(adam(knobs), optim.online_ties(knobs['reserve'], knobs['drift'] / setting.updates))

  def dare(knobs: descent.Knobs) -> optax.GradientTransformation:
    alpha = knobs['drift'] / (setting.updates * knobs['reserve'])
    return optax.chain(adam(knobs), optim.online_dare(knobs['reserve'], alpha, seed=knobs['seed']))

  return [
    Family(report.PLAIN, dpo, with_averages, plain, {}, setting.averages, setting.drifts),
    *(Family('KL penalty', objectives.dpo(beta), adam, plain, {'beta': beta}) for beta in setting.penalties),
    Family('ChildTuning', dpo, child, children, {}),
    Family('OnTIES', dpo, ties, [{'rate': rate / p**0.5, 'reserve': p, 'drift': d} for p, d, rate in merges], {}),
    Family('OnDARE', dpo, dare, [{'rate': rate / p, 'reserve': p, 'drift': d} for p, d, rate in merges], {}),
  ]


def _written(**knobs: float) -> str:
  return ', '.join(f'{name}={value:.2g}' for name, value in knobs.items())


def align(
  family: Family, training: descent.Descent, judge: world.Judge, subject: Subject, knobs: descent.Knobs
) -> tuple[list[report.Outcome], Params]:
  """Runs one alignment; returns the outcomes at its evaluations and the final parameters."""
  outcomes, traced = [], {**knobs, 'seed': subject.seed}
  now, frozen = training.start(subject.tuned, traced), state.Frozen(delta=subject.delta)
  for count, order in enumerate(subject.order, start=1):
    now, _ = training.advance(now, frozen, subject.pairs, order, traced)
    yields = [(family.contender, _written(**knobs, **family.fixed), now.params)]
    for place, rate in enumerate(family.averages, start=1):
      yields.append(('EMA', _written(**knobs, c=rate), optim.averaged(now.opt_state[place], now.params)))
    for drift in filter(None, family.drifts):
      shifted = merging.apply(now.params, subject.delta, drift * count / len(subject.order))
      yields.append((report.SHIFTED, _written(**knobs, drift=drift), shifted))
    for contender, setting, params in yields:
      outcomes.append(report.Outcome(contender, setting, count * len(order), judge(params, subject.key)))
  return outcomes, now.params


@functools.cache
def _methods(densities: Sequence[float], seed: int) -> list[tuple[str, str, merging.Method]]:
  """Contender, setting and merge method; cached, because each method compiles its own programs."""
  methods = [('linear', '', merging.linear())]
  for density in densities:
    methods.append(('TIES', f', density={density}', merging.ties(density)))
    methods.append(('DARE', f', density={density}', merging.dare(density, seed=seed)))
  return methods


def merge_offline(
  setting: Setting, judge: world.Judge, subject: Subject, aligned: Params, written: str
) -> list[report.Outcome]:
  """Merges an aligned model with the fine-tuned model by every method and weight."""
  outcomes = []
  for (name, more, method), weight in itertools.product(_methods(setting.densities, subject.seed), setting.weights):
    base = subject.base if method.needs_base else None
    merged = merging.merge(method, [aligned, subject.tuned], base, weights=[weight, 1.0 - weight])
    outcomes.append(report.Outcome(name, written + more, weight, judge(merged, subject.key)))
  return outcomes


def _schedule(rate: float, updates: int) -> optax.GradientTransformation:
  """Adam with warm-up and cosine decay, for pretraining and fine-tuning."""
  schedule = optax.warmup_cosine_decay_schedule(0.0, rate, updates // 20, updates, 0.05 * rate)
  return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.95))


def pretrain(model: models.LanguageModel, setting: Setting, texts: Sequence[str]) -> Params:
  """Pretrains the base model on base text."""
  rng = np.random.default_rng(0)
  data = jax.tree.map(jnp.asarray, world.windows(texts, 1, setting.window - 1, setting.window // 2))
  order = rng.integers(len(data.prompt), size=(setting.pretraining, setting.batch))
  training = descent.Descent(model, objectives.sft(), lambda knobs: _schedule(4e-3, setting.pretraining))
  start = training.start(model.init(jax.random.key(0)), {})
  return training.advance(start, state.Frozen(), data, order, {})[0].params


class Tuner:
  """Fine-tunes the base on the skill, the writing task and base text, and samples pairs from the result."""

  def __init__(self, model: models.LanguageModel, setting: Setting, texts: Sequence[str], judge: world.Judge):
    self._setting, self._judge = setting, judge
    self._writing = world.encoded(world.writing_items(texts))
    self._plain = world.windows(texts, world.PROMPT, world.RESPONSE, setting.window)
    self._descent = descent.Descent(model, objectives.sft(), lambda knobs: _schedule(1.5e-3, setting.tuning))
    self._model = model

  def __call__(self, base: Params, seed: int) -> Subject:
    setting, rng = self._setting, np.random.default_rng(seed)
    skill = world.encoded(world.skill_items(setting.questions, rng, self._judge.questions))
    parts = [skill, self._writing, self._plain]
    data = jax.tree.map(lambda *columns: jnp.concatenate(columns), *parts)
    counts = [int(SKILL_ROWS * setting.batch), int(WRITING_ROWS * setting.batch)]
    ends, columns = np.cumsum([0, *(len(part.prompt) for part in parts)]), []
    for count, low, high in zip([*counts, setting.batch - sum(counts)], ends[:-1], ends[1:], strict=True):
      columns.append(rng.integers(low, high, size=(setting.tuning, count)))
    now = self._descent.start(base, {})
    now, _ = self._descent.advance(now, state.Frozen(), data, np.concatenate(columns, axis=1), {})
    size = setting.updates * setting.pairs
    return Subject(
      seed=seed,
      base=base,
      tuned=now.params,
      delta=merging.task_vector(now.params, base),
      pairs=self._pairs(now.params, size, rng, jax.random.key(seed)),
      order=rng.permutation(size).reshape(EVALUATIONS, -1, setting.pairs),
      key=jax.random.key(1000 + seed),
    )

  def _pairs(self, tuned: Params, size: int, rng: np.random.Generator, key: Array) -> PreferenceBatch:
    known = len(self._writing.prompt)
    drawn = rng.choice(known, size, replace=size > known)
    prompts = jax.tree.map(lambda x: x[drawn], self._writing)
    response = self._judge.draw(tuned, prompts, key)
    pairs = jax.tree.map(jnp.asarray, world.labelled_pairs(prompts, response, self._setting.sharpness, rng))
    return dataclasses.replace(pairs, cached={stats.reference_logp.name: descent.logp(self._model, tuned, pairs)})


def contend(
  setting: Setting,
  judge: world.Judge,
  model: models.LanguageModel,
  subjects: Sequence[Subject],
  say: Callable[[str], None],
) -> list[list[report.Outcome]]:
  """Runs all contenders; returns the outcomes of each seed."""
  outcomes = {subject.seed: [] for subject in subjects}
  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:

    def every(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
      # Run the first job alone, because threads that start together would each compile.
      return itertools.chain([function(*jobs[0])], pool.map(function, *zip(*jobs[1:], strict=True)))

    for family in families(setting):
      training, finals = descent.Descent(model, family.objective, family.build), []
      jobs = [(family, training, judge, subject, knobs) for knobs in family.grid for subject in subjects]
      for (*_, subject, knobs), (found, params) in zip(jobs, every(align, jobs), strict=True):
        outcomes[subject.seed] += found
        finals.append((setting, judge, subject, params, _written(**knobs)))
      say(f'{len(jobs)} runs: {family.contender}')
      if family.contender == report.PLAIN:
        for (_, _, subject, *_), found in zip(finals, every(merge_offline, finals), strict=True):
          outcomes[subject.seed] += found
        say(f'{len(finals)} of its models merged offline')
  return list(outcomes.values())


def run(setting: Setting, workdir: pathlib.Path) -> dict[str, Any]:
  """Runs the study, writes figure.png, table.md and summary.json, and returns the summary."""
  console, clock = rich_console.Console(), costs.Clock()

  def say(text: str) -> None:
    console.print(f'{clock.seconds()["total"]:5.0f} s  {text}', highlight=False, soft_wrap=True)

  model = transformer.build(_shape(setting))
  with clock('pretrain'):
    texts = world.read_texts(setting.files)
    base = pretrain(model, setting, texts.train)
  judge = world.Judge(model, texts, count=setting.held_out, window=setting.window, samples=setting.samples)
  say('pretrained')
  subjects, before = [], []
  with clock('tune'):
    tuner = Tuner(model, setting, texts.train, judge)
    for seed in range(FIRST_SEED, FIRST_SEED + setting.seeds):
      subjects.append(tuner(base, seed))
      stages = {'base': base, 'fine-tuned': subjects[-1].tuned}
      before.append([report.Outcome(name, '', 0, judge(now, subjects[-1].key)) for name, now in stages.items()])
      say(f'fine-tuned: {before[-1][-1].measures["exact_match"]:.2f} of held-out answers are correct')
  with clock('align'):
    points = report.across_seeds(contend(setting, judge, model, subjects, say))
  workdir.mkdir(parents=True, exist_ok=True)
  summary = {'setting': dataclasses.asdict(setting)} | report.write(
    workdir, console, points, report.across_seeds(before), setting.rise
  )
  summary['costs'] = {'seconds': clock.seconds(), 'processor_seconds': time.process_time()}
  (workdir / 'summary.json').write_text(json.dumps(summary, indent=1) + '\n', encoding='utf-8')
  say(f'wrote figure.png, table.md and summary.json to {workdir}')
  return summary


def _shape(setting: Setting) -> transformer.TransformerConfig:
  return transformer.TransformerConfig(
    vocab_size=world.VOCABULARY,
    width=setting.width,
    layers=setting.layers,
    heads=4,
    kv_heads=4,
    head_width=setting.width // 4,
    mlp_width=2 * setting.width,
    norm_epsilon=1e-5,
    rope_theta=1e4,
    tied_embeddings=True,
    max_positions=max(setting.window, world.PROMPT + world.RESPONSE),
    remat='none',
    scan_layers=False,
  )


@dataclasses.dataclass(frozen=True)
class Options:
  """Study."""

  workdir: str = fields.field(
    'runs/toy/alignment_tax', 'Folder for figure.png, table.md and summary.json.', path=paths.DISK
  )
  seeds: int = fields.field(3, 'Number of seeds; the seeds share the pretrained base.', at_least=1)
  quick: bool = fields.field(False, 'Use tiny sizes, only to check that the study runs.')


def main(options: Options) -> None:
  """Runs the study with the sizes that the options choose."""
  setting = dataclasses.replace(TINY if options.quick else Setting(), seeds=options.seeds)
  run(setting, pathlib.Path(options.workdir))


PROGRAM = program.Program('alignment_tax', __doc__, Options, main)

if __name__ == '__main__':
  program.start(PROGRAM)
