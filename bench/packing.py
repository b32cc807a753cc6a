"""Useful tokens per second of packed rows compared with length buckets, on one device.

  python -m bench.packing                                                    lengths drawn like those of HH
  python -m bench.packing --data=hh:train.jsonl.gz --tokenizer=models/smollm2    lengths of a dataset

Tokens are random; only lengths matter. Each round runs one step of every bucket and one packed step, in random order.
An epoch takes the time of its steps, and its useful tokens are the same in both, so the ratio of a round is that of two
epochs. Ratios are medians over rounds, with ranges; those of processor time hardly depend on what else the machine
does. `positions` are those that the trunk computes, over those that hold
a token; `head` those that reach the head, over the response tokens.
"""

import dataclasses
import random
import time

from absl import app, flags
import jax
import numpy as np
import optax

from alignjax import objectives
from alignjax.data.batches import batching, packed
from alignjax.data.tokens import artefact, dataset, encoding, tokenization
from alignjax.models import transformer
from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from alignjax.run import token_cache
from alignjax.training import placement, references
from alignjax.training import state as training_state
from alignjax.training import step as training_step
from alignjax.training.policy import Policy

_DATA = flags.DEFINE_string('data', '', 'Dataset whose lengths to use; empty draws lengths.')
_TOKENIZER = flags.DEFINE_string('tokenizer', '', 'Folder of the tokenizer of the dataset.')
_BATCH = flags.DEFINE_integer('batch', 8, 'Prompts in a batch.')
_OBJECTIVE = flags.DEFINE_string('objective', 'dpo(beta=0.1)', 'Objective.')
_DTYPE = flags.DEFINE_string('dtype', 'float32', 'Type of activations.')
_SCAN = flags.DEFINE_bool('scan_layers', True, 'Scan layers, as a run does unless it is told otherwise.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Measured rounds, after one warm-up round.', lower_bound=1)
LIMIT = 512  # tokens of a prompt, and of a response

# 27 million parameters.
LLAMA = transformer.TransformerConfig(
  vocab_size=32_000,
  width=384,
  layers=8,
  heads=6,
  kv_heads=6,
  head_width=64,
  mlp_width=1024,
  norm_epsilon=1e-5,
  rope_theta=1e6,
  tied_embeddings=True,
  max_positions=2048,
)


def drawn(prompts: int = 2048) -> tuple[np.ndarray, np.ndarray]:
  """Lengths like those of HH: log-normal, cut at the limit."""
  rng = np.random.default_rng(0)

  def tokens(median: float, spread: float, *shape: int) -> np.ndarray:
    return np.clip(median * np.exp(spread * rng.standard_normal(shape)), 4, LIMIT).astype(int)

  return tokens(122, 0.7, prompts), tokens(31, 0.9, prompts, 2)


def of_dataset() -> tuple[np.ndarray, np.ndarray]:
  """The lengths of a dataset, [n] and [n, 2]."""
  tokenizer = tokenization.Tokenizer.load(_TOKENIZER.value)
  limits = encoding.Limits(LIMIT, LIMIT, 2**30, truncate_response=False)
  request = artefact.Request((_DATA.value,), tokenizer, limits, 'raise', (), 'refuse')
  data = token_cache.read(request, token_cache.NONE, print)
  return data.prompt_length, data.response_length


def random_tokens(prompt: np.ndarray, response: np.ndarray) -> dataset.TokenDataset:
  """A dataset with these lengths."""
  rng = np.random.default_rng(1)

  def tokens(length: int) -> np.ndarray:
    return rng.integers(3, LLAMA.vocab_size, length, dtype=np.int32)

  return dataset.pack(
    dataset.TokenExample(tokens(own), tuple(map(tokens, others))) for own, others in zip(prompt, response, strict=True)
  )


