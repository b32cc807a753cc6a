"""Does a target margin that adapts to each pair help where labels are wrong? A study of a quarter of an hour.

  python -m experiments.toy.adaptive_margin

The question and the methods are those of Wu et al. 2024 (2410.10148): SimPO has one target margin for all pairs;
alpha-DPO raises that of a pair that has moved far from the reference and lowers that of a pair that lags behind,
perhaps because its label is wrong. The language and all sizes are ours: see `language`. As in the paper's recipe, five
responses of the reference to each prompt are scored, here by the gold reward with noise, and the best and the worst
form a pair.

  DPO, SimPO             baselines
  alpha-DPO              moments over the batch
  shuffled z             our control: the adaptive part of the margin belongs to another pair of the batch
  moving average         our control: alpha-DPO at its chosen setting, with moving averages of the moments

Every contender has the same number of settings, and runs on the pairs as they are and with a fifth of the labels
flipped. Fixed beforehand: the setting of a contender is the one with the highest mean gold reward in validation at the
end of the run, in each arm by itself. The claim counts as reproduced if, with flipped labels, the gold reward of
alpha-DPO in testing minus that of SimPO is above two standard errors of the paired difference over seeds.

Seeds change the reference, pairs, noise, flips, order and samples. Errors are standard errors over seeds. Writes
figure.png, table.md and summary.json (every run) to --workdir. Results at this scale may not hold for large models.
"""

from collections.abc import Callable, Sequence
from concurrent import futures
import dataclasses
import functools
import itertools
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignjax import expressions, objectives, stats
from alignjax.commands import program
from alignjax.models import base as models
from alignjax.objectives import moving_average, preference
from alignjax.training import state
from alignjax.types import Params, PreferenceBatch, Term
from experiments.toy import adaptive_margin_report as report
from experiments.toy import descent, language, studies, tables


@dataclasses.dataclass(frozen=True)
class Setting:
  """The size of the study and the grids, which are equally large."""

  seeds: int = 3
  width: int = 48
  layers: int = 2
  tuning: int = 600  # updates of the reference
  pairs: int = 2000
  samples: int = 5  # responses per prompt, of which the best and the worst are compared
  noise: float = 0.5  # standard deviation of the noise of the scores
  flipped: float = 0.2  # share of the labels
  updates: int = 200
  rows: int = 64  # pairs per update
  prompts: int = 512  # held-out prompts for validation, and for testing
  rate: float = 1e-3  # of Adam
  strengths: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)  # beta of DPO
  rates: tuple[float, ...] = (0.5, 1.0, 2.0)  # factors of the rate of DPO
  betas: tuple[float, ...] = (1.0, 2.5, 5.0, 10.0)  # of SimPO
  gammas: tuple[float, ...] = (0.0, 0.5, 1.5)  # of SimPO
  adaptive_betas: tuple[float, ...] = (2.5, 10.0)
  adaptive_gammas: tuple[float, ...] = (0.0, 0.5)
  alphas: tuple[float, ...] = (0.05, 0.2, 0.5)  # alpha / beta


TINY = Setting(
  seeds=2,
  width=16,
  layers=1,
  tuning=20,
  pairs=64,
  updates=4,
  rows=8,
  prompts=16,
  strengths=(0.1,),
  rates=(1.0,),
  betas=(2.5,),
  gammas=(0.5,),
  adaptive_betas=(2.5,),
  adaptive_gammas=(0.5,),
  alphas=(0.2,),
)


def alpha_dpo_shuffled(beta: float = 2.5, gamma: float = 1.5, alpha: float = 0.5) -> objectives.Objective:
  """alpha-DPO with the adaptive part of each margin taken from the next pair of the batch, so it has no information.

  loss = -log sigmoid(beta (l_w - l_l) - sg[gamma + alpha z']),   z'_b = z_(b + 1)

  Args:
    beta: scale of the reward, > 0, tokens/nat.
    gamma: target reward margin.
    alpha: shift of the target per deviation, in units of reward.
  """
  average = moving_average.MarginAverage(0.9, length_normalised=True)

  def apply(table: stats.StatTable, batch: PreferenceBatch) -> Term:
    reward, margin = beta * table.mean(stats.logp), average.margin(table)
    target = gamma + alpha * jnp.roll(average.present(table, batch).standardise(margin), 1)
    loss = -jax.nn.log_sigmoid(reward[:, 0] - reward[:, 1] - jax.lax.stop_gradient(target))
    return Term(loss, preference.reward_metrics(reward, jnp.asarray(batch.label)))

  like = objectives.alpha_dpo()
  return objectives.Objective(like.needs, apply, responses=2, couples_rows=True, ordered=True)


def parse(text: str) -> objectives.Objective:
  """Reads an objective, which may be the control of this study."""
  known = objectives.OBJECTIVES | {'alpha_dpo_shuffled': alpha_dpo_shuffled}
  return expressions.parse(text, objectives.Objective, 'an objective', {'objectives': known})


class Run(NamedTuple):
  """A contender at one setting."""

  contender: str
  objective: str
  rate: float


class Subject(NamedTuple):
  """Everything that depends on one seed."""

  seed: int
  reference: Params
  pairs: dict[str, PreferenceBatch]  # by arm
  flips: np.ndarray  # [pairs] bool: labels that the second arm has flipped
  order: np.ndarray  # [updates, rows]


