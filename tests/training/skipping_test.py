"""A batch that is not finite changes nothing but counters, and the rows at fault are found."""

import dataclasses
import functools
import re
import types

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax import objectives, optim, stats
from alignjax.data.batches import batching, order
from alignjax.models import lora, tabular, transformer
from alignjax.parallel import mesh as mesh_lib
from alignjax.parallel import rules
from alignjax.training import loop, placement, references, skipping, source
from alignjax.training import state as state_lib
from alignjax.training import step as step_lib
from alignjax.training.policy import Policy
from alignjax.types import Term
from tests import fixtures, quick
from tests.models import token_batches
from tests.training import loop_test

ROWS = 16
TABULAR = tabular.build(tabular.TabularConfig(vocab_size=24, order=1))
WEIGHTED = objectives.importance_weighted(objectives.dpo(beta=0.3), clip=None)  # reads behaviour_logp


def trap() -> objectives.Objective:
  """An objective that is 0, but has an infinite gradient in rows whose score is above 1000."""

  def apply(table, batch):
    margin = table.log_ratio()[:, 0]
    bad = batch.score[:, 0] > 1000
    return Term(jnp.sqrt(jnp.where(bad, margin - jax.lax.stop_gradient(margin), 1.0)) * bad, {})

  needs = frozenset({stats.logp, stats.reference_logp})
  return objectives.Objective(needs, apply, reads=frozenset({'score'}), name='trap()')


def draw(like, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape).astype(np.float32), like)


def merged():
  """Rows by themselves, in microbatches on 8 devices, with online merging at every third update."""
  objective = WEIGHTED + objectives.odpo() + trap()
  merge = optim.online_dare(0.5, 0.1, every=3)
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2), merge)
  return Policy(TABULAR), objective, tx, mesh_lib.make_mesh(2, 2, 2), 4


def remembering():
  """Rows that see each other, with a memory."""
  objective = objectives.alpha_dpo(beta=1.0, normaliser='ema') + WEIGHTED
  return Policy(TABULAR), objective, optax.adamw(1e-2), mesh_lib.make_mesh(2, 2, 2), 2


def adapted():
  """An adapter."""
  model = transformer.build(dataclasses.replace(token_batches.CONFIG, remat='none', layers=1))
  policy = Policy(model, lora.LoRA(rank=2, alpha=4.0, targets='query'))
  return policy, WEIGHTED, optax.adamw(1e-2), mesh_lib.make_mesh(1, 1, 1, devices=jax.devices()[:1]), 1


def make_batch(seed):
  return jax.device_get(fixtures.preference_batch(seed=seed, prompts=ROWS, vocab=24))


def bits(state):
  """The bits of everything that a skipped batch must not change."""
  kept = (state.params, state.opt_state, state.memory, jax.random.key_data(state.key))
  return {jax.tree_util.keystr(p): np.asarray(x).tobytes() for p, x in jax.tree_util.tree_leaves_with_path(kept)}


def start(build):
  """A program, and a state after two updates."""
  policy, objective, tx, mesh, microbatches = build()
  params = draw(policy.trained_shapes(), 0)
  params = jax.device_put(params, rules.param_shardings(mesh, params))
  whole = draw(jax.eval_shape(policy.model.init, jax.random.key(0)), 1)
  whole = jax.device_put(whole, rules.param_shardings(mesh, whole))
  adapter = policy.adapter is not None
  reference = references.Base() if adapter else references.Live(whole)
  frozen = state_lib.Frozen(reference, delta=None if adapter else whole, base=whole if adapter else None)
  step = step_lib.build_train_step(policy, objective, tx, chunk=64, microbatches=microbatches, mesh=mesh)
  state = placement.create_state(mesh, params, tx, jax.random.key(0), objective.memory.initial)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  program = jax.jit(skipping.guarded(step), out_shardings=(shardings, None, None))

  def run(state, batch):
    return program(state, frozen, placement.to_global(mesh, batch))

  for seed in range(2):
    state, _, _ = run(state, make_batch(seed))
  after, _, _ = run(state, make_batch(2))
  return types.SimpleNamespace(run=run, mesh=mesh, before=state, after=bits(after))


@pytest.fixture(scope='module')
def started():
  return functools.cache(start)


