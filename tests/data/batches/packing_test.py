"""Tests of packed batches: which prompts are in which row, that rows are full, and what they hold."""

import dataclasses
import itertools

import numpy as np
import pytest

from alignjax.data.batches import batching, packed, packing
from alignjax.data.tokens import dataset
from alignjax.types import BLOCK
from tests.data.batches import batching_test

DATA = batching_test.make_data(50, score=True)
ROWS = packed.Rows()


def lengths(count, seed=0):
  """Like those of HH."""
  rng = np.random.default_rng(seed)

  def tokens(median, spread, *shape):
    return np.clip(median * np.exp(spread * rng.standard_normal(shape)), 2, 512).astype(np.int64)

  return packing.Lengths(tokens(122, 0.7, count), tokens(31, 0.9, count, 2))


def make(data=DATA, rows=ROWS, share=None, **options):
  spec = batching.BatchSpec(**{'batch_size': 8, 'epochs': 1, 'seed': 3} | options)
  return packed.make_batches(data, spec, rows, share)


def ids_of(plan, steps):
  return [sorted(id_ for id_ in plan[step].ids.ravel().tolist() if id_ >= 0) for step in steps]


# --- which prompts are in which row


@pytest.mark.parametrize('shuffle', [True, False])
def test_every_example_comes_once_an_epoch_in_steps_of_the_batch_size(shuffle):
  plan = packing.Plan(lengths(1060), 8, unit=2, shuffle=shuffle)
  assert plan.steps_per_epoch > plan.window
  steps = ids_of(plan, range(plan.steps_per_epoch, 2 * plan.steps_per_epoch))
  assert sorted(itertools.chain(*steps)) == list(range(1060))
  assert sorted(map(len, steps)) == [4] + [8] * (len(steps) - 1)


def test_the_order_changes_with_the_seed_and_the_epoch_only_if_shuffled():
  steps = {
    (seed, shuffle, epoch): ids_of(plan, range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch))
    for seed, shuffle in itertools.product((0, 1), (True, False))
    for plan in [packing.Plan(lengths(64), 8, seed=seed, shuffle=shuffle)]
    for epoch in (0, 1)
  }
  still = {tuple(map(tuple, each)) for (_, shuffle, _), each in steps.items() if not shuffle}
  moving = {tuple(map(tuple, each)) for (_, shuffle, _), each in steps.items() if shuffle}
  assert (len(still), len(moving)) == (1, 4)


def test_a_step_has_the_same_prompts_on_every_mesh():
  plans = [packing.Plan(lengths(700), 16, unit=unit) for unit in (1, 2, 8)]
  assert len({str(ids_of(plan, range(44))) for plan in plans}) == 1
  assert [plan.rows for plan in plans] == [1, 2, 8]


@pytest.mark.parametrize(('batch_size', 'least'), [(8, 0.9), (64, 0.95)])
def test_rows_are_full(batch_size, least):
  plan = packing.Plan(lengths(2304), batch_size)
  steps = [plan[step].size for step in range(plan.steps_per_epoch, 2 * plan.steps_per_epoch)]
  assert plan.useful / sum(plan.rows * size.positions for size in steps) >= least
  assert len(set(steps)) <= 2  # each is a compilation
  targets = plan.lengths.targets.sum() / sum(plan.rows * size.targets for size in steps)
  assert targets >= 0.9


def test_one_long_prompt_does_not_make_all_rows_long():
  few = lengths(320)
  usual = packing.Plan(few, 16)
  few.prompt[7] = 40_000
  plan = packing.Plan(packing.Lengths(few.prompt, few.response), 16)
  sizes = [plan[step].size.positions for step in range(plan.steps_per_epoch)]
  assert max(sizes) >= 40_000
  assert sum(sizes) < 1.25 * usual.positions + 2 * max(sizes)


