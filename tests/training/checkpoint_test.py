"""Checkpoints come back bit for bit, on any mesh, or not at all."""

import gc
import json
import pathlib
import re
import resource
import time

import grain
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest

from alignjax.parallel import mesh as mesh_lib
from alignjax.training import checkpoint, checksums, source
from alignjax.training import state as state_lib
from tests import disks, quick

IDENTITY = {'model': 'tiny', 'seed': 0, 'objective': 'dpo(beta=0.1)', 'batch_size': 4}
CONFIG = {'learning_rate': 0.1, 'workdir': 'runs/x'}
TX = optax.adamw(1e-3)


def make_state(mesh: jax.sharding.Mesh | None = None, seed: int = 0) -> state_lib.TrainState:
  """A state of several dtypes. `kernel` is split over fsdp, and of random bits, so that it does not compress."""
  rng = np.random.default_rng(seed)
  params = {
    'kernel': rng.integers(2**32, size=(64, 128), dtype=np.uint32).view(np.float32),
    'scale': rng.standard_normal(128).astype(jnp.bfloat16),
  }
  state = state_lib.TrainState.create(params, TX, jax.random.key(seed))
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh

  def place(leaf: jax.Array) -> jax.Array:
    split = leaf.ndim == 2
    leaf = leaf if checksums.is_key(leaf) else np.asarray(leaf)  # no program moves it
    return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec('fsdp') if split else PartitionSpec()))

  return jax.tree.map(place, state)


def make_source() -> source.GrainSource:
  return source.GrainSource(iter(grain.MapDataset.range(100).seed(3).shuffle().batch(4).to_iter_dataset()))


def open_checkpoints(folder: pathlib.Path, **identity) -> checkpoint.Checkpoints:
  return checkpoint.Checkpoints(folder, config=CONFIG, identity=IDENTITY | identity, keep=2)


def raw(tree) -> list[np.ndarray]:
  """The bytes of every leaf, so that comparison is of bits, not of values."""
  leaves = jax.tree.leaves(tree)
  leaves = [jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in leaves]
  return [np.asarray(x).tobytes() for x in leaves]


def save_steps(folder: pathlib.Path, *steps: int) -> dict[int, tuple[state_lib.TrainState, list[int]]]:
  """Saves a state of its own at each step; returns it and the batch that follows it."""
  expected = {}
  with open_checkpoints(folder) as checkpoints:
    batches = make_source()
    for step in steps:
      batches.next(None)
      state = make_state(seed=step)
      checkpoints.save(step, state, batches)
      probe = make_source()
      probe.set_state(batches.get_state())
      expected[step] = (state, probe.next(None).tolist())
  return expected


def test_state_key_and_iterator_come_back(tmp_path):
  expected = save_steps(tmp_path / 'c', 2, 4, 6)
  batches = make_source()
  with open_checkpoints(tmp_path / 'c') as checkpoints:
    assert checkpoints.steps() == [4, 6]  # keep=2
    restored = checkpoints.restore(make_state(seed=99), batches)
  state, following = expected[6]
  assert restored.step == 6
  assert restored.config == CONFIG
  assert raw(restored.state) == raw(state)
  assert jax.tree.structure(restored.state) == jax.tree.structure(state)
  assert jax.tree.map(lambda x: x.dtype, restored.state) == jax.tree.map(lambda x: x.dtype, state)
  assert jax.random.uniform(restored.state.key) == jax.random.uniform(state.key)
  assert batches.next(None).tolist() == following


def test_what_a_killed_run_left_unfinished_is_removed(tmp_path):
  save_steps(tmp_path / 'c', 2)
  (left := tmp_path / 'c' / '4.orbax-checkpoint-tmp-7').mkdir()
  (left / 'state').write_text('half of it')
  with open_checkpoints(tmp_path / 'c') as checkpoints:
    assert checkpoints.steps() == [2]
  assert [path.name for path in (tmp_path / 'c').iterdir()] == ['2']


def test_empty_folder_restores_nothing(tmp_path):
  with open_checkpoints(tmp_path / 'c') as checkpoints:
    assert checkpoints.restore(make_state(), make_source()) is None