class Step:
  """The training step. Each shape of batch has its own program."""

  def __init__(self):
    config = dataclasses.replace(LLAMA, compute_dtype=_DTYPE.value, scan_layers=_SCAN.value)
    objective = objectives.parse(_OBJECTIVE.value)
    self.mesh = parallel_mesh.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    model = transformer.build(config, rules.constraint(self.mesh))
    params, other = (jax.jit(model.init)(jax.random.key(seed)) for seed in range(2))
    self.frozen = training_state.Frozen(references.Live(other))
    tx = optax.sgd(1e-3)
    self.state = training_state.TrainState.create(params, tx, jax.random.key(0), objective.memory.initial)
    self.state, self.frozen = jax.device_put((self.state, self.frozen), rules.replicated(self.mesh))
    step = training_step.build_train_step(Policy(model), objective, tx, mesh=self.mesh)
    self.program = jax.jit(step, donate_argnums=0, out_shardings=rules.replicated(self.mesh))

  def seconds(self, batch: batching.Batch) -> np.ndarray:
    """Runs a step; returns its time, and its processor time."""
    data = placement.to_global(self.mesh, batch.data)
    start = np.array([time.perf_counter(), time.process_time()])
    self.state, _ = jax.block_until_ready(self.program(self.state, self.frozen, data))
    return np.array([time.perf_counter(), time.process_time()]) - start


def shape_of(batch: batching.Batch) -> tuple[int, ...]:
  data = batch.data
  return data.rows.tokens.shape if hasattr(data, 'rows') else (data.prompt.shape[1], *data.response.shape[1:])


def measure(epochs: dict[str, batching.Batches]) -> dict[str, np.ndarray]:
  """The seconds of an epoch by contender, [rounds, 2]: time, and processor time."""
  examples: dict[str, dict[tuple[int, ...], batching.Batch]] = {name: {} for name in epochs}
  counts: dict[str, dict[tuple[int, ...], int]] = {name: {} for name in epochs}
  for name, batches in epochs.items():
    for batch in batches:
      shape = shape_of(batch)
      examples[name].setdefault(shape, batch)
      counts[name][shape] = counts[name].get(shape, 0) + 1
    print(f'{name}: steps by shape {counts[name]}', flush=True)
  step, shuffle = Step(), random.Random(0)
  turns = [(name, shape) for name, shapes in examples.items() for shape in shapes]
  seconds = {name: [] for name in epochs}
  for _ in range(_ROUNDS.value + 1):
    took = {turn: step.seconds(examples[turn[0]][turn[1]]) for turn in shuffle.sample(turns, len(turns))}
    for name in epochs:
      seconds[name].append(sum(count * took[name, shape] for shape, count in counts[name].items()))
    print({f'{name} {shape}': value.round(2).tolist() for (name, shape), value in took.items()}, flush=True)
  return {name: np.array(values[1:]) for name, values in seconds.items()}  # the first round compiles


def main(_):
  prompt, response = of_dataset() if _DATA.value else drawn()
  data = random_tokens(prompt, response)
  spec = batching.BatchSpec(_BATCH.value, epochs=1)
  buckets, rows = batching.make_batches(data, spec), packed.make_batches(data, spec, packed.Rows())
  useful, targets = rows.plan.useful, int(response.sum())
  shapes = [bucket for bucket, _ in map(buckets.plan.__getitem__, range(buckets.steps))]
  steps = [rows.plan[step].size for step in range(rows.steps)]
  positions = {
    'buckets': _BATCH.value * sum(own + 2 * other for own, other in shapes),
    'packed': rows.plan.rows * sum(size.positions for size in steps),
  }
  heads = {
    'buckets': _BATCH.value * sum(2 * other for _, other in shapes),
    'packed': rows.plan.rows * sum(size.targets for size in steps),
  }
  seconds = measure({'buckets': buckets, 'packed': rows})
  ratios = (seconds['buckets'] / seconds['packed']).T
  against = [f'{np.median(own):.2f} ({own.min():.2f} to {own.max():.2f})' for own in ratios]
  print(f'{len(data)} prompts, batches of {_BATCH.value}, {_OBJECTIVE.value}, {_DTYPE.value}')
  print('| | positions | head | useful tokens per second | against buckets | the same of processor time |')
  print('|---|---|---|---|---|---|')
  for name, own in seconds.items():
    shown = ' | '.join(against if name == 'packed' else ['1', '1'])
    rate = useful / np.median(own[:, 0])
    print(f'| {name} | {positions[name] / useful:.3f} | {heads[name] / targets:.3f} | {rate:.0f} | {shown} |')


if __name__ == '__main__':
  app.run(main)