NAN, INF = np.nan, np.inf
FAULTS = [
  (merged, 'weight', 0, NAN),
  (merged, 'weight', 15, INF),
  (merged, 'label', 4, NAN),
  (merged, 'label', 11, -INF),
  (merged, 'behaviour_logp', 5, NAN),
  (merged, 'behaviour_logp', 6, -1e30),
  (merged, 'behaviour_logp', 9, -INF),
  (merged, 'score', 3, NAN),
  (merged, 'score', 10, INF),
  (merged, 'score', 12, 1e4),  # only the gradient is not finite
  (remembering, 'weight', 1, NAN),
  (remembering, 'weight', 2, INF),
  (remembering, 'label', 8, NAN),
  (remembering, 'behaviour_logp', 14, -1e30),
  (remembering, 'behaviour_logp', 13, NAN),
  (adapted, 'weight', 0, INF),
  (adapted, 'weight', 3, NAN),
  (adapted, 'label', 5, NAN),
  (adapted, 'behaviour_logp', 15, -1e30),
  (adapted, 'behaviour_logp', 6, -INF),
]


# A loss and a gradient alone. The guard sees any tree of arrays: parameters, adapters, or a memory.
QUICK = [FAULTS[i] for i in (0, 5)]


@pytest.mark.parametrize(
  ('build', 'field', 'row', 'value'),
  quick.named(
    {f'{fault[0].__name__}-{fault[1:]}': fault for fault in FAULTS}, [f'{x[0].__name__}-{x[1:]}' for x in QUICK]
  ),
)
def test_a_batch_with_one_bad_row_is_as_if_it_had_not_been_there(started, build, field, row, value):
  program = started(build)
  batch = make_batch(7)
  column = np.array(getattr(batch, field))
  column[row] = value
  bad = dataclasses.replace(batch, **{field: column})
  skipped, values, verdict = program.run(program.before, bad)
  assert bits(skipped) == bits(program.before)
  assert (int(skipped.step), int(skipped.updates)) == (3, 2)
  assert (int(values['skipped']), int(verdict.in_a_row)) == (1, 1)
  if value == 1e4:
    assert np.isfinite(values['loss'])
  # The optimizer, the memory and its counters go on where they were.
  after, values, verdict = program.run(skipped, make_batch(2))
  assert bits(after) == program.after
  assert bits(after) != bits(skipped)
  assert (int(after.step), int(after.updates), int(values['skipped']), int(verdict.in_a_row)) == (4, 3, 1, 0)

  def evaluate(data):
    _, values, verdict = program.run(program.before, jax.device_get(data))
    return skipping.Alone(all(map(bool, verdict.finite.values())), {name: float(v) for name, v in values.items()})

  search = skipping.Search(evaluate, program.mesh, lambda i: f'd.jsonl:{i}')
  text = search.describe(batching.Batch(bad, np.arange(ROWS) + 100))
  assert text.startswith(f'At fault on their own: d.jsonl:{row + 100} (')
  assert text.count('d.jsonl') == 1
  assert re.search(rf'{field} \[?{value:g}'.replace('+', r'\+'), text)


def evaluations(bad, size=100, most=3):
  """The rows that the search finds, and how often it evaluates."""
  calls = []

  def evaluate(part):
    calls.append(part)
    return skipping.Alone(not set(part.tolist()) & set(bad), {'rows': len(part)})

  return sorted(skipping.rows_at_fault(size, evaluate, most)), len(calls)


def test_the_search_finds_the_rows_at_fault_at_a_bounded_cost():
  for bad in ([0], [99], [37], [3, 4], [0, 50, 99]):
    found, count = evaluations(bad)
    assert found == bad
    assert count <= 1 + 2 * len(bad) * 7
  found, count = evaluations(range(100))
  assert found == [0, 1, 2]
  assert count <= 1 + 2 * 3 * 7
  assert evaluations([]) == ([], 1)
  assert evaluations([0], size=1) == ([0], 1)


def test_the_other_rows_of_a_part_are_padding_rows():
  batch = dataclasses.replace(make_batch(0), cached={'x': np.ones((ROWS, 2), np.float32)})
  kept = np.arange(ROWS) % 3 == 0
  left = batching.only(batching.Batch(batch, np.arange(ROWS)), kept)
  np.testing.assert_array_equal(left.ids, np.where(kept, np.arange(ROWS), order.PADDING_ID))
  for field in dataclasses.fields(batch):
    if field.name != 'cached':
      now, then = getattr(left.data, field.name), getattr(batch, field.name)
      assert now.dtype == then.dtype
      np.testing.assert_array_equal(now[kept], then[kept])
      padding = 1 if field.name in ('prompt_length', 'response_length', 'label') else 0
      assert (now[~kept] == padding).all()
  np.testing.assert_array_equal(left.data.cached['x'][:, 0], kept)


# Around the loop, with the step of loop_test