@pytest.mark.parametrize(
  'shape', [(2, 2, 2), *(pytest.param(shape, marks=pytest.mark.slow) for shape in ((1, 8, 1), (1, 4, 1)))]
)
def test_restores_on_another_mesh(tmp_path, shape):
  state = make_state(mesh_lib.make_mesh(1, 2, 4))
  with open_checkpoints(tmp_path / 'c') as checkpoints:
    checkpoints.save(1, state, make_source())
    checkpoints.wait()
    mesh = mesh_lib.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    like = make_state(mesh, seed=5)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
    restored = checkpoints.restore(abstract, make_source())
  assert raw(restored.state) == raw(state)
  assert restored.state.params['kernel'].sharding == like.params['kernel'].sharding


@pytest.mark.parametrize('dtype', [np.float32, jnp.bfloat16, np.int8])
def test_checksum_is_the_same_on_every_mesh_and_sees_any_flipped_bit(dtype):
  generator = np.random.default_rng(0)
  values = (50 * generator.standard_normal((16, 24))).astype(dtype)

  def checksum(array) -> int:
    return checksums.checksums({'x': array})['x']

  plain = checksum(jnp.asarray(values))
  specs = (PartitionSpec('fsdp', 'tensor'), PartitionSpec(None, ('data', 'fsdp')), PartitionSpec())
  for shape in [(8, 1, 1), (2, 2, 2), (1, 4, 2)] if dtype == np.float32 else [(2, 2, 2)]:
    mesh = mesh_lib.make_mesh(*shape)
    for spec in specs if dtype == np.float32 else specs[:1]:
      assert checksum(jax.device_put(values, NamedSharding(mesh, spec))) == plain
  for _ in range(60):
    data = bytearray(values.tobytes())
    bit = generator.integers(8 * len(data))
    data[bit // 8] ^= 1 << (bit % 8)
    assert checksum(jnp.asarray(np.frombuffer(bytes(data), values.dtype).reshape(values.shape))) != plain
  exchanged = values.copy()
  exchanged[0], exchanged[5] = values[5], values[0]
  assert checksum(jnp.asarray(exchanged)) != plain


def test_checksum_definition():
  """Against a plain loop in Python integers."""
  values = np.array([[1.5, -2.0], [0.0, 3.25]], np.float32)
  total = 0
  for index, bits in enumerate(values.view(np.uint32).ravel().tolist()):
    mixed = index * 0x9E3779B1 % 2**32
    mixed = (mixed ^ (mixed >> 16)) * 0x85EBCA6B % 2**32
    total += bits * ((mixed ^ (mixed >> 13)) | 1)
  assert checksums.checksums({'x': jnp.asarray(values)})['x'] == total % 2**32


def flip_bit(folder: pathlib.Path, step: int, array: jax.Array) -> None:
  """Flips one bit of a stored array."""
  needle = np.asarray(array).tobytes()[64:96]
  for file in (p for p in (folder / str(step)).rglob('*') if p.is_file()):
    data = bytearray(file.read_bytes())
    position = data.find(needle)
    if position >= 0:
      data[position + 5] ^= 0x04
      file.write_bytes(data)
      return
  raise AssertionError('the array was not found in any file')


def test_flipped_bit_is_named_and_the_checkpoint_before_it_is_used(tmp_path, caplog):
  expected = save_steps(tmp_path / 'c', 2, 4)
  flip_bit(tmp_path / 'c', 4, expected[4][0].params['kernel'])
  batches = make_source()
  with open_checkpoints(tmp_path / 'c') as checkpoints, caplog.at_level('ERROR', 'absl'):
    restored = checkpoints.restore(make_state(seed=9), batches)
    assert restored.step == 2
    assert raw(restored.state) == raw(expected[2][0])
    assert batches.next(None).tolist() == expected[2][1]
    assert 'checkpoint 4: the bytes of params.kernel have changed since it was saved' in caplog.text
    # The bad one is kept for inspection, and its step can be saved again.
    assert checkpoints.steps() == [2]
    assert (tmp_path / 'c-corrupt' / '4.0' / 'state').is_dir()
    checkpoints.save(4, make_state(seed=4), batches)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4]


