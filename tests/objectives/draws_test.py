"""The keys of rows: by content, and by nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.objectives import draws
from tests import fixtures

ROW_KEYS = jax.jit(lambda batch: jax.random.key_data(draws.row_keys(batch)))


def keys(batch):
  return np.asarray(ROW_KEYS(batch))


def test_the_key_of_a_row_is_that_of_its_content():
  batch = fixtures.preference_batch(seed=2, prompts=6)
  expected = keys(batch)
  assert len(np.unique(expected, axis=0)) == 6
  order = np.asarray([3, 1, 5, 0, 2, 4])
  np.testing.assert_array_equal(keys(jax.tree.map(lambda x: x[order], batch)), expected[order])
  np.testing.assert_array_equal(keys(dataclasses.replace(batch, weight=jnp.zeros(6), label=jnp.zeros(6))), expected)
  padded = dataclasses.replace(
    batch,
    prompt=jnp.pad(batch.prompt, ((0, 0), (0, 3)), constant_values=7),
    response=jnp.pad(batch.response, ((0, 0), (0, 0), (0, 4)), constant_values=9),
  )
  np.testing.assert_array_equal(keys(padded), expected)


@pytest.mark.slow  # with a program for each of its operations
def test_keys_are_the_same_without_compilation():
  batch = fixtures.preference_batch(seed=2, prompts=6)
  np.testing.assert_array_equal(jax.random.key_data(draws.row_keys(batch)), keys(batch))


def test_any_change_of_content_changes_the_key():
  batch = fixtures.preference_batch(seed=2, prompts=6)
  full = dataclasses.replace(
    batch, prompt_length=jnp.full(6, 4), response_length=jnp.full((6, 2), 4), response=batch.response.at[..., 1].add(1)
  )
  response = full.response.at[:, 0, 0].set(5).at[:, 0, 1].set(6)
  full = dataclasses.replace(full, response=response)
  variants = [
    full,
    dataclasses.replace(full, response=response.at[:, 1, 3].add(1)),
    dataclasses.replace(full, response=response.at[:, 0, 0].set(6).at[:, 0, 1].set(5)),
    dataclasses.replace(full, response=response[:, ::-1]),
    dataclasses.replace(full, prompt=full.prompt.at[:, 0].add(1)),
    dataclasses.replace(full, prompt_length=jnp.full(6, 5)),
    dataclasses.replace(full, response_length=full.response_length.at[:, 1].set(3)),
  ]
  every = np.concatenate([keys(variant) for variant in variants])
  assert len(np.unique(every, axis=0)) == len(every)