def grids(setting: Setting) -> list[Run]:
  """The settings of all contenders but the last control."""
  found = [
    Run('DPO', f'dpo(beta={beta})', setting.rate * factor)
    for beta, factor in itertools.product(setting.strengths, setting.rates)
  ]
  found += [
    Run('SimPO', f'simpo(beta={beta}, gamma={gamma})', setting.rate)
    for beta, gamma in itertools.product(setting.betas, setting.gammas)
  ]
  for contender, name in (('alpha-DPO', 'alpha_dpo'), ('shuffled z', 'alpha_dpo_shuffled')):
    for beta, gamma, share in itertools.product(setting.adaptive_betas, setting.adaptive_gammas, setting.alphas):
      alpha = round(share * beta, 6)
      found.append(Run(contender, f'{name}(beta={beta}, gamma={gamma}, alpha={alpha})', setting.rate))
  return found


def prepare(policy: models.LanguageModel, setting: Setting, seed: int) -> Subject:
  """Trains the reference of a seed, and draws and labels its pairs."""
  rng = np.random.default_rng([seed, 2])
  reference = language.reference(policy, seed, setting.tuning, setting.rows)
  asked = language.prompts(setting.pairs, rng)
  drawn = language.draw(policy, reference, asked, jax.random.key(seed), setting.samples)
  scores = drawn.gold + setting.noise * rng.standard_normal(drawn.gold.shape)
  order = np.stack([scores.argmax(axis=1), scores.argmin(axis=1)], axis=1)
  clean = language.paired(policy, reference, drawn, order)
  flips = rng.random(setting.pairs) < setting.flipped
  flipped = language.paired(policy, reference, drawn, np.where(flips[:, None], order[:, ::-1], order))
  rows = rng.integers(setting.pairs, size=(setting.updates, setting.rows))
  return Subject(seed, reference, dict(zip(report.ARMS, (clean, flipped), strict=True)), flips, rows)


def align(
  run: Run, training: descent.Descent, judge: language.Judge, policy: models.LanguageModel, arm: str, subject: Subject
) -> language.Measures:
  """Runs one alignment and measures its result: as `language.Judge`, and the share of flipped pairs with z < 0."""
  pairs, knobs = subject.pairs[arm], {'rate': run.rate}
  now, _ = training.advance(training.start(subject.reference, knobs), state.Frozen(), pairs, subject.order, knobs)
  measures = judge(now.params, subject.reference, jax.random.key(1000 + subject.seed))
  lagging = _drift(policy, now.params, pairs) < 0
  return measures | {'lagging': float(subject.flips[lagging].mean()) if lagging.any() else float('nan')}


def _drift(policy: models.LanguageModel, params: Params, pairs: PreferenceBatch) -> np.ndarray:
  """The drift margins per token minus their mean, [pairs]: the sign of z."""
  change = descent.logp(policy, params, pairs) - pairs.cached[stats.reference_logp.name]
  per_token = np.asarray(jnp.sum(change, axis=-1) / pairs.response_length)
  margin = per_token[:, 0] - per_token[:, 1]
  return margin - margin.mean()


def contend(
  setting: Setting, policy: models.LanguageModel, subjects: Sequence[Subject], announce: Callable[[str], None]
) -> list[report.Result]:
  """Runs all contenders in both arms and on all seeds."""
  judge, results = language.Judge(policy, setting.prompts), []
  jobs = list(itertools.product(report.ARMS, subjects))
  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:

    def measure(run: Run, chosen: Sequence[str]) -> None:
      training = descent.Descent(policy, parse(run.objective), lambda knobs: optax.adam(knobs['rate']))
      function = functools.partial(align, run, training, judge, policy)
      own = [job for job in jobs if job[0] in chosen]
      first = function(*own[0])  # alone, because threads that start together would each compile
      found = [first, *pool.map(lambda job: function(*job), own[1:])]
      for arm in chosen:
        measures = [each for (name, _), each in zip(own, found, strict=True) if name == arm]
        results.append(report.Result.of(run.contender, f'{run.objective}, rate {run.rate:g}', arm, measures))

    for run in grids(setting):
      measure(run, report.ARMS)
      gold = tables.shown(results[-1].measures['gold'])
      announce(f'{run.contender}: {run.objective}, rate {run.rate:g}: gold {gold} with flipped labels')
    for arm in report.ARMS:
      chosen = report.choose(results, 'alpha-DPO', arm).setting.rpartition('), rate ')[0]
      measure(Run('moving average', f"{chosen}, normaliser='ema')", setting.rate), [arm])
  return results


def run(setting: Setting, workdir: pathlib.Path) -> dict[str, Any]:
  """Runs the study, writes figure.png, table.md and summary.json, and returns the summary."""
  session, policy = studies.Session(workdir, setting), language.model(setting.width, setting.layers)
  with session.clock('prepare'):
    subjects = [prepare(policy, setting, seed) for seed in range(setting.seeds)]
  session.announce(f'{setting.seeds} references, {setting.pairs} pairs of each')
  with session.clock('align'):
    results = contend(setting, policy, subjects, session.announce)
  return session.finish(report.write(workdir, session.console, results, setting.flipped))


def main(options: studies.Options) -> None:
  """Runs the study with the sizes that the options choose."""
  run(studies.sized(options, Setting(), TINY), pathlib.Path(options.workdir))


PROGRAM = program.Program('adaptive_margin', __doc__, studies.options('adaptive_margin'), main)

if __name__ == '__main__':
  program.start(PROGRAM)