def test_a_renamed_folder_is_named_and_the_checkpoint_before_it_is_used(tmp_path, caplog):
  expected = save_steps(tmp_path / 'c', 2, 4)
  (tmp_path / 'c' / '4').rename(tmp_path / 'c' / '100')
  with open_checkpoints(tmp_path / 'c') as checkpoints, caplog.at_level('ERROR', 'absl'):
    restored = checkpoints.restore(make_state(seed=9), make_source())
    assert restored.step == 2
    assert raw(restored.state) == raw(expected[2][0])
    assert checkpoints.steps() == [2]
  message = 'checkpoint 100 was saved as checkpoint 4: its folder has been renamed. Rename it back to use it'
  assert message in caplog.text
  (tmp_path / 'c-corrupt' / '100.0').rename(tmp_path / 'c' / '4')
  with open_checkpoints(tmp_path / 'c') as checkpoints:
    assert checkpoints.restore(make_state(seed=9), make_source()).step == 4


def save_in_vain(checkpoints: checkpoint.Checkpoints, step: int) -> str:
  """Saves a large state, and returns the error that appears without a further save."""
  checkpoints.save(step, {'x': jax.random.normal(jax.random.key(step), (100, 1000))}, make_source())
  deadline = time.monotonic() + 60
  while time.monotonic() < deadline:
    try:
      checkpoints.check()
    except checkpoint.SaveError as error:
      return str(error)
    time.sleep(0.01)
  raise AssertionError('no error appeared')


def test_a_full_disk_is_reported_in_words_while_the_run_goes_on(tmp_path, caplog):
  with disks.small(tmp_path / 'c', '600k') as folder, open_checkpoints(folder) as checkpoints:
    checkpoints.save(1, {'x': jax.random.normal(jax.random.key(0), (100, 1000))}, make_source())
    checkpoints.wait()
    message = save_in_vain(checkpoints, 2)
    assert checkpoints.steps() == [1]
  assert re.fullmatch(
    rf'checkpoint 2 cannot be written to {folder}: the disk is full '
    r'\([\d.]+ MiB are free; the arrays have 0\.4 MiB\)\. Make room or remove the cause, and give the same '
    'command again: it resumes from checkpoint 1',
    message,
  )
  assert not [record for record in caplog.records if record.exc_info]


def test_a_save_that_fails_for_another_reason_is_reported_with_it(tmp_path, caplog):
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  with open_checkpoints(tmp_path / 'c') as checkpoints:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
      message = save_in_vain(checkpoints, 1)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert message.startswith(f'checkpoint 1 cannot be written to {tmp_path / "c"}: ValueError: ')
  assert message.endswith('it starts over, because there is no earlier checkpoint')
  assert '\n' not in message
  assert not [record for record in caplog.records if record.exc_info]


def test_no_good_checkpoint_is_an_error_and_nothing_is_moved(tmp_path):
  expected = save_steps(tmp_path / 'c', 2)
  flip_bit(tmp_path / 'c', 2, expected[2][0].params['kernel'])
  batches = make_source()
  before = batches.get_state()
  with open_checkpoints(tmp_path / 'c') as checkpoints:
    message = r'no checkpoint .* is intact: checkpoint 2: .*params\.kernel'
    with pytest.raises(checkpoint.CorruptCheckpointError, match=message):
      checkpoints.restore(make_state(), batches)
    assert checkpoints.steps() == [2]
  assert batches.get_state() == before


def damage_json(file: pathlib.Path, old: str, new: str) -> None:
  text = file.read_text()
  assert text.count(old) == 1
  file.write_text(text.replace(old, new))


def change_text(file: pathlib.Path, old: str, new: str) -> None:
  text = file.read_text()
  assert text.count(old) == 1
  file.write_text(text.replace(old, new))


