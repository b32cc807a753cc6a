"""Does importance weighting keep offline alignment from over-optimising? A study of a quarter of an hour on two cores.

  python -m experiments.toy.over_optimisation

The question and the methods are those of Nguyen et al. 2025 (2506.08681): when a policy trains on fixed pairs of its
reference, its gold reward first rises and then falls; weighting every pair by the clipped probability ratio of policy
and reference should prevent the fall. The language, its concave gold reward and all sizes are ours: see `language`.

  DPO, IPO, SLiC               plain, and importance-weighted with both released clips, 0.25 and 1
  RPO, chi-PO, R-DPO           the paper's other baselines
  controls, at the lowest beta DPO with its learning rate scaled by the mean importance weight of IS-DPO; both with SGD,
                               because Adam undoes a common factor of all gradients; both with a tenth of the pairs;
                               both on pairs that were drawn at a temperature of 1.5, with and without `behaviour_logp`

Every contender runs at two values of beta with one learning rate; a control runs at the lower one. Fixed beforehand:
the claim counts as reproduced if, at the lowest beta and clip 0.25, the final gold reward of IS-DPO minus that of DPO
is above two standard errors of the paired difference over seeds, its final KL is smaller, its peak is not lower by
more than two standard errors, and the difference of the final rewards is smaller at the higher beta. The peak is
the gold reward on the prompts for testing, at the evaluation with the highest gold reward on those for validation.

Seeds change the reference, pairs, labels, order and samples. Errors are standard errors over seeds. Writes figure.png,
table.md and summary.json (every evaluation) to --workdir. Results at this scale may not hold for large models.
"""

from collections.abc import Callable, Sequence
from concurrent import futures
import dataclasses
import functools
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from alignjax import objectives
from alignjax.commands import program
from alignjax.models import base as models
from alignjax.training import state
from alignjax.types import Params, PreferenceBatch
from experiments.toy import descent, evaluations, language, studies, tables
from experiments.toy import over_optimisation_report as report

WEIGHT = 'importance/weight'
SHARE = 'importance/effective_sample_share'
OPTIMIZERS: dict[str, descent.Build] = {
  'adam': lambda knobs: optax.adam(knobs['rate']),
  'sgd': lambda knobs: optax.sgd(knobs['rate'], momentum=0.9),
}


@dataclasses.dataclass(frozen=True)
class Setting:
  """The size of the study."""

  seeds: int = 3
  width: int = 48
  layers: int = 2
  tuning: int = 600  # updates of the reference
  pairs: int = 3000
  few: int = 300  # pairs of the control with few of them
  updates: int = 400
  rows: int = 64  # pairs per update
  evaluations: int = 8
  prompts: int = 512  # held-out prompts for validation, and for testing
  rate: float = 1e-3  # of Adam
  sgd_rate: float = 0.3  # divided by beta, which multiplies the gradient of these losses
  temperature: float = 1.5  # of the pairs that are not the reference's
  betas: tuple[float, ...] = (0.01, 0.1)


TINY = Setting(seeds=2, width=16, layers=1, tuning=20, pairs=64, few=32, updates=8, rows=8, evaluations=2, prompts=16)


class Contender(NamedTuple):
  """A way to train, at one beta."""

  name: str
  beta: float
  objective: str
  optimizer: str = 'adam'
  data: str = 'pairs'
  scaled: bool = False  # whether the rate is scaled by the mean importance weight


class Subject(NamedTuple):
  """Everything that depends on one seed."""

  seed: int
  reference: Params
  data: dict[str, PreferenceBatch]
  order: np.ndarray  # [evaluations, updates, rows], numbers below the number of pairs


def contenders(setting: Setting) -> list[Contender]:
  """All contenders; the controls have the lowest beta."""
  found = []
  for beta in setting.betas:
    for name, loss in report.LOSSES.items():
      plain = loss.format(beta=beta)
      found.append(Contender(name, beta, plain))
      for clip in report.CLIPS:
        found.append(Contender(report.weighted(name, clip), beta, _weighted(plain, clip)))
    for name, loss in report.BASELINES.items():
      found.append(Contender(name, beta, loss.format(beta=beta, eta=report.ETA * beta)))
  low = min(setting.betas)
  dpo = report.LOSSES['DPO'].format(beta=low)
  weighted = _weighted(dpo, report.CLIPS[0])
  for suffix, changes in report.CONTROLS.items():
    for name, objective in (('DPO', dpo), ('IS-DPO', weighted)):
      if name == 'DPO' or not changes.get('scaled'):
        found.append(Contender(f'{name}, {suffix}', low, objective, **changes))
  return found