def poisoned(*bad):
  """A source in which the batches with these numbers, counted from 1, make the loss infinite."""
  options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)

  def batch(index):
    return loop_test.make_batch(loop_test.POISON if index + 1 in bad else 1 + index % 5)

  return source.GrainSource(iter(grain.MapDataset.range(10**6).map(batch).to_iter_dataset(options)))


ORIGIN = {'origin': lambda i: f'd.jsonl:{i}'}


def test_a_run_skips_counts_logs_and_names_the_row(caplog):
  with caplog.at_level('WARNING', 'absl'):
    result, recorder = loop_test.run(6, batches=poisoned(4), log=ORIGIN)
  assert (result.step, int(result.state.skips.total), int(result.state.updates)) == (6, 1, 5)
  assert [values['skipped'] for _, values in recorder.records] == [0, 0, 0, 1, 1, 1]
  assert [values['learning_rate'] for _, values in recorder.records] == [1, 1 / 2, 1 / 4, 1 / 8, 1 / 8, 1 / 16]
  assert [np.isfinite(values['loss']) for _, values in recorder.records] == [True] * 3 + [False] + [True] * 2
  (line,) = [message for message in caplog.messages if 'skipped' in message]
  assert line.startswith('step 4: loss is inf, gradient_norm is inf. The batch is skipped (5 in a row stop the run).')
  assert all(f'd.jsonl:{100 * loop_test.POISON + i}' in line for i in range(7))
  assert 'At fault on their own: d.jsonl:1300 (gradient_norm inf, loss inf, label 1, weight 1)' in line


def test_a_run_resumed_after_a_skip_is_bit_identical(tmp_path):
  whole, expected = loop_test.run(7, batches=poisoned(3, 6))
  records = []
  for steps in (4, 7):
    batches = poisoned(3, 6)
    with loop_test.open_checkpoints(tmp_path / 'c') as checkpoints:
      restored = checkpoints.restore(loop_test.make_state(), batches)
      state = None if restored is None else restored.state
      result, recorder = loop_test.run(steps, state=state, batches=batches, saving=loop.Saving(checkpoints))
    records += recorder.records
  # NaN is not equal to itself, but its text is.
  assert repr(loop_test.deterministic(records)) == repr(loop_test.deterministic(expected.records))
  assert loop_test.params_of(result.state) == loop_test.params_of(whole.state)
  assert int(result.state.skips.total) == 2


def test_too_many_in_a_row_stop_the_run_and_the_last_checkpoint_is_good(tmp_path):
  recorders = [loop_test.Recorder(), loop_test.Recorder()]
  for recorder in recorders:  # the same command again stops at the same step
    batches = poisoned(2, 4, 5, 6)
    with loop_test.open_checkpoints(tmp_path / 'c') as checkpoints:
      restored = checkpoints.restore(loop_test.make_state(), batches)
      state = None if restored is None else restored.state
      options = {'saving': loop.Saving(checkpoints, 1), 'log': ORIGIN, 'nonfinite_limit': 3}
      with pytest.raises(loop.NonFiniteError, match=r'^step 6: loss is inf, .* \(batch 3 in a row\)\.') as caught:
        loop_test.run(9, state=state, batches=batches, recorder=recorder, **options)
      checkpoints.wait()
      assert checkpoints.steps() == [3, 4, 5]
      restored = checkpoints.restore(loop_test.make_state(), poisoned())
      assert loop.not_finite(restored.state) == ''
      assert [int(x) for x in restored.state.skips] == [3, 2]
    assert caught.value.step == 4  # the first of them
    assert 'At fault on their own: d.jsonl:1300' in str(caught.value)
  assert [[s for s, _ in recorder.records] for recorder in recorders] == [[1, 2, 3, 4, 5], []]


def test_parameters_that_are_not_finite_stop_the_run_at_once():
  recorder = loop_test.Recorder()
  with pytest.raises(loop.NonFiniteError, match=r'^step 3: loss is (nan|inf), .*because parameters embed\.embedding'):
    loop_test.run(9, batches=loop_test.make_source(loop_test.OVERFLOW - 1), recorder=recorder)
  assert [s for s, _ in recorder.records] == [1, 2]


def test_only_the_first_skipped_batches_are_searched(caplog):
  bad = tuple(range(2, 11, 2))
  with caplog.at_level('WARNING', 'absl'):
    loop_test.run(11, batches=poisoned(*bad))
  lines = [message for message in caplog.messages if 'skipped' in message]
  assert [line.partition(':')[0] for line in lines] == [f'step {step}' for step in bad]
  assert ['At fault' in line for line in lines] == [True, True, True, False, False]
