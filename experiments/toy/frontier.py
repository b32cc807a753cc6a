"""Is on-policy alignment better than offline alignment at equal KL? A study of a quarter of an hour on two cores.

  python -m experiments.toy.frontier

The question and the methods are those of Yun et al. 2025 (2506.01523), which treats alignment as learning the
distribution behind the preferences. The language, its gold reward and all sizes are ours: see `language`. A reward
model with the policy's architecture learns from pairs of the reference by `bradley_terry`. Its rewards are divided by
the sharpness of the labels, so they estimate the gold reward up to a constant.

  RLHF, RKL        policy gradients on four responses to each prompt; RKL adds an entropy bonus
  REBEL, PD        regression and preference distillation on two responses, four epochs on each round, with the KL in
                   the score
  DPO, PMLE        offline, on the pairs of the reward model; one update on 64 of them counts as a round
  PMLE + KL        PMLE on the pairs, and a KL penalty on two responses of the policy to each prompt of the round
  gold as reward   our control: the four methods that read a reward, at one weight, without a reward model

A round has 64 new prompts. Every contender runs with three weights: of the KL, or of the log-likelihood for PMLE (its
gamma). All have one learning rate. RLHF and RKL need twice as many rewards in a round as REBEL and PD, so all four are
also compared at equal numbers of rewards. The paper's RLHF and RKL are PPO; here they are the leave-one-out policy
gradient. `distribution_learning` has the paper's tabular experiment, with exact gradients instead of samples.

Fixed beforehand: the gold reward of a run at a KL is that at which the run first reaches this KL, linear in the square
root of the KL between two evaluations. The weight of a contender at a KL is the one with the highest mean gold reward
in validation, among those whose runs all reach the KL. The claim counts as reproduced if the gold reward of each of
RLHF, RKL, REBEL and PD in testing minus that of DPO is above two standard errors of the paired difference over seeds,
at 1, 2 and 4 nats. A comparison is undecided if no weight of one side reaches the KL with all seeds. The claim is not
reproduced if one comparison fails; otherwise it is undecided if one comparison is. PD minus REBEL and RKL minus RLHF
are reported without a verdict: the paper's differences are within two standard deviations, so no difference agrees
with it. The weights, the three values of the KL, the 200 rounds and the minibatches of REBEL and PD come from trial
runs of single arms with another seed, so that most methods reach these values in the time of the study.

Seeds change the reference, pairs, labels, reward model, order, prompts and samples. Errors are standard errors over
seeds. Writes figure.png, table.md and summary.json (every evaluation) to --workdir, and each finished arm to arms.json
there: the same command resumes a study that was stopped. Results at this scale may not hold for large models.
"""

from collections.abc import Sequence
from concurrent import futures
import dataclasses
import functools
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from alignjax import objectives, stats
from alignjax.commands import program
from alignjax.models import base as models
from alignjax.training import joint, policy, rollout_drawing, rows, state
from alignjax.types import Array, Params, PreferenceBatch
from experiments.toy import descent, evaluations, language, studies, tables
from experiments.toy import frontier_report as report


@dataclasses.dataclass(frozen=True)
class Setting:
  """The size of the study."""

  seeds: int = 3
  width: int = 48
  layers: int = 2
  tuning: int = 600  # updates of the reference
  pairs: int = 2000
  reward_updates: int = 100  # of the reward model, on 64 pairs each
  rounds: int = 200
  rows: int = 64  # prompts of a round; pairs of an offline update
  minibatch: int = 64  # prompts of an inner update of REBEL and PD
  epochs: int = 4  # of REBEL and PD on a round
  evaluations: tuple[int, ...] = (5, 10, 20, 40, 70, 100, 200)  # rounds
  prompts: int = 512  # held-out prompts for validation, and for testing
  rate: float = 1e-3  # of Adam
  betas: tuple[float, ...] = (0.02, 0.05, 0.1)  # weights of the KL; gamma of PMLE
  control: float = 0.1  # weight of the KL with the gold reward


TINY = Setting(
  seeds=2,
  width=16,
  layers=1,
  tuning=20,
  pairs=64,
  reward_updates=4,
  rounds=4,
  rows=8,
  minibatch=4,
  epochs=2,
  evaluations=(2, 4),
  prompts=16,
  betas=(0.1,),
)


class Method(NamedTuple):
  """A way to train."""

  objective: str  # on pairs without `samples`, otherwise on responses of the policy
  samples: int = 0  # responses of the policy to each prompt of a round
  inner: bool = False  # whether a round has several updates
  kl_in_score: bool = False
  ratio_of_round: bool = False  # with the KL in the score: whether log pi_ref is that of the policy that drew the round
  pairs: str = ''  # another objective, on pairs