def test_blocks_that_see_each_other_are_found():
  rng = np.random.default_rng(0)
  prompt, branch = rng.integers(1, 150, 5), rng.integers(1, 90, (5, 2))
  parts = [(0, -1)]  # (segment, branch) of each position
  parts = [
    (segment, number)
    for segment in range(5)
    for number, length in enumerate([prompt[segment] - 1, *branch[segment]])
    for _ in range(length)
  ]
  expected = {
    (query // BLOCK, key // BLOCK)
    for query, key in itertools.product(range(len(parts)), repeat=2)
    if key <= query and parts[key][0] == parts[query][0] and parts[key][1] in (0, parts[query][1])
  }
  assert set(map(tuple, packing.block_pairs(prompt, branch).tolist())) == expected


# --- what rows hold


@pytest.mark.parametrize('final', [False, True])
def test_rows_hold_every_token_once(final):
  for batch in make(rows=packed.Rows(2, final)):
    data, rows = batch.data, batch.data.rows
    ids = batch.ids.reshape(data.weight.shape)
    for row, slot in np.argwhere(ids >= 0):
      example = DATA[int(ids[row, slot])]
      of_prompt = (rows.segment[row] == slot) & (rows.branch[row] == 0)
      np.testing.assert_array_equal(rows.tokens[row, of_prompt], example.prompt[:-1])
      np.testing.assert_array_equal(rows.position[row, of_prompt], np.arange(len(example.prompt) - 1))
      for n, response in enumerate(example.responses):
        own = (rows.segment[row] == slot) & (rows.branch[row] == n + 1)
        read = [example.prompt[-1], *response][: None if final else -1]
        np.testing.assert_array_equal(rows.tokens[row, own], read)
        np.testing.assert_array_equal(rows.position[row, own], len(example.prompt) - 1 + np.arange(len(read)))
        predicted = slice(first := rows.first[row, slot, n], first + len(response))
        np.testing.assert_array_equal(rows.target[row, predicted], response)
        np.testing.assert_array_equal(rows.predicting[row, predicted], np.flatnonzero(own)[: len(response)])
        if final:
          assert rows.final[row, slot, n] == np.flatnonzero(own)[-1]
    assert (rows.segment >= 0).sum() == sum(
      len(DATA[i].prompt) - 1 + sum(map(len, DATA[i].responses)) + 2 * final for i in batch.ids[batch.ids >= 0]
    )


def test_prompts_have_the_fields_of_a_batch_that_is_not_packed():
  longest = int(DATA.prompt_length.max()), int(DATA.longest_response.max())
  for batch in make(rows=packed.Rows(2)):
    plain = batching.assemble(DATA, longest, batch.ids).data
    for item in dataclasses.fields(plain):
      if item.name != 'cached':
        np.testing.assert_array_equal(getattr(batch.data.examples, item.name), getattr(plain, item.name))


def test_an_iterator_resumes_at_any_step():
  whole = list(make(epochs=2, rows=packed.Rows(2)))
  for done in (0, 3, 9):
    iterator = iter(make(epochs=2, rows=packed.Rows(2)))
    for _ in range(done):
      next(iterator)
    restored = iter(make(epochs=2, rows=packed.Rows(2)))
    restored.set_state(iterator.get_state())
    batching_test.assert_same(next(restored), whole[done])


@pytest.mark.parametrize('processes', [2, 4])
def test_the_rows_of_all_processes_are_those_of_one(processes):
  rows = packed.Rows(4)
  shares = np.array_split(np.arange(4), processes)
  parts = [make(rows=rows, share=batching.Share(tuple(map(int, share)), 4)) for share in shares]
  for whole, *own in zip(make(rows=rows), *parts, strict=True):
    np.testing.assert_array_equal(whole.ids, np.concatenate([each.ids for each in own]))
    joined = [np.concatenate([getattr(each.data.rows, name) for each in own]) for name in ('tokens', 'pairs')]
    np.testing.assert_array_equal(whole.data.rows.tokens, joined[0])
    np.testing.assert_array_equal(whole.data.rows.pairs, joined[1])


def test_the_other_prompts_of_a_part_lose_tokens_and_weight():
  batch = next(iter(make(rows=packed.Rows(2))))
  kept = (batch.ids >= 0) & (np.arange(len(batch.ids)) % 3 == 0)
  part = packed.only(batch, kept)
  np.testing.assert_array_equal(part.ids, np.where(kept, batch.ids, -1))
  rows, other = batch.data.rows, part.data.rows
  np.testing.assert_array_equal(part.data.examples.weight > 0, kept)
  for row, slot in np.argwhere(batch.ids.reshape(batch.data.weight.shape) >= 0):
    own, left = rows.segment[row] == slot, kept.reshape(batch.data.weight.shape)[row, slot]
    np.testing.assert_array_equal(other.tokens[row, own], rows.tokens[row, own] if left else 0)


def test_an_example_that_exceeds_the_model_is_named():
  worst = int((DATA.prompt_length + DATA.longest_response).argmax())
  used = int((DATA.prompt_length + DATA.longest_response).max()) - 1
  make(max_positions=used)
  with pytest.raises(ValueError, match=rf'train\.jsonl:{worst + 1}: .* more than max_positions={used - 1}'):
    make(max_positions=used - 1)
  assert isinstance(DATA, dataset.TokenDataset)
