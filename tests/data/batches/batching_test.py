"""Tests of `alignjax.data.batches`: the global order, shapes, padding, and exact resumption."""

import collections
import functools
import itertools

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from alignjax.data.batches import batching, order, shapes
from alignjax.data.tokens import dataset

BUCKETS = ((8, 6), (8, 12), (20, 12))
BATCH = 4


def make_data(count=30, *, responses=2, score=False, seed=0):
  """Token t of pair i is never 0, so padding shows."""
  draw = np.random.default_rng(seed)
  return dataset.pack(
    dataset.TokenExample(
      prompt=draw.integers(1, 100, draw.integers(1, 21)).tolist(),
      responses=[draw.integers(1, 100, draw.integers(1, 13)).tolist() for _ in range(responses)],
      label=float(draw.random()),
      weight=float(1 + draw.random()),
      score=draw.normal(size=responses).tolist() if score else None,
      behaviour_logp=(-draw.exponential(size=responses)).tolist() if score else None,
      path='train.jsonl',
      line=i + 1,
    )
    for i in range(count)
  )


DATA = make_data()


def make(data=DATA, share=None, **options):
  spec = batching.BatchSpec(**{'batch_size': BATCH, 'epochs': 1, 'buckets': BUCKETS} | options)
  return batching.make_batches(data, spec, share)


def ids_of(batches, steps=None):
  return [batch.ids.tolist() for batch in itertools.islice(batches, steps)]


def assert_same(a, b):
  np.testing.assert_array_equal(a.ids, b.ids)
  jax.tree.map(np.testing.assert_array_equal, a.data, b.data)


# --- what is in a batch


@pytest.mark.parametrize(('responses', 'score'), [(2, False), (2, True), (3, True), (1, False)])
@pytest.mark.parametrize('shuffle', [True, False])
def test_every_example_comes_once_and_whole(responses, score, shuffle):
  pairs = make_data(responses=responses, score=score)
  seen = []
  for batch in make(pairs, shuffle=shuffle):
    data = batch.data
    for row, index in enumerate(batch.ids):
      if index == order.PADDING_ID:
        continue
      seen.append(int(index))
      pair = pairs[int(index)]
      assert data.prompt_length[row] == len(pair.prompt)
      np.testing.assert_array_equal(data.prompt[row, : len(pair.prompt)], pair.prompt)
      assert not data.prompt[row, len(pair.prompt) :].any()
      for i, tokens in enumerate(pair.responses):
        assert data.response_length[row, i] == len(tokens)
        np.testing.assert_array_equal(data.response[row, i, : len(tokens)], tokens)
        assert not data.response[row, i, len(tokens) :].any()
      assert (data.label[row], data.weight[row]) == (np.float32(pair.label), np.float32(pair.weight))
      assert (data.score is None) == (pair.score is None)
      if score:
        np.testing.assert_array_equal(data.score[row], pair.score)
        np.testing.assert_array_equal(data.behaviour_logp[row], pair.behaviour_logp)
  assert sorted(seen) == list(range(len(pairs)))


def test_log_probabilities_of_tokens_stand_at_their_tokens_and_are_0_at_padding():
  rows = [row._replace(behaviour_token_logp=[-0.5 * ids for ids in row.responses]) for row in make_data(score=True)]
  data = dataset.pack(rows)
  for batch in make(data):
    found = batch.data.cached['behaviour_token_logp']
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, -0.5 * batch.data.response)  # tokens are not 0, padding is
    assert found.shape == batch.data.response.shape


def test_padding_rows_weigh_nothing_and_are_counted():
  batches = make(make_data(score=True))
  padding = 0
  for batch in batches:
    rows = batch.ids == order.PADDING_ID
    padding += rows.sum()
    assert rows.sum() < BATCH  # no batch of padding only
    assert not batch.data.weight[rows].any()
    assert (batch.data.weight[~rows] >= 1).all()
    # One token each, so that a division by a length stays finite.
    assert (batch.data.prompt_length[rows] == 1).all()
    assert (batch.data.response_length[rows] == 1).all()
    assert np.isfinite(batch.data.score).all()
  assert padding == batches.plan.padding_rows > 0
  assert batches.steps == batches.plan.steps_per_epoch == len(ids_of(batches))
  assert batches.steps * BATCH == len(DATA) + padding


def test_shapes_and_types():
  data = next(iter(make(make_data(responses=3, score=True), buckets=[(20, 12)]))).data
  expected = {
    'prompt': ((BATCH, 20), np.int32),
    'prompt_length': ((BATCH,), np.int32),
    'response': ((BATCH, 3, 12), np.int32),
    'response_length': ((BATCH, 3), np.int32),
    'label': ((BATCH,), np.float32),
    'weight': ((BATCH,), np.float32),
    'score': ((BATCH, 3), np.float32),
    'behaviour_logp': ((BATCH, 3), np.float32),
  }
  assert {name: (getattr(data, name).shape, getattr(data, name).dtype) for name in expected} == expected
  assert not data.cached
  assert data.cached == {}


