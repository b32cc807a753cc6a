"""Examines the embeddings of the tokens that occur in the data."""

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.data.tokens import dataset, tokenization
from alignjax.doctor import findings
from alignjax.parallel import rules
from alignjax.types import Array

SMALL_NORM = 0.1  # relative to the median norm
NAMED = 4  # tokens in the message, the most frequent first


def examine(
  table: Array,
  data: dataset.TokenDataset,
  tokenizer: tokenization.Tokenizer,
  mesh: jax.sharding.Mesh | None = None,
) -> list[findings.Finding]:
  """Looks for tokens with an untrained embedding, such as chat tokens with a base model.

  Args:
    table: the embeddings, [V, D].
    data: the training examples.
    tokenizer: the tokenizer, to spell tokens in messages.
    mesh: the mesh over which the table is split.
  """
  whole = {} if mesh is None else {'out_shardings': rules.replicated(mesh)}
  norms = np.asarray(jax.jit(lambda table: jnp.linalg.norm(table.astype(jnp.float32), axis=1), **whole)(table))
  counts = np.bincount(np.concatenate([data.prompt_tokens, data.response_tokens]), minlength=len(norms))
  median = float(np.median(norms))
  small = np.flatnonzero((norms < SMALL_NORM * median) & (counts > 0))
  if not len(small):
    return []
  first = small[np.argsort(-counts[small])][:NAMED]
  named = ', '.join(f'{tokenizer.decode([i], skip_special_tokens=False)!r} ({counts[i]} times)' for i in first)
  return [
    findings.Finding(
      'untrained_tokens',
      findings.WARNING,
      f'{len(small)} tokens of the data have an embedding below {SMALL_NORM:g} of the median norm: {named}',
      'The model was not trained on them: use the chat template that it was trained with, or fine-tune it first',
    )
  ]
