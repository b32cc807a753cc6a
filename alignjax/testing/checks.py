"""Checks the properties of an objective, one function each. An AssertionError names the objective and the problem."""

from collections.abc import Callable
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from alignjax import objectives, stats
from alignjax.objectives import declarations, examples
from alignjax.testing import recording, tables
from alignjax.types import Array, PreferenceBatch, Term

Oracle = Callable[[PreferenceBatch, np.ndarray, np.ndarray], np.ndarray]
"""(batch, policy, reference log-probabilities [B, N, R, V] in float64) -> loss [B], in numpy."""


@dataclasses.dataclass(frozen=True)
class Setting:
  """An objective, a batch to check it on, and the logits of both models. Results are cached."""

  objective: objectives.Objective
  batch: PreferenceBatch
  policy: Array  # [B, N, R, V] logits
  reference: Array  # [B, N, R, V] logits

  @classmethod
  def of(cls, objective: objectives.Objective, responses: int | None = None, seed: int = 3) -> 'Setting':
    """Creates a random batch with N = `responses`, by default the smallest allowed N, or 2 if any N is allowed."""
    if responses is None:
      responses = min(declarations.accepted(objective.responses) or {2})
    batch = examples.batch(seed, responses=responses, needs=objective.needs)
    return cls(objective, batch, examples.logits(1, batch), examples.logits(2, batch))

  @property
  def inputs(self) -> tuple[Array, Array, PreferenceBatch]:
    return self.policy, self.reference, self.batch

  @functools.cached_property
  def table(self) -> stats.StatTable:
    return tables.table(self.objective.needs, *self.inputs)

  @functools.cached_property
  def term(self) -> Term:
    return self.objective.apply(self.table, self.batch)

  def evaluate(self, policy: Array, reference: Array, batch: PreferenceBatch) -> Term:
    return self.objective.apply(tables.table(self.objective.needs, policy, reference, batch), batch)

  def total(self, policy: Array, reference: Array, batch: PreferenceBatch) -> tuple[Array, Term]:
    """The weighted sum of the losses, and the term."""
    term = self.evaluate(policy, reference, batch)
    return jnp.sum(batch.weight * term.loss), term

  def gradient(self, policy: Array, reference: Array, batch: PreferenceBatch) -> tuple[Array, Term, Array]:
    """The weighted sum of the losses, the term, and the gradient with respect to the policy's logits."""
    (total, term), gradient = jax.value_and_grad(self.total, has_aux=True)(policy, reference, batch)
    return total, term, gradient

  @functools.cached_property
  def pulled_back(self) -> tuple[Array, tuple[Array, Array], tuple[Array, Array]]:
    """The weighted sum of the losses, its gradient with respect to both logits, and the gradient of all metrics."""

    def sums(policy: Array, reference: Array) -> tuple[Array, Array]:
      total, term = self.total(policy, reference, self.batch)
      return total, sum((jnp.sum(value) for value in term.metrics.values()), jnp.float32(0))

    (total, _), pull = jax.vjp(sums, self.policy, self.reference)
    one, zero = jnp.float32(1), jnp.float32(0)
    return total, pull((one, zero)), pull((zero, one))


def _require(condition: bool, setting: Setting, problem: str) -> None:
  if not condition:
    raise AssertionError(f'{setting.objective.name}: {problem}')


def _require_close(found: Array, expected: Array, setting: Setting, problem: str, *, rtol: float, atol: float) -> None:
  found, expected = np.asarray(found), np.asarray(expected)
  if not np.allclose(found, expected, rtol=rtol, atol=atol):
    gap = np.abs(np.float64(found) - np.float64(expected)).max()
    raise AssertionError(f'{setting.objective.name}: {problem} (largest difference {gap:.2e})')


def _names(found: set[stats.Stat] | frozenset[stats.Stat]) -> list[str]:
  return sorted(stat.name for stat in found)