def remove_largest(folder: pathlib.Path) -> None:
  max((p for p in folder.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size).unlink()


# When it fails, orbax leaves coroutines behind.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize(
  ('damage', 'item'),
  [
    (
      lambda step: change_text(step / 'metadata' / 'metadata', '"learning_rate": 0.1', '"learning_rate": 2'),
      'metadata',
    ),
    quick.slow((lambda step: (step / 'metadata' / 'metadata').write_text('{'), 'metadata')),
    (lambda step: change_text(step / 'data' / 'process_0-of-1.json', '"next_index": 2', '"next_index": 3'), 'data'),
    (lambda step: remove_largest(step / 'state'), 'state'),
  ],
  ids=['metadata-value', 'metadata-syntax', 'data-position', 'arrays-missing'],
)
def test_damage_elsewhere_falls_back_too(tmp_path, caplog, damage, item):
  expected = save_steps(tmp_path / 'c', 2, 4)
  damage(tmp_path / 'c' / '4')
  with open_checkpoints(tmp_path / 'c') as checkpoints, caplog.at_level('ERROR', 'absl'):
    assert raw(checkpoints.restore(make_state(), make_source()).state) == raw(expected[2][0])
  assert f'checkpoint 4: its {item} cannot be read' in caplog.text
  gc.collect()


def test_another_identity_is_refused_naming_field_old_and_new(tmp_path):
  save_steps(tmp_path / 'c', 2)
  for name, old in IDENTITY.items():
    new = f'other {old}'
    with (
      open_checkpoints(tmp_path / 'c', **{name: new}) as checkpoints,
      pytest.raises(checkpoint.MismatchError) as caught,
    ):
      checkpoints.restore(make_state(), make_source())
    assert f'{name}: was {old!r}, is now {new!r}' in str(caught.value)


def test_another_optimizer_or_shape_is_refused_naming_the_array(tmp_path):
  save_steps(tmp_path / 'c', 2)
  state = make_state()
  with open_checkpoints(tmp_path / 'c') as checkpoints:
    other = state_lib.TrainState(state.step, state.params, optax.sgd(0.1).init(state.params), state.key)
    with pytest.raises(checkpoint.MismatchError, match=r'opt_state\.0\.count was int32\[\] and is now absent'):
      checkpoints.restore(other, make_source())
    wider = make_state()
    wider.params['scale'] = jnp.zeros(129, jnp.bfloat16)
    with pytest.raises(checkpoint.MismatchError, match=r'params\.scale was bfloat16\[128\] and is now bfloat16\[129\]'):
      checkpoints.restore(wider, make_source())


def test_key_implementation_is_part_of_the_state(tmp_path):
  save_steps(tmp_path / 'c', 2)
  like = make_state()
  other = state_lib.TrainState(like.step, like.params, like.opt_state, jax.random.key(0, impl='rbg'))
  message = r'key was key<fry>\[\] and is now key<rbg>\[\]'
  with open_checkpoints(tmp_path / 'c') as checkpoints, pytest.raises(checkpoint.MismatchError, match=message):
    checkpoints.restore(other, make_source())


def test_metadata_is_readable_by_people(tmp_path):
  save_steps(tmp_path / 'c', 2)
  content = json.loads((tmp_path / 'c' / '2' / 'metadata' / 'metadata').read_text())['content']
  assert content['identity'] == IDENTITY | {'jax_threefry_partitionable': True}
  assert content['versions']['jax'] == jax.__version__
  kernel = content['arrays']['params.kernel']
  assert kernel['shape'] == [64, 128]
  assert kernel['dtype'] == 'float32'


def test_saved_state_survives_donation(tmp_path):
  """`save` has taken its copy when it returns, so that the next step may overwrite the buffers."""
  overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
  state = {'kernel': jax.random.normal(jax.random.key(0), (512, 1024))}
  expected = raw(state)
  batches = make_source()
  with open_checkpoints(tmp_path / 'c') as checkpoints:
    checkpoints.save(1, state, batches)
    state = overwrite(state)
    batches.next(None)
    checkpoints.wait()
    assert raw(checkpoints.restore(state, make_source()).state) == expected


def test_keep_must_be_positive(tmp_path):
  with pytest.raises(ValueError, match='keep=0'):
    checkpoint.Checkpoints(tmp_path, config={}, identity={}, keep=0)
