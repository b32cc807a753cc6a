"""Runs that train adapters: what they leave, resume and refuse."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import expressions
from alignjax.models import checkpoint_io, lora, peft, quantization
from alignjax.optim import recipes
from alignjax.run import adapters, settings, training
from alignjax.training import checkpoint, metrics
from tests import assets, runs

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
ADAPTER = "lora(rank=2, alpha=3, targets='query+mlp')"

merge = jax.jit(lora.merge, static_argnums=2)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A coupled objective on a base in 8 bits, on a mesh with every axis."""
  folder = tmp_path_factory.mktemp('adapters')
  assets.write_tiny_model(folder / 'model', layers=1, vocab_size=384)
  runs.write_pairs(folder / 'train.jsonl', 32, seed=0)
  config = settings.Config(
    model=str(folder / 'model'),
    data=(str(folder / 'train.jsonl'),),
    objective="alpha_dpo(normaliser='ema')",
    adapter=ADAPTER,
    base_quantization='int8',
    optimizer='adamw(1e-2, weight_decay=0.1)',
    batch_size=8,
    warmup=0.0,
    steps=4,
    save_every=2,
    buckets=((16, 24),),
    remat='none',
    compute_dtype='float32',
    doctor='off',
    mesh=settings.MeshConfig(data=2, fsdp=2, tensor=2),
    workdir=str(folder / 'run'),
  )
  return config, training.train(config)


def _records(workdir):
  return [
    {name: value for name, value in record.items() if not name.startswith(metrics.TIME_PREFIX)}
    for record in metrics.read_jsonl(pathlib.Path(workdir) / 'metrics.jsonl')
  ]


def test_a_run_leaves_its_adapter_and_the_merged_model(finished):
  config, result = finished
  workdir, records = pathlib.Path(config.workdir), _records(config.workdir)
  targets = [record['target_margin'] for record in records]
  assert targets[0] == pytest.approx(1.5, rel=1e-6)  # gamma alone: the policy is the reference
  assert all(abs(target - 1.5) > 1e-3 for target in targets[1:])
  model_config = checkpoint_io.load_config(config.model)
  adapter, stored = peft.load(workdir / 'adapter', model_config)
  assert (adapter.rank, adapter.alpha) == (2, 3)
  jax.tree.map(np.testing.assert_array_equal, stored, jax.device_get(result.state.params))
  base = quantization.quantize(checkpoint_io.load_params(config.model, model_config), 'int8')
  expected = merge(base, stored, adapter)
  found = checkpoint_io.load_params(workdir / 'model', model_config)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, expected)
  assert (workdir / 'model' / 'tokenizer.json').exists()


def test_it_resumes_bit_identically(finished, capsys):
  config, _ = finished
  source, workdir = pathlib.Path(config.workdir), pathlib.Path(config.workdir + '_again')
  shutil.copytree(source / 'checkpoints' / '2', workdir / 'checkpoints' / '2')
  again = training.train(dataclasses.replace(config, workdir=str(workdir)))
  printed = capsys.readouterr().out
  assert 'resuming from step 2' in printed
  assert f'adapter    {ADAPTER}, {sum(x.size for x in jax.tree.leaves(again.state.params)):,} parameters' in printed
  assert _records(workdir) == _records(source)[2:]
  for folder, file in (('model', 'model.safetensors'), ('adapter', peft.WEIGHTS)):
    assert (workdir / folder / file).read_bytes() == (source / folder / file).read_bytes()


def test_another_adapter_in_the_same_folder_is_refused(finished):
  config, _ = finished
  with pytest.raises(ValueError, match=r'adapter: was "lora\(rank=2.* is now .lora\(rank=4'):
    training.train(dataclasses.replace(config, adapter='lora(rank=4)'))


class Position:
  """A source that only has a position."""

  def get_state(self):
    return self.position

  def set_state(self, position):
    self.position = position