def check_needs(setting: Setting) -> None:
  """The objective reads exactly the statistics that it declares."""
  table = recording.RecordingTable(tables.table(setting.objective.needs, *setting.inputs))
  try:
    setting.objective.apply(table, setting.batch)
  except ValueError as error:
    raise AssertionError(f'{setting.objective.name}: {error}') from error
  unread = setting.objective.needs - table.read
  _require(not unread, setting, f'`needs` declares the statistics {_names(unread)}, which are never read')


def check_reads(setting: Setting) -> None:
  """The loss depends on exactly the declared fields of the batch. Optional fields may be missing."""
  objective, table, batch = setting.objective, setting.table, setting.batch
  refusal = _refusal(setting, table, functools.reduce(_without, sorted(objective.optional), batch))
  _require(not refusal, setting, f'`optional` declares {sorted(objective.optional)}, but without them: {refusal}')
  variants = [batch, *(_without(batch, field) for field in sorted(objective.optional))]
  found = frozenset().union(*(recording.loss_reads(objective, table, variant) for variant in variants))
  undeclared, unread = sorted(found - objective.reads), sorted(objective.reads - found)
  _require(not undeclared, setting, f'the loss reads the fields {undeclared} of the batch: add them to `reads`')
  _require(
    not unread, setting, f'`reads` declares the fields {unread}, but the loss does not depend on them: remove them'
  )
  recorder = recording.RecordingBatch(batch)
  jax.eval_shape(lambda: objective.apply(table, recorder))
  others = sorted(recorder.read - objective.reads - declarations.OF_EVERY_BATCH)
  _require(not others, setting, f'a metric reads the fields {others}, which some batches lack: add them to `reads`')
  for field in sorted(objective.reads - objective.optional - declarations.OF_EVERY_BATCH):
    refusal = _refusal(setting, table, _without(batch, field))
    _require(field in refusal, setting, f'a batch without `{field}` must raise a ValueError that names `{field}`')


def _without(batch: PreferenceBatch, field: str) -> PreferenceBatch:
  if field not in {known.name for known in dataclasses.fields(batch)}:
    return dataclasses.replace(batch, cached={key: value for key, value in batch.cached.items() if key != field})
  return dataclasses.replace(batch, **{field: None})


def _refusal(setting: Setting, table: stats.StatTable, batch: PreferenceBatch) -> str:
  """The error message that tracing the objective on a batch raises; '' without an error."""
  try:
    jax.eval_shape(setting.objective.apply, table, batch)
  except ValueError as error:
    return str(error)
  except Exception as error:
    return f'{type(error).__name__}: {error}'
  return ''


def check_responses(setting: Setting) -> None:
  """The objective accepts the declared numbers of responses. For others, it raises an error with its name."""
  objective = setting.objective
  numbers = declarations.accepted(objective.responses)
  for responses in (1, 2, 3):
    batch = examples.batch(4, prompts=2, responses=responses, needs=objective.needs)
    shapes = {
      stat.name: batch.response.shape[: 2 if isinstance(stat, stats.ResponseStat) and not stat.per_token else 3]
      for stat in objective.needs
    }
    values = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    refusal = _refusal(setting, stats.StatTable(values, batch.response_length), batch)
    declared = f'`responses` declares {declarations.describe_responses(objective.responses)}'
    if numbers is None or responses in numbers:
      _require(not refusal, setting, f'{declared}, but N = {responses} raises: {refusal}')
      continue
    _require(bool(refusal), setting, f'{declared}, but a batch with N = {responses} raises no error')
    named = re.match(r'\w*', refusal)[0] in re.findall(r'(\w+)\(', objective.name)
    _require(
      named and 'N = ' in refusal,
      setting,
      f'the error for N = {responses} must begin with the name of the objective and contain N, got {refusal!r}',
    )