def test_each_pair_goes_to_the_smallest_bucket_that_holds_it():
  shapes = set()
  for batch in make(buckets=BUCKETS[::-1]):
    shape = batch.data.prompt.shape[1], batch.data.response.shape[2]
    shapes.add(shape)
    for index in batch.ids[batch.ids != order.PADDING_ID]:
      pair = DATA[int(index)]
      fitting = [b for b in BUCKETS if len(pair.prompt) <= b[0] and max(map(len, pair.responses)) <= b[1]]
      assert shape == min(fitting, key=lambda b: b[0] + 2 * b[1])
  assert shapes == set(BUCKETS)


# --- order


@pytest.mark.parametrize('shuffle', [True, False])
@pytest.mark.parametrize(
  'shares',
  [
    [(0,), (1,)],
    [(0,), (1,), (2,), (3,)],
    [(0, 2), (1, 3)],  # a torus
    [(0, 3), (0, 3), (1, 2)],  # the tensor axis spans two of the processes
    [(3,), (0, 1, 2)],
  ],
)
def test_processes_share_one_global_order(shares, shuffle):
  whole = list(make(epochs=2, shuffle=shuffle))
  shards = len(set().union(*shares))
  parts = [make(share=batching.Share(own, shards), epochs=2, shuffle=shuffle) for own in shares]

  def held(own, x):
    return x.reshape(shards, -1, *x.shape[1:])[list(own)].reshape(-1, *x.shape[1:])

  for expected, *batches in zip(whole, *parts, strict=True):
    for own, batch in zip(shares, batches, strict=True):
      assert_same(batch, jax.tree.map(functools.partial(held, own), expected))
  assert len(whole) == parts[0].steps == make(epochs=2).steps


def test_order_depends_on_seed_and_epoch_and_is_repeatable():
  steps = make().steps
  one, two = ids_of(make(epochs=2), steps), ids_of(make(epochs=2))[steps:]
  assert sorted(itertools.chain(*one)) == sorted(itertools.chain(*two))
  assert one != two
  assert one == ids_of(make()) == ids_of(make(epochs=None), steps)
  assert one != ids_of(make(seed=1))
  # Not only the order of the batches: also who meets whom.
  assert {frozenset(batch) for batch in one} != {frozenset(batch) for batch in two}


def test_order_is_fixed_for_ever():
  # A checkpoint from an older version of anything must resume in the same order.
  order = ids_of(make(make_data(10), buckets=[(20, 12)], seed=3))
  assert order == [[4, 3, -1, -1], [0, 1, 2, 7], [5, 6, 9, 8]]


def test_batches_of_different_buckets_are_mixed():
  shapes = [batch.data.prompt.shape[1] for batch in make(make_data(200))]
  changes = sum(a != b for a, b in itertools.pairwise(shapes))
  assert changes > 10  # 1, if the buckets came one after the other


def test_every_place_in_an_epoch_is_reached():
  first = collections.Counter(ids_of(make(seed=seed), 1)[0][0] for seed in range(100))
  assert len(first) > 15
  assert max(first.values()) < 15


def test_without_shuffling_pairs_come_as_they_stand():
  batches = make(epochs=2, shuffle=False)
  ids = ids_of(batches)
  assert ids[: batches.plan.steps_per_epoch] == ids[batches.plan.steps_per_epoch :]
  assert ids == ids_of(make(epochs=2, shuffle=False, seed=1))
  seen = [i for i in itertools.chain(*ids[: batches.plan.steps_per_epoch]) if i != order.PADDING_ID]
  assert seen == sorted(seen, key=lambda i: (batches.plan.bucket_of[i], i))


# --- resumption


def test_iteration_resumes_exactly_from_every_state():
  batches = make(epochs=2)
  iterator, states, seen = iter(batches), [], []
  for _ in range(batches.steps):
    states.append(iterator.get_state())
    seen.append(next(iterator))
  states.append(iterator.get_state())
  with pytest.raises(StopIteration):
    next(iterator)
  for position, state in enumerate(states):
    resumed = iter(make(epochs=2))  # as a new process would
    resumed.set_state(state)
    rest = list(resumed)
    assert len(rest) == batches.steps - position
    for a, b in zip(rest, seen[position:], strict=True):
      assert_same(a, b)


def test_state_is_the_same_on_every_process():
  iterators = [iter(make(share=batching.Share((i,), 2))) for i in range(2)]
  for iterator in iterators:
    next(iterator)
  assert iterators[0].get_state() == iterators[1].get_state() == {'next_index': 1}


