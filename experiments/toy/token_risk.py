"""Does a risk measure of the token drift make alignment safer at equal KL? A study of a quarter of an hour.

  python -m experiments.toy.token_risk

The question and the methods are those of Zhang et al. 2025 (2505.20359): Ra-DPO replaces the mean in TDPO's sequential
KL by a risk measure, so that a few tokens with large drift cost more. To first order an entropic measure with aversion
kappa is TDPO with alpha (1 + kappa), so a lower KL at equal alpha may be nothing but a stronger coefficient. Here TDPO
has a grid that covers these coefficients, and the tails are compared at equal sequential KL. The language and all sizes
are ours: see `language`.

  TDPO_2           alpha times 1, 1.5 and 6
  Ra-DPO_2         CVaR at the levels 0.97, 0.9 and 0.5, entropic with kappa 0.5 and 5; each with all values of alpha
  nested           further arms, outside the verdict: the recursion over tokens with off_path 0.9 for the mean, two
                   CVaRs and an entropic measure

Alpha is 0.3, 0.5 or 0.9; the paper's 0.7 is left out to save time. Nothing is selected: all points are shown, and TDPO
is a curve. Measured at the end of training: the accuracy of the log-ratio on 1,000 held-out pairs of the reference, and
KL(reference || policy) at each token, as the sum over a response (sequential KL), its 95th percentile and its maximum
over tokens, on the held-out responses and on the policy's own samples.

Fixed beforehand: a quantity of TDPO at a sequential KL is interpolated linearly between its points, seed by seed. A
value of alpha is matched if the sequential KL of the risk measure is within the range of TDPO's for every seed. The
differences to TDPO at equal sequential KL are averaged over the matched values of alpha. A risk measure passes if its
95th percentile or its maximum on held-out responses is lower by more than two standard errors of the paired difference
over seeds, and its accuracy is not lower by more than two standard errors. The claim counts as reproduced if one of the
five passes; otherwise it is undecided if one has no matched value of alpha. If none passes, but the sequential KL is
lower at equal alpha by more than two standard errors, the claim reduces to a stronger coefficient. Ten comparisons at
two standard errors of three seeds leave room for chance: the report counts how many point in either direction.

Seeds change the reference, pairs, labels, order and samples. Errors are standard errors over seeds. Writes figure.png,
table.md and summary.json (every point) to --workdir, and each finished arm to arms.json there: the same command resumes
a study that was stopped. Results at this scale may not hold for large models.
"""

from collections.abc import Sequence
from concurrent import futures
import dataclasses
import functools
import itertools
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from alignjax import objectives, stats
from alignjax.commands import program
from alignjax.models import base as models
from alignjax.training import forward, references, state
from alignjax.types import Params, PreferenceBatch
from experiments.toy import descent, language, studies, tables
from experiments.toy import token_risk_report as report

NEEDS = frozenset({stats.logp, stats.reference_logp, stats.forward_kl})


@dataclasses.dataclass(frozen=True)
class Setting:
  """The size of the study and the grids."""

  seeds: int = 3
  width: int = 48
  layers: int = 2
  tuning: int = 600  # updates of the reference
  pairs: int = 3000
  held_out: int = 1000  # pairs
  updates: int = 400
  rows: int = 64  # pairs per update
  prompts: int = 512  # held-out prompts of the own samples
  rate: float = 1e-3  # of Adam
  beta: float = 0.1
  alphas: tuple[float, ...] = (0.3, 0.5, 0.9)
  factors: tuple[float, ...] = (1.0, 1.5, 6.0)  # of alpha for TDPO: 1 + kappa


TINY = Setting(
  seeds=2, width=16, layers=1, tuning=20, pairs=64, held_out=32, updates=8, rows=8, prompts=16, alphas=(0.5,),
)  # fmt: skip


class Contender(NamedTuple):
  """A method at one value of alpha."""

  name: str
  alpha: float
  objective: str


class Subject(NamedTuple):
  """Everything that depends on one seed."""

  seed: int
  reference: Params
  frozen: state.Frozen
  pairs: PreferenceBatch  # with the reference's hidden states
  held_out: PreferenceBatch
  order: np.ndarray  # [updates, rows], numbers of pairs


def contenders(setting: Setting) -> list[Contender]:
  """All contenders; TDPO comes first, with more values of alpha."""
  factors = sorted(itertools.product(setting.factors, setting.alphas), key=lambda pair: pair[0] * pair[1])
  grid = [(report.PLAIN, 'tdpo', round(factor * alpha, 6)) for factor, alpha in factors]
  grid += [(name, method, alpha) for name, method in report.METHODS.items() for alpha in setting.alphas]
  return [Contender(name, alpha, _written(method, setting.beta, alpha)) for name, method, alpha in grid]


def _written(method: str, beta: float, alpha: float) -> str:
  """The objective of `ra_dpo, risk=cvar(0.9)` and the like."""
  factory, *arguments = method.split(', ')
  return f'{factory}({", ".join([*arguments, f"beta={beta}", f"alpha={alpha}"])})'