def check_finite(setting: Setting) -> None:
  """The loss is [B] float32, every metric is [B], and all are finite for logits in bfloat16."""
  policy, reference = (logits.astype(jnp.bfloat16) for logits in (setting.policy, setting.reference))
  term = setting.evaluate(policy, reference, setting.batch)
  shape = (setting.batch.prompt.shape[0],)
  _require(
    term.loss.shape == shape and term.loss.dtype == jnp.float32,
    setting,
    f'the loss must be [B] = {shape} float32, one number for each prompt, got {term.loss.shape} {term.loss.dtype}',
  )
  _require(bool(jnp.all(jnp.isfinite(term.loss))), setting, 'the loss is not finite for logits in bfloat16')
  for name, value in term.metrics.items():
    _require(value.shape == shape, setting, f'the metric {name!r} must be [B] = {shape}, got {value.shape}')
    _require(bool(jnp.all(jnp.isfinite(value))), setting, f'the metric {name!r} is not finite for logits in bfloat16')


def check_extremes(setting: Setting) -> None:
  """Loss, metrics and gradient are finite for uniform distributions, and for tiny and huge log-ratios."""
  sizes = np.array([0.0, 1e-4, 1e4], np.float32)
  prompts = setting.batch.prompt.shape[0]
  # Independent prompts share one batch with all sizes; coupled prompts need a batch for each size.
  batches = (
    [np.full(prompts, size) for size in sizes] if setting.objective.couples_rows else [np.resize(sizes, prompts)]
  )
  for size in batches:
    scale = size[:, None, None, None]
    _, term, gradient = setting.gradient(scale * setting.policy, -scale * setting.reference, setting.batch)
    for name, value in {'the loss': term.loss, 'the gradient': gradient, **term.metrics}.items():
      bad = size[~np.isfinite(np.asarray(value).reshape(prompts, -1)).all(axis=1)]
      _require(not bad.size, setting, f'{name} is not finite for logits of size {sorted(set(bad.tolist()))}')


def check_padding(setting: Setting) -> None:
  """The content of the padding changes neither loss nor gradient, and the gradient of padding is 0."""
  objective, (policy, reference, batch) = setting.objective, setting.inputs
  size = batch.response.shape[-1]
  padding = np.arange(size) >= np.asarray(batch.response_length)[..., None]
  junk = dataclasses.replace(batch, response=jnp.where(padding, (batch.response + 3) % examples.VOCAB, batch.response))
  noise = 50.0 * jnp.cos(jnp.arange(policy.size).reshape(policy.shape))
  noisy, _, noisy_gradient = setting.gradient(jnp.where(padding[..., None], noise, policy), reference, junk)
  total, (gradient, _), _ = setting.pulled_back
  _require(bool(total == noisy), setting, 'the content of the padding changes the loss')
  same = np.array_equal(gradient, noisy_gradient) and not np.any(np.asarray(gradient)[padding])
  _require(same, setting, 'the content of the padding changes the gradient, or the gradient of padding is not 0')
  live = any(stat.policy and stat.name not in batch.cached for stat in objective.needs)
  _require(bool(np.any(gradient)) or not live, setting, 'the gradient is 0 everywhere')


def check_permutation(setting: Setting) -> None:
  """Permuting the prompts of a batch permutes their losses, unless the objective declares that their order matters."""
  if setting.objective.ordered:
    return
  order = np.random.default_rng(0).permutation(setting.batch.prompt.shape[0])
  table, batch = jax.tree.map(lambda x: x[order], (setting.table, setting.batch))
  found = setting.objective.apply(table, batch).loss
  problem = 'permuting the prompts of a batch does not permute their losses; if that is intended, declare ordered=True'
  _require_close(found, setting.term.loss[order], setting, problem, rtol=1e-6, atol=0)