def _weighted(loss: str, clip: float) -> str:
  return f'importance_weighted({loss}, clip={clip})'


def prepare(policy: models.LanguageModel, setting: Setting, seed: int) -> Subject:
  """Trains the reference of a seed, and draws and labels its pairs."""
  rng, key = np.random.default_rng([seed, 1]), jax.random.key(seed)
  reference = language.reference(policy, seed, setting.tuning, setting.rows)

  def pairs(temperature: float) -> PreferenceBatch:
    asked = language.prompts(setting.pairs, rng)
    drawn = language.draw(policy, reference, asked, jax.random.fold_in(key, int(10 * temperature)), 2, temperature)
    return language.pairs(policy, reference, drawn, rng)

  own, shifted = pairs(1.0), pairs(setting.temperature)
  own = dataclasses.replace(own, behaviour_logp=None)  # that of the reference, up to rounding
  data = {
    'pairs': own,
    'few': jax.tree.map(lambda x: x[: setting.few], own),
    'shifted': dataclasses.replace(shifted, behaviour_logp=None),
    'known': shifted,
  }
  order = rng.integers(setting.pairs, size=(setting.evaluations, setting.updates // setting.evaluations, setting.rows))
  return Subject(seed, reference, data, order)


def align(
  contender: Contender, training: descent.Descent, judge: language.Judge, subject: Subject, rate: float
) -> list[evaluations.Outcome]:
  """Runs one alignment; returns the outcomes at its evaluations, and first that of the reference."""
  data, key = subject.data[contender.data], jax.random.key(1000 + subject.seed)
  knobs = {'rate': rate}
  now = training.start(subject.reference, knobs)
  found = [evaluations.Outcome(0, judge(subject.reference, subject.reference, key))]
  for order in subject.order:
    now, metrics = training.advance(now, state.Frozen(), data, order % len(data.prompt), knobs)
    weights = {name: float(metrics[name]) for name in (WEIGHT, SHARE) if name in metrics}
    found.append(evaluations.Outcome(int(now.step), judge(now.params, subject.reference, key) | weights))
  return found


def contend(
  setting: Setting, policy: models.LanguageModel, subjects: Sequence[Subject], announce: Callable[[str], None]
) -> list[evaluations.Curve]:
  """Runs all contenders on all seeds."""
  judge, curves = language.Judge(policy, setting.prompts), []
  low, weights = min(setting.betas), np.ones(len(subjects))
  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    for contender in contenders(setting):
      training = descent.Descent(policy, objectives.parse(contender.objective), OPTIMIZERS[contender.optimizer])
      rate = setting.rate if contender.optimizer == 'adam' else setting.sgd_rate / contender.beta
      rates = rate * weights if contender.scaled else np.full(len(subjects), rate)
      run = functools.partial(align, contender, training, judge)
      first = run(subjects[0], rates[0])  # alone, because threads that start together would each compile
      outcomes = [first, *pool.map(run, subjects[1:], rates[1:])]
      curves.append(evaluations.Curve.of(contender.name, contender.beta, contender.objective, outcomes))
      if (contender.name, contender.beta) == (report.weighted('DPO', report.CLIPS[0]), low):
        weights = curves[-1].measures[WEIGHT][1:].mean(axis=0)
      announce(f'{contender.name}, beta {contender.beta}: gold {tables.shown(curves[-1].final("gold"))}')
  return curves


def run(setting: Setting, workdir: pathlib.Path) -> dict[str, Any]:
  """Runs the study, writes figure.png, table.md and summary.json, and returns the summary."""
  session, policy = studies.Session(workdir, setting), language.model(setting.width, setting.layers)
  with session.clock('prepare'):
    subjects = [prepare(policy, setting, seed) for seed in range(setting.seeds)]
  session.announce(f'{setting.seeds} references, {setting.pairs} pairs of each')
  with session.clock('align'):
    curves = contend(setting, policy, subjects, session.announce)
  return session.finish(report.write(workdir, session.console, curves))


def main(options: studies.Options) -> None:
  """Runs the study with the sizes that the options choose."""
  run(studies.sized(options, Setting(), TINY), pathlib.Path(options.workdir))


PROGRAM = program.Program('over_optimisation', __doc__, studies.options('over_optimisation'), main)

if __name__ == '__main__':
  program.start(PROGRAM)