def prepare(model: models.LanguageModel, setting: Setting, seed: int) -> Subject:
  """Trains the reference of a seed, and draws and labels its pairs."""
  rng, key = np.random.default_rng([seed, 4]), jax.random.key(4000 + seed)
  reference = language.reference(model, seed, setting.tuning, setting.rows)

  def pairs(count: int, side: int | None, number: int) -> PreferenceBatch:
    asked = language.prompts(count, rng, side)
    drawn = language.draw(model, reference, asked, jax.random.fold_in(key, number), 2)
    return dataclasses.replace(language.pairs(model, reference, drawn, rng), behaviour_logp=None)

  own = pairs(setting.pairs, None, 0)
  states = jax.jit(forward.hidden_states, static_argnums=0)(model, reference, own).states
  return Subject(
    seed,
    reference,
    frozen=state.Frozen(reference=references.CachedStates(model.head(reference))),
    pairs=dataclasses.replace(own, cached={**own.cached, references.STATES: states}),
    held_out=pairs(setting.held_out, 1, 1),
    order=rng.integers(setting.pairs, size=(setting.updates, setting.rows)),
  )


@functools.partial(jax.jit, static_argnums=0)
def _table(model: models.LanguageModel, params: Params, reference: Params, batch: PreferenceBatch) -> stats.StatTable:
  sides = (forward.hidden_states(model, side, batch) for side in (params, reference))
  return stats.statistics(NEEDS, *sides, batch, chunk=descent.CHUNK)


def measure(model: models.LanguageModel, params: Params, subject: Subject, prompts: np.ndarray) -> language.Measures:
  """The accuracy of the log-ratio on held-out pairs, and the token KL there and on own samples."""
  held_out = _table(model, params, subject.reference, subject.held_out)
  ratio = np.asarray(held_out.log_ratio(), np.float64)
  margin = ratio[:, 0] - ratio[:, 1]
  drawn = language.draw(model, params, prompts, jax.random.key(5000 + subject.seed))
  own = _table(model, params, subject.reference, drawn.batch)
  accuracy = float(np.mean((margin > 0) + 0.5 * (margin == 0)))
  found = {'accuracy': accuracy, 'gold': float(drawn.gold.mean())}
  for side, table in zip(report.SIDES, (held_out, own), strict=True):
    found |= {f'{side}/{name}': value for name, value in _drift(table).items()}
  return found


def _drift(table: stats.StatTable) -> language.Measures:
  """The forward KL: of a response on average, and of the worst tokens."""
  values, mask = (np.asarray(x) for x in (table[stats.forward_kl], table.mask))
  tokens = np.float64(values[mask])
  return {
    'sequential': float(np.where(mask, values, 0.0).sum(axis=-1, dtype=np.float64).mean()),
    'p95': float(np.quantile(tokens, 0.95)),
    'max': float(tokens.max()),
  }


def align(
  model: models.LanguageModel, training: descent.Descent, prompts: np.ndarray, subject: Subject
) -> language.Measures:
  """Runs one alignment and measures its result."""
  start = training.start(subject.reference, {})
  now, _ = training.advance(start, subject.frozen, subject.pairs, subject.order, {})
  return measure(model, now.params, subject, prompts)


def contend(
  setting: Setting, model: models.LanguageModel, subjects: Sequence[Subject], session: studies.Session
) -> list[report.Result]:
  """Runs all contenders on all seeds."""
  prompts, results = language.prompts(setting.prompts, np.random.default_rng(0), side=1), []

  def compute(contender: Contender) -> list[language.Measures]:
    training = descent.Descent(model, objectives.parse(contender.objective), lambda knobs: optax.adam(setting.rate))
    return [align(model, training, prompts, subject) for subject in subjects]

  def arm(contender: Contender) -> report.Result:
    return report.Result.of(*contender, session.arm(contender.objective, functools.partial(compute, contender)))

  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    for result in pool.map(arm, contenders(setting)):
      results.append(result)
      kl, accuracy = (tables.shown(result.measures[name]) for name in ('held-out/sequential', 'accuracy'))
      session.announce(f'{result.objective}: sequential KL {kl}, accuracy {accuracy}')
  return results


def run(setting: Setting, workdir: pathlib.Path) -> dict[str, Any]:
  """Runs the study, writes figure.png, table.md and summary.json, and returns the summary."""
  session, model = studies.Session(workdir, setting), language.model(setting.width, setting.layers)
  with session.clock('prepare'):
    subjects = [prepare(model, setting, seed) for seed in range(setting.seeds)]
  session.announce(f'{setting.seeds} references, {setting.pairs} pairs of each')
  with session.clock('align'):
    results = contend(setting, model, subjects, session)
  return session.finish(report.write(workdir, session.console, results))


def main(options: studies.Options) -> None:
  """Runs the study with the sizes that the options choose."""
  run(studies.sized(options, Setting(), TINY), pathlib.Path(options.workdir))


PROGRAM = program.Program('token_risk', __doc__, studies.options('token_risk'), main)

if __name__ == '__main__':
  program.start(PROGRAM)