@pytest.mark.slow  # recovery_test.py skips a checkpoint whose memory is not finite
def test_a_checkpoint_whose_memory_is_not_finite_is_skipped(finished, caplog):
  config, result = finished
  source, workdir = pathlib.Path(config.workdir), pathlib.Path(config.workdir + '_spoiled')
  shutil.copytree(source / 'checkpoints' / '2', workdir / 'checkpoints' / '2')
  saved = json.loads((source / 'checkpoints' / '2' / 'metadata' / 'metadata').read_text())['content']
  batches = Position()
  with checkpoint.Checkpoints(
    workdir / 'checkpoints', config=saved['config'], identity=saved['identity']
  ) as checkpoints:
    state = checkpoints.restore(result.state, batches).state
    memory = jax.tree.map(lambda value: value * jnp.nan, state.memory)
    checkpoints.save(3, dataclasses.replace(state, step=state.step + 1, memory=memory), batches)
  with caplog.at_level('ERROR', 'absl'):
    training.train(dataclasses.replace(config, workdir=str(workdir)))
  names = ', '.join(f'memory.{name}' for name in sorted(memory))
  assert f'checkpoint 3: {names} are not finite. Trying the one before it' in caplog.messages
  assert _records(workdir) == _records(source)[2:]
  weights = pathlib.Path('model') / 'model.safetensors'
  assert (workdir / weights).read_bytes() == (source / weights).read_bytes()


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ({'base_quantization': 'int8'}, 'needs config.adapter'),
    (
      {'adapter': 'lora()', 'optimizer': 'chain(sgd(0.1), online_dare(reserve=0.1, alpha=1e-6))'},
      'give one of the two',
    ),
    ({'adapter': "lora(targets='unembed')"}, 'unembed is not a part of a layer'),
    ({'adapter': 'lora()', 'model': str(GOLDEN / 'gemma3_images')}, 'adapters of gemma3 belong to a larger model'),
  ],
)
def test_settings_that_do_not_go_together_are_refused(finished, overrides, message):
  config = settings.Config(**overrides)
  with pytest.raises(ValueError, match=message):
    adapters.configured(config, recipes.parse_optimizer(config.optimizer), checkpoint_io.load_config(finished[0].model))


def test_an_expression_names_an_adapter():
  assert adapters.parse_adapter("lora(rank=8, targets='query+value')") == lora.LoRA(8, 32.0, 'query+value')
  with pytest.raises(expressions.ExpressionError, match="lora has no argument 'ranks'; did you mean 'rank'"):
    adapters.parse_adapter('lora(ranks=8)')


@pytest.fixture
def start(tmp_path):
  """A function that runs one update that changes nothing, from an adapter on the model; and both parts of the start."""
  folder = runs.write_folder(tmp_path)
  model = folder / 'model'
  config = checkpoint_io.load_config(model)
  base, made = checkpoint_io.load_params(model, config), lora.LoRA(rank=2, alpha=3.0, targets='query+mlp')
  rng, like = np.random.default_rng(0), jax.eval_shape(lambda key: lora.init(key, base, made), jax.random.key(0))
  factors = jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape).astype(np.float32), like)
  peft.save(tmp_path / 'sft', config, made, factors, model)
  frozen = {'optimizer': 'sgd(1e-30)', 'steps': 1, 'eval_data': (), 'adapter_from': str(tmp_path / 'sft')}

  def run(name, **overrides):
    training.train(runs.make_config(folder, tmp_path / name, **frozen | overrides))
    return tmp_path / name, config

  return run, factors, merge(base, factors, made)


@pytest.mark.slow  # models/peft_test.py merges adapters as they are loaded
def test_a_run_starts_from_a_model_with_its_adapter_merged(start, tmp_path, capsys):
  run, _, merged = start
  workdir, config = run('merged')
  assert f'with the adapter {tmp_path / "sft"}' in capsys.readouterr().out
  assert _records(workdir)[0]['loss'] == pytest.approx(np.log(2), abs=1e-6)  # the policy is the reference
  found = checkpoint_io.load_params(workdir / 'model', config)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, merged)


def test_an_adapter_to_start_from_that_does_not_fit_is_refused(start, tmp_path):
  run, _, _ = start
  with pytest.raises(ValueError, match=r'adapter_from = .*alignjax merge --models=.* --adapter=.*--reference=<folder>'):
    run('without', adapter=ADAPTER)
  with pytest.raises(ValueError, match=r"is lora\(rank=2, alpha=3, targets='attention/query\+mlp/down.*is another one"):
    run('other', adapter='lora(rank=3)', objective='sft()')
  with pytest.raises(ValueError, match=r'neither folder has the adapter: merge it first'):
    run(
      'merging', optimizer='chain(sgd(0.1), online_dare(reserve=0.1, alpha=1e-6))', base_model=str(tmp_path / 'model')
    )


@pytest.mark.slow
def test_a_run_trains_an_adapter_on(start):
  run, factors, _ = start
  workdir, config = run('continued', adapter=ADAPTER, objective='sft()')
  jax.tree.map(np.testing.assert_array_equal, peft.load(workdir / 'adapter', config)[1], factors)
