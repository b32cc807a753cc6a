"""Pairs as rows of JSON, in the form in which `sources` reads them."""

from typing import Any

from alignjax.data import sources


def of_pair(pair: sources.Pair) -> dict[str, Any]:
  """The row from which `sources.read_pairs` makes an equal pair; where it came from is not part of it.

  Raises:
    ValueError: a pair that has not two responses.
  """
  if len(pair.responses) != 2:
    raise ValueError(
      f'{pair.origin}: {len(pair.responses)} responses to one prompt; a row {{prompt, chosen, rejected}} holds two'
    )
  chosen, rejected = pair.responses
  row: dict[str, Any] = {'prompt': pair.prompt, 'chosen': chosen, 'rejected': rejected}
  row |= {name: value for name in ('label', 'weight') if (value := getattr(pair, name)) != 1.0}
  row |= {name: list(value) for name in sources.PER_RESPONSE if (value := getattr(pair, name)) is not None}
  return row
