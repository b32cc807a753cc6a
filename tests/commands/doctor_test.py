"""The doctor on whole set-ups: folders with one thing wrong, which it names, and sound ones, which it leaves alone.

What each check sees in detail is tested with the checks, in tests/doctor.
"""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from alignjax import storage
from alignjax.commands import doctor as command
from alignjax.commands import program
from alignjax.data.tokens import tokenization
from alignjax.doctor import findings, memory
from alignjax.models import checkpoint_io, fingerprints
from alignjax.run import command_line, examination, preparation, settings, training
from alignjax.training import placement
from tests import assets, quick, runs
from tests.data import tokenizer_families

SILENT = [].append  # an `announce` that nobody reads


def edit_weights(folder, edit):
  weights = safetensors_numpy.load_file(folder / 'model.safetensors')
  edit(weights)
  safetensors_numpy.save_file(weights, folder / 'model.safetensors', metadata={'format': 'pt'})


def soften(weights):
  """A random model that is sure of itself is worse than a uniform guess; this one is not sure."""
  weights['model.norm.weight'] *= 0.05


def write_model(folder, vocab_size=384, **options):
  assets.write_tiny_model(folder, layers=1, vocab_size=vocab_size, **options)
  edit_weights(folder, soften)
  return folder


def rows_of(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return (str(path),)


@pytest.fixture(scope='module')
def sound(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp('sound')
  write_model(folder / 'model')
  runs.write_pairs(folder / 'train.jsonl', 61, seed=0)
  runs.write_pairs(folder / 'eval.jsonl', 11, seed=1)
  return folder


def configure(sound, **overrides):
  values = {
    'model': str(sound / 'model'),
    'data': (str(sound / 'train.jsonl'),),
    'batch_size': 8,
    'remat': 'none',
    'compute_dtype': 'float32',
    'workdir': str(sound / 'run'),
  }
  return settings.Config(**values | overrides)


def start_of(config):
  """A run as it is before its first update."""
  prepared = preparation.prepare(config, SILENT)
  tx = examination.build_optimizer(prepared)
  base, params = preparation.load_base(config, prepared), preparation.initial_params(config, prepared)
  state = placement.create_state(prepared.mesh, params, tx, jax.random.key(0), prepared.objective.memory.initial)
  return config, prepared, state, preparation.load_frozen(config, prepared, base)


def named(found):
  """Warnings and errors. That the prompts are strings and the model has a template is what all set-ups share."""
  loud = {finding.name: finding.severity for finding in found if finding.severity != findings.NOTE}
  return {name: severity for name, severity in loud.items() if name != 'template_unused'}


# --- faults of the data and the tokenizer, which are seen without weights: each function writes a set-up


def duplicate_examples(sound, folder):
  return {'data': (str(sound / 'train.jsonl'), *write_rows(folder / 'again.jsonl', rows_of(sound / 'train.jsonl')[:5]))}


def contradictory_examples(sound, folder):
  rows = rows_of(sound / 'train.jsonl')
  swapped = [row | {'chosen': row['rejected'], 'rejected': row['chosen']} for row in rows[:5]]
  return {'data': write_rows(folder / 'both.jsonl', rows + swapped)}


def swapped_labels(sound, folder):
  return {'data': write_rows(folder / 'x.jsonl', [row | {'label': 0.1} for row in rows_of(sound / 'train.jsonl')])}


def no_signal(sound, folder):
  return {'data': write_rows(folder / 'x.jsonl', [row | {'label': 0.5} for row in rows_of(sound / 'train.jsonl')])}


def off_policy_responses(sound, folder):
  del folder
  return {'objective': 'dpo() + kl_penalty()'}


def length_bias(sound, folder):
  rows = [row | {'chosen': row['chosen'] + ' good' * 9} for row in rows_of(sound / 'train.jsonl')]
  return {'data': write_rows(folder / 'x.jsonl', rows)}


def dominating_prompt(sound, folder):
  rows = rows_of(sound / 'train.jsonl')
  return {'data': write_rows(folder / 'x.jsonl', [row | {'prompt': 'the same'} for row in rows[:30]] + rows[30:])}


def responses_dropped(sound, folder):
  return {'max_response': 12}


def prompts_cut(sound, folder):
  return {'max_prompt': 8}


def beyond_positions(sound, folder):
  write_model(folder / 'model', max_positions=24)
  return {'model': str(folder / 'model'), 'buckets': ((32, 32),)}  # chosen ones would refuse the first long row


def shared_examples(sound, folder):
  return {'eval_data': write_rows(folder / 'x.jsonl', rows_of(sound / 'train.jsonl')[:4])}


def end_token_inside(sound, folder):
  rows = [
    {k: v if k == 'prompt' else f' Oh<|im_end|>{v}' for k, v in row.items()} for row in rows_of(sound / 'train.jsonl')
  ]
  return {'data': write_rows(folder / 'x.jsonl', rows)}


def double_bos(sound, folder):
  size = tokenization.Tokenizer.load(tokenizer_families.write(folder / 'tokenizer', 'llama_3')).vocab_size
  write_model(folder / 'model', vocab_size=size)
  tokenizer_families.write(folder / 'model', 'llama_3')
  rows = [row | {'prompt': 'Hi <|begin_of_text|>' + row['prompt']} for row in rows_of(sound / 'train.jsonl')]
  return {'model': str(folder / 'model'), 'data': write_rows(folder / 'x.jsonl', rows)}


def wasteful_shapes(sound, folder):
  return {'buckets': ((128, 128),)}


OF_DATA = (
  (beyond_positions, 'error'),
  (contradictory_examples, 'warning'),
  (dominating_prompt, 'warning'),
  (double_bos, 'error'),
  (duplicate_examples, 'warning'),
  (end_token_inside, 'error'),
  (length_bias, 'warning'),
  (no_signal, 'error'),
  (off_policy_responses, 'warning'),
  (prompts_cut, 'error'),
  (responses_dropped, 'error'),
  (shared_examples, 'warning'),
  (swapped_labels, 'error'),
  (wasteful_shapes, 'warning'),
)


@pytest.mark.parametrize(('broken', 'severity'), OF_DATA, ids=lambda value: getattr(value, '__name__', value))
def test_a_fault_of_the_data_is_named_and_nothing_else_is(sound, tmp_path, broken, severity):
  config = configure(sound, **broken(sound, tmp_path))
  assert named(examination.examine_data(preparation.prepare(config, SILENT))) == {broken.__name__: severity}


# --- faults that only the models show


def worse_than_uniform(sound, folder):
  assets.write_tiny_model(folder / 'model', layers=1, vocab_size=384)
  return {'model': str(folder / 'model')}


def untrained_tokens(sound, folder):
  write_model(folder / 'model')
  edit_weights(folder / 'model', lambda weights: weights['model.embed_tokens.weight'][2].fill(0))
  return {'model': str(folder / 'model')}


def reference_far(sound, folder):
  assets.write_tiny_model(folder / 'other', layers=1, vocab_size=384, seed=1)
  edit_weights(
    folder / 'other', lambda weights: weights.update({'model.norm.weight': 9 * weights['model.norm.weight']})
  )
  return {'reference': str(folder / 'other')}


def dtype_gap(sound, folder):
  config = checkpoint_io.load_config(sound / 'model')
  params = checkpoint_io.load_params(sound / 'model', config)
  checkpoint_io.save(folder / 'rounded', config, params, assets_from=sound / 'model', dtype='bfloat16')
  return {'reference': str(folder / 'rounded')}


def reference_differs(sound, folder):
  """A cache that was computed from something else, under the name of this one."""
  config = configure(sound, reference_cache=str(folder / 'cache'))
  preparation.prepare(config, SILENT)
  other = configure(sound, reference=reference_far(sound, folder)['reference'], reference_cache=str(folder / 'cache'))
  preparation.prepare(other, SILENT)
  first, second = sorted((folder / 'cache').iterdir(), key=lambda path: path.stat().st_mtime_ns)
  shard, wrong = (next(cache.glob('*/ids.npy')).parent for cache in (first, second))
  for name in ('reference_logp.npy', 'checksums.npy'):
    (shard / name).write_bytes((wrong / name).read_bytes())
  (shard / storage.MANIFEST).unlink()
  storage.write_manifest(shard, {'cache': first.name})
  return {'reference_cache': str(folder / 'cache')}


OF_MODELS = (
  (dtype_gap, 'warning'),
  (reference_differs, 'error'),
  (reference_far, 'warning'),
  (untrained_tokens, 'warning'),
  (worse_than_uniform, 'warning'),
)


QUICK = ('reference_differs',)  # doctor/models_test.py has the others


@pytest.mark.parametrize(('broken', 'severity'), quick.named({case[0].__name__: case for case in OF_MODELS}, QUICK))
def test_a_fault_of_the_models_is_named_and_nothing_else_is(sound, tmp_path, broken, severity):
  config = configure(sound, **broken(sound, tmp_path))
  assert named(examination.examine(*start_of(config))) == {broken.__name__: severity}


def test_weights_that_are_not_numbers_are_named(sound):
  config, prepared, state, frozen = start_of(configure(sound))
  spoil = jax.jit(lambda params: jax.tree.map(lambda leaf: leaf * np.nan, params))
  state = dataclasses.replace(state, params=spoil(state.params))
  assert named(examination.examine(config, prepared, state, frozen)) == {'loss_not_finite': 'error'}


def test_the_memory_of_a_run_is_that_of_its_plan(sound, monkeypatch):
  config, prepared, state, frozen = start_of(configure(sound))
  planned = examination.plan(config, prepared)
  assert planned.argument_bytes == pytest.approx(memory.bytes_on_device((state, frozen)), rel=0.1)  # and a batch
  for factor, severity, verdict in (
    (2, 'note', 'fits'),
    (0.95, 'warning', 'does not fit'),
    (0.85, 'error', 'does not'),
  ):
    available = int(factor * planned.peak)
    monkeypatch.setattr(memory, 'of_device', lambda device, available=available: available)
    found = examination.examine(config, prepared, state, frozen)
    assert next(each for each in found if each.name == 'memory').severity == severity
    line = examination.verdict(config, prepared)
    assert line.startswith(f'memory     {memory.in_units(planned.peak)} of {memory.in_units(available)} planned')
    assert verdict in line
  packed = configure(sound, packing='on', max_prompt=64, max_response=64)
  assert examination.verdict(packed, start_of(packed)[1]) == ''


def test_too_little_memory_is_named(sound, monkeypatch):
  monkeypatch.setattr(memory, 'of_device', lambda device: 2**12)
  assert named(examination.examine(*start_of(configure(sound)))) == {'memory': 'error'}


def test_a_sound_set_up_has_no_errors_and_no_warnings(sound):
  held_out = {'eval_data': (str(sound / 'eval.jsonl'),)}
  assert (
    named(examination.examine(*start_of(configure(sound, objective='simpo(beta=2.0, gamma=0.5)', **held_out)))) == {}
  )


# --- the program


def run(config: settings.Config) -> int:
  return program.attempt(command.PROGRAM, command_line.Invocation(config))


@pytest.mark.slow  # the tests above examine the same set-up in process, and the one below runs it before training
def test_the_program_says_what_it_sees_and_writes_nothing(sound, tmp_path, capsys, monkeypatch):
  config = configure(sound, **swapped_labels(sound, tmp_path), compute_dtype='bfloat16')
  before = sorted(sound.rglob('*'))
  assert run(config) == 1
  said = capsys.readouterr().out.splitlines()
  assert said[-1] == 'doctor     1 errors, 1 warnings, 4 notes'
  assert any('note     precision: ' in line for line in said)
  assert next(line for line in said if line.startswith('doctor')).startswith('doctor     error    swapped_labels: ')
  assert sorted(sound.rglob('*')) == before
  errors = examination.examine_data(preparation.prepare(config, SILENT))
  monkeypatch.setattr(examination, 'examine_thoroughly', lambda *run: errors)
  assert run(config) == 1
  assert run(dataclasses.replace(config, doctor='warn')) == 0


@pytest.fixture
def without_signal(sound, tmp_path, monkeypatch) -> settings.Config:
  """A run whose data the doctor finds fault with."""
  monkeypatch.setattr(examination, 'examine', lambda config, prepared, *_: examination.examine_data(prepared))  # faster
  overrides = no_signal(sound, tmp_path) | {'workdir': str(tmp_path / 'run'), 'steps': 1, 'eval_data': ()}
  return dataclasses.replace(runs.make_config(sound, tmp_path), doctor='warn', **overrides)


def test_training_stops_before_its_first_update(without_signal, tmp_path):
  stopping = dataclasses.replace(without_signal, doctor='stop')
  with pytest.raises(ValueError, match=r'so nothing was trained .--doctor=warn trains anyway.:\n  no_signal: '):
    training.train(stopping)
  assert not (tmp_path / 'run' / 'metrics.jsonl').exists()
  assert not (tmp_path / 'run' / 'config.json').exists()


@pytest.mark.slow  # the other runs that are tested train without the doctor
def test_training_goes_on_if_told_so(without_signal, tmp_path, capsys):
  assert training.train(without_signal).step == 1
  assert 'doctor     error    no_signal' in capsys.readouterr().out
  known = json.loads((tmp_path / 'run' / 'about.json').read_text())
  assert 'no_signal' in [each['name'] for each in known['doctor'] if each['severity'] == 'error']
  assert known['steps'] == 1
  assert known['versions']['jax']


def test_a_hash_of_weights_sees_one_bit_if_it_is_to_see_all(sound, tmp_path):
  before = fingerprints.of(str(sound / 'model'), whole=True)
  write_model(tmp_path / 'model')
  assert fingerprints.of(str(tmp_path / 'model'), whole=True) == before
  path = tmp_path / 'model' / 'model.safetensors'
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(bytes(content))
  assert fingerprints.of(str(tmp_path / 'model'), whole=True) != before
