"""The same prompts in packed rows and in an ordinary batch."""

import numpy as np

from alignjax.data.batches import batching, packed
from alignjax.data.tokens import dataset
from tests.models import token_batches

VOCABULARY = token_batches.CONFIG.vocab_size


def examples(count=9, responses=2, seed=0, longest=(50, 30), vocabulary=VOCABULARY):
  """Prompts, from one token on, with responses; lengths, labels, weights and scores are uneven."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, longest[0], count), rng.integers(1, longest[1], (count, responses))
  lengths[0][:2] = 1, longest[0]
  return dataset.pack(
    dataset.TokenExample(
      prompt=rng.integers(0, vocabulary, prompt),
      responses=[rng.integers(0, vocabulary, length) for length in own],
      label=float(rng.choice([1.0, 0.8, 0.3])),
      weight=float(rng.choice([1.0, 0.5, 2.0])),
      score=rng.standard_normal(responses),
      behaviour_token_logp=[-rng.exponential(size=length) for length in own],
    )
    for prompt, own in zip(*lengths, strict=True)
  )


def spec(data):
  """One batch of all examples, in their order."""
  return batching.BatchSpec(len(data), epochs=1, shuffle=False)


def both(data, unit=2, final=False):
  """All examples as one packed batch, and as an ordinary batch with padding rows where rows have no further prompt."""
  batch = next(iter(packed.make_batches(data, spec(data), packed.Rows(unit, final))))
  longest = int(data.prompt_length.max()), int(data.longest_response.max())
  return batch.data, batching.assemble(data, longest, batch.ids).data


def apart(states, batch):
  """States of a packed batch, [S, M, D], as [S * G, N, R, D]; the values at padding are arbitrary."""
  places = np.minimum(batch.rows.first[..., None] + np.arange(batch.response.shape[-1]), states.shape[1] - 1)
  places = places.reshape(len(states), -1, 1)
  return np.take_along_axis(np.asarray(states), places, axis=1).reshape(*batch.examples.response.shape, -1)


def valid(batch):
  """[S * G, N, R] bool: the response tokens of prompts that have a weight."""
  return token_batches.valid(batch.examples) & (batch.examples.weight > 0)[:, None, None]
