"""Compares what the configurations of two models mean, however their config.json spell it."""

import dataclasses
from typing import Any

from alignjax.models import families, transformer

# How a model is computed, and how many tokens it was trained on. A table of learned positions has its own shape.
_INCIDENTAL = frozenset({*families.EXECUTION, 'max_positions'})


def differences(
  first: transformer.TransformerConfig, second: transformer.TransformerConfig
) -> dict[str, tuple[Any, Any]]:
  """The fields that change what the weights mean and differ, with both values.

  Fields have their names in config.json, if the family of the first model has an entry for them.
  """
  entries = {setting.field: setting.keys[0] for setting in families.of(first).settings if setting.keys}
  found = {}
  for field in dataclasses.fields(transformer.TransformerConfig):
    values = getattr(first, field.name), getattr(second, field.name)
    if field.name not in _INCIDENTAL and values[0] != values[1]:
      found[entries.get(field.name, field.name)] = values
  return found