def check_deletion(setting: Setting) -> None:
  """A prompt with weight 0 changes neither the loss nor the gradient of other prompts."""
  policy, reference, batch = setting.inputs
  keep = np.resize([True, False, True, True, False, True], batch.prompt.shape[0])
  masked = dataclasses.replace(batch, weight=batch.weight * keep)
  total, _, gradient = setting.gradient(policy, reference, masked)
  if setting.objective.couples_rows:
    expected, _, expected_gradient = setting.gradient(*jax.tree.map(lambda x: x[keep], setting.inputs))
  else:  # prompts are independent (`check_vmap` checks this), so the others keep their values
    expected, expected_gradient = jnp.sum(masked.weight * setting.term.loss), setting.pulled_back[1][0][keep]
  problem = 'a prompt with weight 0 must count as deleted, but it changes the '
  _require_close(total, expected, setting, problem + 'loss', rtol=1e-6, atol=0)
  _require_close(gradient[keep], expected_gradient, setting, problem + 'gradient', rtol=1e-5, atol=1e-7)
  _require(not np.any(gradient[~keep]), setting, 'a prompt with weight 0 must count as deleted, but it has a gradient')


def check_reference_gradient(setting: Setting) -> None:
  """No gradient flows into the reference."""
  _, (_, gradient), _ = setting.pulled_back
  _require(not np.any(gradient), setting, 'a gradient flows into the reference')


def check_metric_gradient(setting: Setting) -> None:
  """Metrics carry no gradient."""
  _, _, gradients = setting.pulled_back
  problem = 'a metric carries gradient: wrap it in jax.lax.stop_gradient'
  _require(not any(np.any(gradient) for gradient in gradients), setting, problem)


def check_coupling(setting: Setting) -> None:
  """An objective whose losses depend on other prompts of the batch declares it."""
  if not setting.objective.couples_rows:
    found = objectives.couples(setting.objective, setting.batch.response.shape[1])
    problem = 'the loss of a prompt depends on other prompts of the batch: declare couples_rows=True'
    _require(not found, setting, problem)


def check_vmap(setting: Setting) -> None:
  """Each prompt alone has the same loss, unless the objective couples prompts."""
  if not setting.objective.couples_rows:
    rows = jax.tree.map(lambda x: x[:, None], (setting.table, setting.batch))
    found = jax.vmap(lambda table, batch: setting.objective.apply(table, batch).loss)(*rows)[:, 0]
    problem = 'under jax.vmap, one prompt at a time, the losses differ'
    _require_close(found, setting.term.loss, setting, problem, rtol=1e-5, atol=1e-6)


def check_jit(setting: Setting) -> None:
  """The compiled loss equals the loss without compilation."""
  found = jax.jit(lambda *inputs: setting.evaluate(*inputs).loss)(*setting.inputs)
  _require_close(found, setting.term.loss, setting, 'under jax.jit the losses differ', rtol=1e-5, atol=1e-6)


def check_algebra(setting: Setting) -> None:
  """Losses add and scale, metrics keep their names, and a sum declares what its parts declare."""
  objective, batch, one = setting.objective, setting.batch, setting.term
  other = objectives.dpo(beta=0.7) if batch.response.shape[1] == 2 else objectives.sft()
  table = tables.table(objective.needs | other.needs, *setting.inputs)
  two = other.apply(table, batch)
  added, scaled = (objective + 0.5 * other).apply(table, batch), (2 * objective).apply(table, batch)
  _require_close(added.loss, one.loss + 0.5 * two.loss, setting, 'a + 0.5 * b is wrong', rtol=1e-6, atol=0)
  _require_close(scaled.loss, 2 * one.loss, setting, '2 * a is wrong', rtol=1e-6, atol=0)
  for name, value in one.metrics.items():
    kept = name in added.metrics and np.array_equal(added.metrics[name], value)
    _require(kept, setting, f'a sum loses or changes the metric {name!r} of its first part')
  both = objective + other
  kept = both.needs == objective.needs | other.needs and both.reads == objective.reads | other.reads
  kept = kept and dict(both.memory.initial) == dict(objective.memory.initial)
  kept = kept and all(
    getattr(both, field) == getattr(objective, field) for field in ('couples_rows', 'ordered', 'on_policy')
  )
  _require(kept, setting, 'a sum does not declare what its parts declare')