METHODS = {
  'RLHF': Method('rlhf(beta={beta})', 4),
  'RKL': Method('reverse_kl(gamma=0.05, beta={beta})', 4),
  'REBEL': Method('rebel(eta=1.0)', 2, inner=True, kl_in_score=True, ratio_of_round=True),
  'PD': Method('preference_distillation(gamma=0.1)', 2, inner=True, kl_in_score=True),
  'PMLE + KL': Method('kl_penalty(beta={beta})', 2, pairs='pmle(gamma=0.1)'),
  'DPO': Method('dpo(beta={beta})'),
  'PMLE': Method('pmle(gamma={beta})'),
}


class Contender(NamedTuple):
  """A method at one weight."""

  name: str
  beta: float
  method: Method
  gold: bool = False  # whether the gold reward takes the place of the reward model

  @property
  def objective(self) -> str:
    """The objectives as an expression."""
    terms = (self.method.pairs, self.method.objective.format(beta=self.beta))
    return ' + '.join(filter(None, terms))


class Subject(NamedTuple):
  """Everything that depends on one seed."""

  seed: int
  reference: Params
  pairs: PreferenceBatch
  proxy: language.Proxy  # the reward model, on the scale of the gold reward
  order: np.ndarray  # [rounds, rows], numbers of pairs
  prompts: np.ndarray  # [rounds, rows, 3]

  def key(self, number: int) -> Array:
    """The key of the samples of a round."""
    return jax.random.fold_in(jax.random.key(self.seed), number)


def contenders(setting: Setting) -> list[Contender]:
  """All contenders; the control has one weight."""
  found = [Contender(name, beta, method) for name, method in METHODS.items() for beta in setting.betas]
  return found + [
    Contender(report.with_gold(name), setting.control, METHODS[name], gold=True) for name in report.ON_POLICY
  ]


@functools.cache
def _training(model: models.LanguageModel, objective: str, rate: float) -> descent.Descent:
  """Training with Adam; contenders with the same objective share its compiled program."""
  return descent.Descent(model, objectives.parse(objective), lambda knobs: optax.adam(rate))


class Trainer:
  """Trains a contender, one round at a time; all seeds share its compiled programs."""

  def __init__(self, model: models.LanguageModel, setting: Setting, contender: Contender):
    self._model, self._contender, self._method = model, contender, contender.method
    inner = (setting.minibatch, setting.epochs) if self._method.inner else (setting.rows, 1)
    self._rounds = rollout_drawing.Rounds(setting.rows, *inner, group=setting.rows)
    objective = self._method.objective.format(beta=contender.beta)
    self._descent = _training(model, objective, setting.rate)
    if self._method.pairs:
      both = joint.Objectives(objectives.parse(self._method.pairs), objectives.parse(objective))
      layout = rows.Layout(descent.CHUNK)
      self._joint = jax.jit(joint.build_step(policy.Policy(model), both, optax.adam(setting.rate), layout))

  def start(self, subject: Subject) -> state.TrainState:
    """The state before the first round."""
    return self._descent.start(subject.reference, {})

  def round(self, now: state.TrainState, subject: Subject, number: int) -> state.TrainState:
    """Trains on one round."""
    if not self._method.samples:
      return self._descent.advance(now, state.Frozen(), subject.pairs, subject.order[number : number + 1], {})[0]
    drawn = self._drawn(now.params, subject, number)
    if self._method.pairs:
      pairs = jax.tree.map(lambda x: x[subject.order[number]], subject.pairs)
      return self._joint(now, state.Frozen(), joint.JointBatch(**vars(pairs), rollouts=drawn))[0]
    updates = [self._rounds.minibatch_of(number, update) for update in range(self._rounds.updates)]
    return self._descent.advance(now, state.Frozen(), drawn, np.stack(updates), {})[0]

  def _drawn(self, params: Params, subject: Subject, number: int) -> PreferenceBatch:
    """Responses of the policy with their scores."""
    drawn = language.draw(self._model, params, subject.prompts[number], subject.key(number), self._method.samples)
    batch = drawn.batch
    reference = descent.logp(self._model, subject.reference, batch)
    score = drawn.gold if self._contender.gold else subject.proxy(drawn)
    cached = {stats.reference_logp.name: reference}
    if self._method.kl_in_score:
      own = descent.logp(self._model, params, batch)
      score = score - self._contender.beta * np.asarray((own - reference).sum(axis=-1))
      if self._method.ratio_of_round:
        cached = {stats.reference_logp.name: own}
    return dataclasses.replace(batch, score=score.astype(np.float32), cached=cached)


