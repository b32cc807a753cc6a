"""Config files with several variants: `--config=experiments/configs/alpha_dpo.py:mistral,alpha=0.1,seed=2`."""

import ast
from collections.abc import Callable, Mapping
import inspect
from typing import Any

import ml_collections

from alignjax.run import fields, grids, settings

Variant = Callable[..., dict[str, Any]]
"""Returns settings of `alignjax train` by name; its parameters can be set on the command line."""


def config_dict(argument: str, variants: Mapping[str, Variant], **common: Any) -> ml_collections.ConfigDict:
  """Builds the configuration of one variant.

  Args:
    argument: `name` or `name,key=value,...`. A key is a parameter of the variant, such as beta, or a setting of
      `alignjax train`, such as seed or mesh.fsdp, which then has priority over the value of the variant.
    variants: the variants by name.
    **common: settings that the variants share; those that a variant returns have priority.

  Raises:
    ValueError: the variant or a key is unknown, or a value is invalid. The message lists what is known.
  """
  name, *assignments = grids.split(argument, ',')
  if name not in variants:
    raise ValueError(f'unknown variant {name!r}: must be one of {", ".join(variants)}')
  parameters = inspect.signature(variants[name]).parameters
  known = [leaf.name for leaf in fields.leaves(settings.Config)]
  own, overrides = {}, {}
  for assignment in assignments:
    key, equals, value = (part.strip() for part in assignment.partition('='))
    if not equals or not key or key in own | overrides:
      raise ValueError(f'{assignment!r} in {argument!r}: must be key=value, once for each key')
    if key not in parameters and key not in known:
      listed = f'has the parameters {", ".join(parameters)}' if parameters else 'has no parameters'
      raise ValueError(f'{key!r} is neither a parameter of {name!r}, which {listed}, nor a setting of alignjax train')
    (own if key in parameters else overrides)[key] = _value(value)
  return settings.config_dict(**{**common, **variants[name](**own), **fields.nested(overrides)})


def _value(text: str) -> Any:
  """A number, a boolean, a list or a string in quotes as Python writes it; anything else is text."""
  try:
    return {'true': True, 'false': False}[text.lower()]
  except KeyError:
    pass
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text
