"""Output heads that models with tied embeddings store a second time, as some tools do."""

from collections.abc import Mapping

import numpy as np

from alignjax.models import declaration, folders

_BLOCK = 2**22  # entries of a tensor in memory at a time, unless one row has more


def without(
  family: declaration.Family, tensors: Mapping[str, folders.StoredTensor], share: tuple[int, int] = (0, 1)
) -> dict[str, folders.StoredTensor]:
  """The tensors of a model with tied embeddings, without an output head that equals the embedding.

  Args:
    family: the family of the model.
    tensors: its stored tensors, by their full names.
    share: which part of the rows this process compares, and the number of parts.

  Raises:
    ValueError: the head has the shape of the embedding, but other values, so the model is not tied.
  """
  head, embedding = family.tensor('unembed/kernel').name, family.tensor('embed/embedding').name
  first, second = tensors.get(head), tensors.get(embedding)
  if first is None or second is None or first.shape != second.shape or len(first.shape) != 2:
    return dict(tensors)
  rows, columns = first.shape
  part, parts = share
  last, step = rows * (part + 1) // parts, max(1, _BLOCK // columns)
  for start in range(rows * part // parts, last, step):
    place = (start, min(start + step, last)), (0, columns)
    one, other = (tensor.read(*place).astype(np.float32) for tensor in (first, second))
    if not np.array_equal(one, other):
      raise ValueError(
        f'tensor {head} differs from {embedding}, but tie_word_embeddings of {folders.CONFIG} is true: set it to '
        f'false if the model has a head of its own; otherwise remove {head}'
      )
  return {name: tensor for name, tensor in tensors.items() if name != head}
