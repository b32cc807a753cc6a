"""What does alignment cost, and does online merging make it cheaper? A study of 17 minutes on two cores.

  python -m experiments.toy.alignment_tax

A transformer of a third of a million parameters reads bytes. It is pretrained on docstrings (base), fine-tuned on a
skill that they do not teach, among rehearsed text and beginnings of docstrings to be gone on with (fine-tuned), and
aligned: DPO on pairs of its own continuations, with noisy labels by a gold reward, the share of vowels. Two taxes are
measured: how much worse it answers held-out questions of the skill, and how much worse it predicts held-out docstrings
from which the sign of the writing task is absent. All of it is in `alignment_tax_world`.

  Adam, KL penalty, EMA, ChildTuning   DPO with beta = 0.1; with other betas; averages along Adam's runs; child_tuning
  OnTIES, OnDARE                       Adam and online merging in the paper's form, tau = fine-tuned - base
  linear, TIES, DARE                   Adam's last models merged with the fine-tuned one, over the base
  Adam + tau                           ours: as much of tau as OnDARE has added by then, added to Adam's models at once

From Lu et al. 2024 (2405.17931) are the question, the contenders, and that each searches its learning rate: here as
many rates for all, those of OnDARE divided by the reserve p and those of OnTIES and ChildTuning by sqrt(p), which makes
up for the entries that are dropped. Ours are the scale, tasks and data; the reward, which is known and not judged;
drift in place of alpha: by how much of tau the kept entries (OnTIES), or all of them in the mean (OnDARE), move in a
run, drift = updates * alpha (* p); and small grids. What holds here need not hold for large models.

The rule of choice was fixed beforehand: among a contender's evaluations whose validation reward, mean over seeds,
exceeds the fine-tuned model's by `rise`, that of the lowest validation skill loss. The table and the figure have test
values, of other questions and prompts; base loss plays no part in the choice. `rise`, the rates and what makes a pair
come from trial runs on another base and other seeds: plain Adam should visibly pay, and no policy write vowels alone.
Losses are compared with plain Adam's where the reward is the one of the rule, on the best curve of each contender.

Seeds differ in the order of fine-tuning, pairs, labels, the order of alignment, and masks; the base is one. Errors are
standard errors over seeds. --workdir gets figure.png, table.md and summary.json, which has every evaluation.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import time
from typing import Any, NamedTuple

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import console as rich_console

from alignjax import merging, objectives, optim, stats
from alignjax.models import base as models
from alignjax.models import transformer
from alignjax.run import costs
from alignjax.training import forward, policy, state, step
from alignjax.types import Array, Params, PreferenceBatch
from experiments.toy import alignment_tax_report as report
from experiments.toy import alignment_tax_world as world

Knobs = Mapping[str, float]  # of an optimizer, by name
Build = Callable[[Knobs], optax.GradientTransformation]

CHUNK = 8192  # bytes whose logits exist at once
FIRST_SEED = 101  # the grids and the target were chosen with earlier ones
BETA, EVALUATIONS = 0.1, 4  # of DPO, where it is not the contender's own; and of a run
SKILL_ROWS, WRITING_ROWS = 0.5, 0.25  # shares in fine-tuning; the rest is base text


@dataclasses.dataclass(frozen=True)
class Setting:
  """The size of the study, and the grids."""

  seeds: int = 3
  files: int | None = None  # of the standard library; None for all
  width: int = 128
  layers: int = 2
  window: int = 64  # bytes of base text that are read at once
  pretraining: int = 900  # updates
  tuning: int = 1400  # updates; with half as many, moving along tau would go on with fine-tuning
  batch: int = 64  # windows, or answers, in an update of these two
  questions: int = 12_000  # of the skill, to train on
  updates: int = 96  # of a run of alignment
  pairs: int = 16  # in an update
  sharpness: float = 20.0  # of preferences: one of the reward 0.05 higher wins with the odds e
  held_out: int = 128  # questions, prompts and windows, to validate and as many to test
  samples: int = 4  # responses to a prompt, of which the best and the worst are compared
  rise: float = 0.2  # of the reward, at which settings are chosen
  rates: tuple[float, ...] = (2e-4, 3e-4, 4.5e-4)  # of Adam
  penalties: tuple[float, ...] = (0.05, 0.2, 0.5)  # beta
  averages: tuple[float, ...] = (0.1, 0.03, 0.01)
  children: tuple[float, ...] = (0.3, 0.1)  # reserve of ChildTuning
  reserves: tuple[float, ...] = (0.3, 0.1)  # of online merging
  drifts: tuple[float, ...] = (0.0, 0.1)
  densities: tuple[float, ...] = (0.3, 0.7)  # of offline merging
  weights: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the aligned model


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


class Descent:
  """Training by one objective and one kind of optimizer; one program serves all values of the knobs."""

  def __init__(self, model: models.LanguageModel, objective: objectives.Objective, build: Build):
    def start(params: Params, knobs: Knobs) -> state.TrainState:
      return state.TrainState.create(params, build(knobs), jax.random.key(0))

    def advance(
      now: state.TrainState, frozen: state.Frozen, data: PreferenceBatch, order: Array, knobs: Knobs
    ) -> state.TrainState:
      update = step.build_train_step(policy.Policy(model), objective, build(knobs), chunk=CHUNK)

      def body(now: state.TrainState, rows: Array) -> tuple[state.TrainState, None]:
        return update(now, frozen, jax.tree.map(lambda x: x[rows], data))[0], None

      return jax.lax.scan(body, now, order)[0]

    self.start, self.advance = jax.jit(start), jax.jit(advance)


class Subject(NamedTuple):
  """All that one seed decides."""

  seed: int
  base: Params
  tuned: Params
  delta: Params
  pairs: PreferenceBatch
  order: np.ndarray  # [segments, updates, rows]
  key: Array  # of the samples that are judged


class Family(NamedTuple):
  """Runs of one program."""

  contender: str
  objective: objectives.Objective
  build: Build
  grid: Sequence[Knobs]
  fixed: Knobs  # what else belongs to the setting
  averages: Sequence[float] = ()  # rates of the moving averages that follow in the optimizer's chain
  drifts: Sequence[float] = ()  # shares of tau that are added afterwards, in proportion to the updates done


def families(setting: Setting) -> list[Family]:
  """Every contender that trains; plain Adam first, with the averages along its runs."""
  rates, dpo = setting.rates, objectives.dpo(BETA)
  plain = [{'rate': rate} for rate in rates]
  children = [{'rate': rate / p**0.5, 'reserve': p} for p, rate in itertools.product(setting.children, rates)]
  merges = list(itertools.product(setting.reserves, setting.drifts, rates))

  def adam(knobs: Knobs) -> optax.GradientTransformation:
    return optax.adam(knobs['rate'])

  def with_averages(knobs: Knobs) -> optax.GradientTransformation:
    return optax.chain(adam(knobs), *map(optim.moving_average, setting.averages))

  def child(knobs: Knobs) -> optax.GradientTransformation:
    return optax.chain(optim.child_tuning(knobs['reserve'], knobs['seed']), adam(knobs))

  def ties(knobs: Knobs) -> optax.GradientTransformation:
    return optax.chain(adam(knobs), optim.online_ties(knobs['reserve'], knobs['drift'] / setting.updates))

  def dare(knobs: Knobs) -> optax.GradientTransformation:
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
  family: Family, descent: Descent, judge: world.Judge, subject: Subject, knobs: Knobs
) -> tuple[list[report.Outcome], Params]:
  """One run: what it yields along the way, and the parameters at its end."""
  outcomes, traced = [], {**knobs, 'seed': subject.seed}
  now, frozen = descent.start(subject.tuned, traced), state.Frozen(delta=subject.delta)
  for count, order in enumerate(subject.order, start=1):
    now = descent.advance(now, frozen, subject.pairs, order, traced)
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
  """Contender, setting and method; cached, because each compiles its own programs."""
  methods = [('linear', '', merging.linear())]
  for density in densities:
    methods.append(('TIES', f', density={density}', merging.ties(density)))
    methods.append(('DARE', f', density={density}', merging.dare(density, seed=seed)))
  return methods


def merge_offline(
  setting: Setting, judge: world.Judge, subject: Subject, aligned: Params, written: str
) -> list[report.Outcome]:
  """Merges of a trained model with the fine-tuned one."""
  outcomes = []
  for (name, more, method), weight in itertools.product(_methods(setting.densities, subject.seed), setting.weights):
    base = subject.base if method.needs_base else None
    merged = merging.merge(method, [aligned, subject.tuned], base, weights=[weight, 1.0 - weight])
    outcomes.append(report.Outcome(name, written + more, weight, judge(merged, subject.key)))
  return outcomes


def _schedule(rate: float, updates: int) -> optax.GradientTransformation:
  """Adam for pretraining and fine-tuning."""
  schedule = optax.warmup_cosine_decay_schedule(0.0, rate, updates // 20, updates, 0.05 * rate)
  return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.95))


def pretrain(model: models.LanguageModel, setting: Setting, texts: Sequence[str]) -> Params:
  """The base: a model of base text."""
  rng = np.random.default_rng(0)
  data = jax.tree.map(jnp.asarray, world.windows(texts, 1, setting.window - 1, setting.window // 2))
  order = rng.integers(len(data.prompt), size=(setting.pretraining, setting.batch))
  descent = Descent(model, objectives.sft(), lambda knobs: _schedule(4e-3, setting.pretraining))
  start = descent.start(model.init(jax.random.key(0)), {})
  return descent.advance(start, state.Frozen(), data, order, {}).params


class Tuner:
  """Fine-tunes the base on the skill, writing and base text, and has the result write pairs."""

  def __init__(self, model: models.LanguageModel, setting: Setting, texts: Sequence[str], judge: world.Judge):
    self._setting, self._judge = setting, judge
    self._writing = world.encoded(world.writing_items(texts))
    self._plain = world.windows(texts, world.PROMPT, world.RESPONSE, setting.window)
    self._descent = Descent(model, objectives.sft(), lambda knobs: _schedule(1.5e-3, setting.tuning))
    self._logp = jax.jit(functools.partial(_logp, model))

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
    now = self._descent.advance(now, state.Frozen(), data, np.concatenate(columns, axis=1), {})
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
    return dataclasses.replace(pairs, cached={stats.reference_logp.name: self._logp(tuned, pairs)})


def _logp(model: models.LanguageModel, params: Params, batch: PreferenceBatch) -> Array:
  states = forward.hidden_states(model, params, batch)
  return stats.statistics({stats.logp}, states, None, batch, chunk=1).values[stats.logp.name]


def contend(
  setting: Setting,
  judge: world.Judge,
  model: models.LanguageModel,
  subjects: Sequence[Subject],
  say: Callable[[str], None],
) -> list[list[report.Outcome]]:
  """All contenders: the outcomes of each seed."""
  outcomes = {subject.seed: [] for subject in subjects}
  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:

    def every(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
      # Of two threads that begin together, each would compile.
      return itertools.chain([function(*jobs[0])], pool.map(function, *zip(*jobs[1:], strict=True)))

    for family in families(setting):
      descent, finals = Descent(model, family.objective, family.build), []
      jobs = [(family, descent, judge, subject, knobs) for knobs in family.grid for subject in subjects]
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
  """Does it all, writes figure.png, table.md and summary.json, and returns the summary."""
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
      say(f'fine-tuned: {before[-1][-1].measures["exact_match"]:.2f} of held-out answers are right')
  with clock('align'):
    points = report.across_seeds(contend(setting, judge, model, subjects, say))
  workdir.mkdir(parents=True, exist_ok=True)
  summary = {'setting': dataclasses.asdict(setting)} | report.write(
    workdir, console, points, report.across_seeds(before), setting.rise
  )
  summary['costs'] = {'seconds': clock.seconds(), 'processor_seconds': time.process_time()}
  (workdir / 'summary.json').write_text(json.dumps(summary, indent=1) + '\n', encoding='utf-8')
  say(f'figure.png, table.md and summary.json are in {workdir}')
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


def define_flags() -> None:
  flags.DEFINE_string('workdir', 'runs/toy/alignment_tax', 'Folder for figure.png, table.md and summary.json.')
  flags.DEFINE_integer('seeds', 3, 'Runs of everything but the pretraining.', lower_bound=1)
  flags.DEFINE_bool('quick', False, 'Tiny sizes: shows that it works, and nothing else.')


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  given = flags.FLAGS
  run(dataclasses.replace(TINY if given.quick else Setting(), seeds=given.seeds), pathlib.Path(given.workdir))


if __name__ == '__main__':
  define_flags()
  app.run(main)