def check_name(setting: Setting) -> None:
  """The name is an expression that builds the same objective."""
  objective = setting.objective
  try:
    again = objectives.parse(objective.name)
  except ValueError as error:
    raise AssertionError(
      f'{objective.name}: the name does not parse; decorate the factory with @objectives.factory ({error})'
    ) from error
  declared = ('name', 'needs', 'reads', 'optional', 'responses', 'couples_rows', 'ordered', 'on_policy')
  for field in declared:
    found, expected = getattr(again, field), getattr(objective, field)
    _require(found == expected, setting, f'the name builds an objective with another `{field}`: {found}')
  loss = again.apply(setting.table, setting.batch).loss
  _require(np.array_equal(loss, setting.term.loss), setting, 'the name builds an objective with another loss')


def check_value_at_reference(setting: Setting, value: float) -> None:
  """At policy == reference with hard labels, every loss has the documented value and every reward is 0."""
  batch = dataclasses.replace(setting.batch, label=jnp.ones_like(setting.batch.label))
  term = setting.evaluate(setting.policy, setting.policy, batch)
  problem = f'the loss at policy == reference must be {value:.6f}, got {np.asarray(term.loss)}'
  _require_close(term.loss, np.full(term.loss.shape, value), setting, problem, rtol=1e-6, atol=1e-6)
  for name, expected in {
    'reward_chosen': 0.0,
    'reward_rejected': 0.0,
    'reward_margin': 0.0,
    'reward_accuracy': 0.5,
  }.items():
    found = np.asarray(term.metrics.get(name, expected))
    _require(bool(np.all(found == expected)), setting, f'{name} at policy == reference must be {expected}, got {found}')


def check_oracle(setting: Setting, oracle: Oracle) -> None:
  """The loss equals the result of a float64 oracle."""
  policy, reference = (_log_softmax(np.asarray(logits, np.float64)) for logits in (setting.policy, setting.reference))
  expected = oracle(jax.tree.map(np.asarray, setting.batch), policy, reference)
  scale = max(1.0, float(np.abs(expected).max()))
  _require_close(
    setting.term.loss / scale, expected / scale, setting, 'the loss differs from the oracle', rtol=0, atol=2e-6
  )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
  shifted = logits - logits.max(axis=-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


PROPERTIES: tuple[Callable[[Setting], None], ...] = (
  check_responses,
  check_needs,
  check_reads,
  check_finite,
  check_coupling,
  check_padding,
  check_permutation,
  check_deletion,
  check_reference_gradient,
  check_metric_gradient,
  check_extremes,
  check_vmap,
  check_jit,
  check_algebra,
  check_name,
)
"""The properties of every objective, in the order of the checks."""


def check_objective(
  objective: objectives.Objective,
  *,
  responses: int | None = None,
  at_reference: float | None = None,
  oracle: Oracle | None = None,
) -> None:
  """Checks that an objective keeps the contract of the library's own objectives.

  Args:
    objective: the objective to check.
    responses: N of the batch; by default the smallest allowed N, or 2 if any N is allowed.
    at_reference: the loss of every prompt at policy == reference for hard labels; None if it is not constant.
    oracle: computes the loss [B] in float64 numpy from a batch and the log-probabilities [B, N, R, V] of policy and
      reference; None skips the check of values.

  Raises:
    AssertionError: the objective lacks a property. The message describes the first one.
  """
  setting = Setting.of(objective, responses)
  for check in PROPERTIES:
    check(setting)
  if at_reference is not None:
    check_value_at_reference(setting, at_reference)
  if oracle is not None:
    check_oracle(setting, oracle)
