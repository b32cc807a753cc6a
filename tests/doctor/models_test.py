"""Tests of what `alignjax.doctor` finds in models, batch shapes, memory and objectives."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import objectives, risk
from alignjax.data.batches import batching
from alignjax.data.tokens import dataset, tokenization
from alignjax.doctor import batches, consistency, declarations, embeddings, findings, memory, start
from alignjax.models import transformer
from alignjax.training import forward, references, state
from alignjax.training.policy import Policy
from tests import assets, fixtures, quick
from tests.models import token_batches

CONFIG = transformer.TransformerConfig(
  vocab_size=11,
  width=8,
  layers=1,
  heads=2,
  kv_heads=2,
  head_width=4,
  mlp_width=8,
  norm_epsilon=1e-5,
  rope_theta=100.0,
  tied_embeddings=True,
  max_positions=32,
)
MODEL = transformer.build(CONFIG)
OBJECTIVE = objectives.dpo(beta=0.1) + 0.1 * objectives.sft()
SAME = {'same_model': True, 'compute_dtype': 'float32', 'vocab_size': 11, 'reference': 'ref'}


@pytest.fixture(scope='module')
def params():
  trees = [token_batches.params(MODEL, seed) for seed in range(2)]
  # Small logits: a random model that is sure of itself is worse than a uniform guess.
  return [tree | {'final_norm': {'scale': 0.05 * tree['final_norm']['scale']}} for tree in trees]


@pytest.fixture(scope='module')
def batch():
  return fixtures.preference_batch(prompts=4)


def measured(params, frozen, batch, objective=OBJECTIVE):
  measure = jax.jit(start.build_measurement(Policy(MODEL), objective, chunk=64))
  return {name: value.item() for name, value in measure(params, frozen, batch).items()}


def named(found):
  return {finding.name: finding.severity for finding in found}


def test_a_policy_that_is_its_own_reference_has_the_loss_of_the_objective_there(params, batch):
  found = measured(params[0], state.Frozen(references.Live(params[0])), batch)
  assert found['drift'] == 0
  assert found['loss'] == found['loss_at_reference']
  sft = (found['loss'] - math.log(2)) / 0.1  # labels are soft, but at margin 0 that makes no difference
  assert sft > 0.5
  assert named(start.examine(found, **SAME)) == {}


def test_the_drift_is_the_mean_of_absolute_log_ratios_over_tokens(params, batch):
  batch = dataclasses.replace(batch, weight=jnp.asarray([1.0, 0.0, 2.0, 1.0]))
  found = measured(params[0], state.Frozen(references.Live(params[1])), batch)
  logps, hidden_states = [], jax.jit(lambda tree: forward.hidden_states(MODEL, tree, batch))
  for tree in params:
    hidden = hidden_states(tree)
    logits = np.asarray(hidden.states, np.float64) @ np.asarray(hidden.head.kernel, np.float64)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    logps.append(np.take_along_axis(logits, np.asarray(batch.response)[..., None], -1)[..., 0])
  mask = np.arange(batch.response.shape[-1]) < np.asarray(batch.response_length)[..., None]
  mask[1] = False
  assert found['drift'] == pytest.approx(np.abs(logps[0] - logps[1])[mask].mean(), rel=1e-5)
  assert found['logp'] == pytest.approx(logps[0][:, 0][mask[:, 0]].mean(), rel=1e-5)


@pytest.mark.slow  # doctor_test.py examines SimPO
def test_an_objective_without_reference_is_measured_without_one(params, batch):
  found = measured(params[0], state.Frozen(), batch, objectives.simpo(beta=2.0, gamma=0.5))
  assert found.keys() == {'loss', 'logp'}
  assert named(start.examine(found, **SAME)) == {}


@pytest.mark.slow  # doctor_test.py has another reference, step_test.py cached states
def test_a_cache_of_other_states_is_seen_for_an_objective_over_the_vocabulary(params, batch):
  objective = objectives.ra_dpo(risk=risk.cvar(0.9), beta=0.1)
  found, states = {}, jax.jit(lambda tree: forward.hidden_states(MODEL, tree, batch).states)
  for seed, tree in enumerate(params):
    cached = dataclasses.replace(batch, cached={references.STATES: states(tree)})
    measurement = measured(params[0], state.Frozen(references.CachedStates(MODEL.head(params[0]))), cached, objective)
    found[seed] = named(start.examine(measurement, **SAME))
  assert found == {0: {}, 1: {'reference_differs': findings.ERROR}}


HEALTHY = {'loss': 0.7, 'logp': -2.0, 'loss_at_reference': 0.7, 'drift': 0.0}


@pytest.mark.parametrize(
  ('changes', 'options', 'expected'),
  [
    ({}, {}, {}),
    ({'loss': math.nan}, {}, {'loss_not_finite': 'error'}),
    ({'loss': math.inf}, {}, {'loss_not_finite': 'error'}),
    ({'logp': -2.6}, {}, {'worse_than_uniform': 'warning'}),  # log 11 = 2.40
    ({'logp': -2.45}, {}, {}),
    ({'drift': 2e-3, 'loss': 0.701}, {}, {'reference_differs': 'error'}),
    ({'drift': math.nan}, {}, {'reference_differs': 'error'}),
    ({'drift': 2e-3}, {'compute_dtype': 'bfloat16'}, {}),
    ({'drift': 0.2}, {'compute_dtype': 'bfloat16'}, {'reference_differs': 'error'}),
    ({'drift': 0.2}, {'same_model': False}, {'reference_is_another': 'note'}),
    ({'drift': 3.0}, {'same_model': False}, {'reference_far': 'warning'}),
  ],
)
def test_the_first_batch_is_judged(changes, options, expected):
  assert named(start.examine(HEALTHY | changes, **SAME | options)) == expected


@pytest.mark.parametrize('sound', quick.first(1, [False, True]))
def test_sampling_that_computes_something_else_is_seen(params, batch, sound):
  key = jax.random.key(0)
  broken = MODEL._replace(decode=lambda *args: (lambda cache, hidden: (cache, 1.1 * hidden))(*MODEL.decode(*args)))
  model, expected = (MODEL, {}) if sound else (broken, {'sampling_gap': 'error'})
  subject = consistency.Subject(Policy(model), params[0], state.Frozen(), batch)
  assert named(consistency.examine_sampling(subject, key, compute_dtype='float32')) == expected


def test_the_cost_of_bfloat16_is_a_note_and_a_large_one_a_warning(params, batch):
  rounded = transformer.build(dataclasses.replace(CONFIG, compute_dtype='bfloat16'))
  other = MODEL._replace(hidden=lambda *args: 5.0 * MODEL.hidden(*args))
  for model, severity in ((rounded, 'note'), (other, 'warning')):
    subject = consistency.Subject(Policy(model), params[0], state.Frozen(), batch)
    assert named(consistency.examine_precision(subject, Policy(MODEL), chunk=64)) == {'precision': severity}


def test_an_undeclared_coupling_is_an_error_that_names_the_part_at_fault():
  hidden = dataclasses.replace(objectives.aot(), couples_rows=False)
  (finding,) = declarations.examine_coupling(objectives.dpo() + 0.5 * hidden, 2)
  assert (finding.name, finding.severity) == ('undeclared_coupling', findings.ERROR)
  assert hidden.name in finding.seen
  assert objectives.dpo().name not in finding.seen
  assert f'Objective(..., couples_rows=True) in {hidden.name}' in finding.advice
  assert declarations.examine_coupling(objectives.aot(), 2) == []
  assert declarations.examine_coupling(objectives.dpo(), 2) == []


def test_responses_of_files_are_a_warning_for_objectives_of_own_samples():
  objective = objectives.pmle() + objectives.importance_weighted(objectives.rlhf()) + 0.1 * objectives.kl_penalty()
  (finding,) = declarations.examine_samples(objective, on_policy=False)
  assert (finding.name, finding.severity) == ('off_policy_responses', findings.WARNING)
  assert 'of importance_weighted and kl_penalty must be the current policy’s own samples' in finding.seen
  assert declarations.examine_samples(objective, on_policy=True) == []
  assert declarations.examine_samples(objectives.pmle() + objectives.dpo(), on_policy=False) == []


def test_findings_about_labels_matter_only_if_labels_are_read():
  found = [findings.Finding(name, findings.ERROR, '', '') for name in ('no_signal', 'empty_rows')]
  assert declarations.relevant(found, objectives.dpo()) == found
  unlabelled = dataclasses.replace(objectives.dpo(), reads=frozenset())
  assert declarations.relevant(found, unlabelled) == found[1:]


def test_responses_without_an_end_matter_only_to_a_model_that_writes():
  found = [findings.Finding('untrained_end', findings.ERROR, '', '')]
  assert declarations.relevant(found, objectives.bradley_terry()) == []
  assert declarations.relevant(found, objectives.bradley_terry() + 0.1 * objectives.sft()) == found
  assert declarations.relevant(found, objectives.dpo()) == found


def test_the_balance_of_classes_matters_only_if_they_are_compared():
  names = ('one_class', 'rare_class', 'undesirable_only', 'no_signal')
  found = [findings.Finding(name, findings.ERROR, '', '') for name in names]
  assert declarations.relevant(found, objectives.kto()) == found
  assert declarations.relevant(found, objectives.kto() + 0.1 * objectives.sft()) == found
  assert declarations.relevant(found, objectives.sft()) == found[2:]
  assert declarations.relevant(found, objectives.rlhf()) == []


def rows(lengths):
  return dataset.pack([dataset.TokenExample([1] * prompt, [[1] * size, [2] * size]) for prompt, size in lengths])


@pytest.mark.parametrize(
  ('lengths', 'batch_size', 'buckets', 'expected'),
  [
    ([(20, 20)] * 16, 4, None, {}),
    ([(20, 20)] * 16, 4, [(64, 64)], {'wasteful_shapes': 'warning'}),
    ([(20, 20)] * 16, 64, None, {'empty_rows': 'warning'}),
    ([(20, 20)] * 16, 2, [(size, 32) for size in range(20, 29)], {'many_shapes': 'warning'}),
  ],
)
def test_shapes_that_waste_are_seen(lengths, batch_size, buckets, expected):
  data = rows(lengths)
  plan = batching.make_batches(data, batching.BatchSpec(batch_size, epochs=1, buckets=buckets)).plan
  assert named(batches.examine(plan, data)) == expected


def test_tokens_that_were_never_trained_are_named(tmp_path):
  assets.write_tiny_tokenizer(tmp_path)
  tokenizer = tokenization.Tokenizer.load(tmp_path)
  data = dataset.pack([dataset.TokenExample([1, 10], [[11, 2], [12, 2]])])
  table = np.random.default_rng(0).normal(size=(384, 8)).astype(np.float32)
  table[300] = 0  # not in the data
  assert embeddings.examine(jnp.asarray(table), data, tokenizer) == []
  table[2] *= 0.01
  (finding,) = embeddings.examine(jnp.asarray(table), data, tokenizer)
  assert finding.name == 'untrained_tokens'
  assert finding.severity == findings.WARNING
  assert '1 tokens of the data' in finding.seen
  assert "'<|im_end|>' (2 times)" in finding.seen


@pytest.mark.parametrize(
  ('available', 'severity', 'text'),
  [
    (None, 'note', '3.00 GiB on each device'),
    (4 * 2**30, 'note', '3.00 GiB on each device (2.00 GiB of a + 1.00 GiB of b), which has 4.00 GiB'),
    (int(3.2 * 2**30), 'warning', 'which has 3.20 GiB'),
    (2**30, 'error', 'which has 1.00 GiB'),
  ],
)
def test_memory_is_compared_with_what_there_is(available, severity, text):
  (finding,) = memory.examine([('a', 2 * 2**30), ('b', 2**30), ('c', 0)], available)
  assert finding.severity == severity
  assert text in finding.seen


def test_bytes_on_a_device_are_those_of_its_shards():
  mesh = jax.make_mesh((8,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x'))
  tree = {'a': jax.device_put(jnp.zeros((16, 3)), split), 'b': jnp.zeros(5, jnp.bfloat16), 'key': jax.random.key(0)}
  assert memory.bytes_on_device(tree) == 16 * 3 * 4 // 8 + 10
  assert memory.of_device(jax.devices()[0]) > 2**26