def test_orbax_saves_and_restores_the_iterator(tmp_path):
  iterator = iter(make(epochs=None))
  for _ in range(3):
    next(iterator)
  with ocp.CheckpointManager(tmp_path / 'checkpoints') as manager:
    manager.save(3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
    manager.wait_until_finished()
    expected = [next(iterator) for _ in range(20)]  # across epochs
    restored = iter(make(epochs=None))
    next(restored)
    manager.restore(3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(restored)))
  for batch in expected:
    assert_same(next(restored), batch)


# --- choosing buckets


def test_chosen_buckets_hold_everything_in_few_shapes_and_save_tokens():
  draw = np.random.default_rng(0)
  lengths = np.minimum(draw.lognormal(4, 1, (2000, 3)).astype(int) + 1, 500)
  pairs = dataset.pack(dataset.TokenExample([1] * p, [[1] * a, [2] * b]) for p, a, b in lengths)

  def tokens(count):
    plan = make(pairs, batch_size=16, buckets=shapes.choose_buckets(pairs, batch_size=16, count=count)).plan
    used = [plan.buckets[i] for i in plan.draw(0)[1]]
    return sum(16 * (p + 2 * r) for p, r in used), plan.buckets

  one, (only,) = tokens(1)
  longest = -(-lengths.max(axis=0) // 32) * 32
  assert only == (longest[0], max(longest[1:]))
  four, buckets = tokens(4)
  assert len(buckets) == 4
  assert only in buckets
  assert all(size % 32 == 0 for bucket in buckets for size in bucket)
  assert four < 0.5 * one
  assert make(pairs, batch_size=16, buckets=None).plan.buckets == buckets


def test_few_pairs_get_one_bucket():
  assert shapes.choose_buckets(make_data(5), batch_size=8, multiple=4) == ((20, 12),)


def sized(*lengths):
  return dataset.pack(
    dataset.TokenExample([1] * p, [[1] * r, [2]], path='train.jsonl', line=i) for i, (p, r) in enumerate(lengths, 1)
  )


@pytest.mark.parametrize(
  'lengths', [[(289, 6), (18, 268)], [(500, 13), (13, 500), (250, 250)], [(31, 482), (482, 31)], [(500, 10), (490, 8)]]
)
def test_shapes_fit_the_model_where_every_row_does(lengths):
  data = sized(*lengths)
  buckets = shapes.choose_buckets(data, batch_size=2, max_positions=512)
  assert all(p + r - 1 <= 512 for p, r in buckets)
  assert (shapes.assign(data, buckets) < len(buckets)).all()
  assert make(data, buckets=None, max_positions=512).plan.buckets == buckets


def test_shapes_that_fit_are_those_without_a_limit():
  assert shapes.choose_buckets(DATA, batch_size=4, max_positions=64) == shapes.choose_buckets(DATA, batch_size=4)


def test_the_first_row_that_the_model_cannot_hold_is_named():
  with pytest.raises(
    ValueError, match=r'^train\.jsonl:2: the prompt has 10 tokens, .* 24, .* max_positions=32 .*lower'
  ):
    make(sized((9, 24), (10, 24), (11, 24)), buckets=None, max_positions=32)


# --- refusals


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'batch_size': 6, 'share': batching.Share((0,), 4)}, 'batch_size=6: must be a positive multiple of 4, the number'),
    ({'batch_size': 0}, 'batch_size=0'),
    ({'epochs': 0}, 'epochs=0'),
    ({'seed': -1}, 'seed=-1'),
    ({'buckets': []}, 'at least one shape'),
    ({'buckets': [(0, 12)]}, 'all positive'),
    ({'buckets': [(10**9, 10**9)]}, r'buckets: \(1000000000, 1000000000\) is too large: a batch of'),
  ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


@pytest.mark.parametrize(('shards', 'count'), [((2,), 2), ((-1,), 1), ((1, 0), 2), ((0, 0), 2), ((), 1)])
def test_shards_that_are_not_part_of_a_batch_are_refused(shards, count):
  with pytest.raises(ValueError, match=f'must be ascending numbers from 0 to {count - 1}'):
    batching.Share(shards, count)


@pytest.mark.parametrize('buckets', [[(20, 5), (8, 12)], [(15, 12)]])
def test_pair_that_no_bucket_holds_is_refused_by_its_place(buckets):
  longest = DATA.response_length.max(axis=1)
  bad = [i for i in range(30) if not any(DATA.prompt_length[i] <= p and longest[i] <= r for p, r in buckets)]
  with pytest.raises(ValueError, match=rf'^train\.jsonl:{bad[0] + 1}: the prompt has {DATA.prompt_length[bad[0]]} tok'):
    make(buckets=buckets)