def reward_model(
  setting: Setting, reference: Params, pairs: PreferenceBatch, rng: np.random.Generator
) -> language.Proxy:
  """Trains a reward model from the reference; its mean over the pairs becomes that of their gold reward."""
  model = language.model(setting.width, setting.layers, output='score')
  training = _training(model, 'bradley_terry()', setting.rate)
  start = training.start({**model.init(jax.random.key(0)), **reference}, {})
  order = rng.integers(len(pairs.prompt), size=(setting.reward_updates, setting.rows))
  params = training.advance(start, state.Frozen(), pairs, order, {})[0].params

  def rewards(batch: PreferenceBatch) -> np.ndarray:
    return np.asarray(descent.reward(model, params, batch), np.float64) / language.SHARPNESS

  gold = language.gold(np.asarray(pairs.response), np.asarray(pairs.response_length))
  shift = gold.mean() - rewards(pairs).mean()
  return lambda drawn: rewards(drawn.batch) + shift


def prepare(model: models.LanguageModel, setting: Setting, seed: int) -> Subject:
  """Trains the reference of a seed, draws and labels its pairs, and trains the reward model."""
  rng = np.random.default_rng([seed, 3])
  reference = language.reference(model, seed, setting.tuning, setting.rows)
  asked = language.prompts(setting.pairs, rng)
  drawn = language.draw(model, reference, asked, jax.random.key(2000 + seed), 2)
  pairs = dataclasses.replace(language.pairs(model, reference, drawn, rng), behaviour_logp=None)
  return Subject(
    seed,
    reference,
    pairs,
    proxy=reward_model(setting, reference, pairs, rng),
    order=rng.integers(setting.pairs, size=(setting.rounds, setting.rows)),
    prompts=language.prompts(setting.rounds * setting.rows, rng).reshape(setting.rounds, setting.rows, -1),
  )


def accuracy(model: models.LanguageModel, subject: Subject, count: int) -> float:
  """How often the reward model orders two responses of the reference to a held-out prompt as the gold reward does."""
  asked = language.prompts(count, np.random.default_rng(1), side=0)
  drawn = language.draw(model, subject.reference, asked, jax.random.key(3000 + subject.seed), 2)
  proxy, gold = (rewards[:, 0] - rewards[:, 1] for rewards in (subject.proxy(drawn), drawn.gold))
  return float(np.mean((proxy > 0) == (gold > 0), where=gold != 0))


def align(setting: Setting, trainer: Trainer, judge: language.Judge, subject: Subject) -> list[evaluations.Outcome]:
  """Runs one alignment; returns the outcomes at its evaluations, and first that of the reference."""
  now, key, found = trainer.start(subject), jax.random.key(1000 + subject.seed), []
  for number in range(setting.rounds + 1):
    if number in (0, *setting.evaluations):
      measures = judge(now.params, subject.reference, key, subject.proxy)
      found.append(evaluations.Outcome(number, measures))
    if number < setting.rounds:
      now = trainer.round(now, subject, number)
  return found


def contend(
  setting: Setting, model: models.LanguageModel, subjects: Sequence[Subject], session: studies.Session
) -> list[evaluations.Curve]:
  """Runs all contenders on all seeds."""
  judge, curves = language.Judge(model, setting.prompts), []

  def compute(contender: Contender) -> list[list[evaluations.Outcome]]:
    trainer = Trainer(model, setting, contender)
    return [align(setting, trainer, judge, subject) for subject in subjects]

  def arm(contender: Contender) -> evaluations.Curve:
    found = session.arm(f'{contender.name}, {contender.beta}', functools.partial(compute, contender))
    outcomes = [[evaluations.Outcome(*each) for each in own] for own in found]
    return evaluations.Curve.of(contender.name, contender.beta, contender.objective, outcomes)

  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    for curve in pool.map(arm, contenders(setting)):
      curves.append(curve)
      gold, kl = (tables.shown(curve.final(name)) for name in ('gold', 'kl'))
      session.announce(f'{curve.name}, beta {curve.beta}: gold {gold}, KL {kl}')
  return curves


def run(setting: Setting, workdir: pathlib.Path) -> dict[str, Any]:
  """Runs the study, writes figure.png, table.md and summary.json, and returns the summary."""
  session, model = studies.Session(workdir, setting), language.model(setting.width, setting.layers)
  with session.clock('prepare'):
    subjects = [prepare(model, setting, seed) for seed in range(setting.seeds)]
    agreement = np.array([accuracy(model, subject, setting.prompts) for subject in subjects])
  session.announce(f'{setting.seeds} reward models of {setting.pairs} pairs: accuracy {tables.shown(agreement)}')
  with session.clock('align'):
    curves = contend(setting, model, subjects, session)
  return session.finish(report.write(workdir, session.console, curves, agreement))


def main(options: studies.Options) -> None:
  """Runs the study with the sizes that the options choose."""
  run(studies.sized(options, Setting(), TINY), pathlib.Path(options.workdir))


PROGRAM = program.Program('frontier', __doc__, studies.options('frontier'), main)

if __name__ == '__main__':
  program.start(PROGRAM)
