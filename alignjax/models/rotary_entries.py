"""The entries of config.json that describe the scaling of rotary frequencies."""

from collections.abc import Callable
from typing import Any, NamedTuple

from alignjax.models import config_entries, configuration, layers


class Scaling(NamedTuple):
  """One type of rotary scaling: its constructor and the entries of config.json with its parameters."""

  make: Callable[..., layers.RotaryScaling] | None
  settings: tuple[config_entries.Setting, ...] = ()
  ignored: tuple[str, ...] = ()  # entries without effect


SCALINGS = {
  'default': Scaling(None),
  'linear': Scaling(layers.LinearScaling, (config_entries.Setting('factor', ('factor',), float),)),
  'llama3': Scaling(
    layers.Llama3Scaling,
    (
      config_entries.Setting('factor', ('factor',), float),
      config_entries.Setting('low_frequency_factor', ('low_freq_factor',), float),
      config_entries.Setting('high_frequency_factor', ('high_freq_factor',), float),
      config_entries.Setting('original_positions', ('original_max_position_embeddings',), int),
    ),
  ),
  'yarn': Scaling(
    layers.YarnScaling,
    (
      config_entries.Setting('factor', ('factor',), float),
      config_entries.Setting('original_positions', ('original_max_position_embeddings',), int),
      config_entries.Setting('fast_turns', ('beta_fast',), float, 32.0),
      config_entries.Setting('slow_turns', ('beta_slow',), float, 1.0),
      config_entries.Setting('truncate', ('truncate',), bool, True),
      config_entries.Setting('attention_factor', ('attention_factor',), float, nullable=True),
      config_entries.Setting('mscale', ('mscale',), float, nullable=True),
      config_entries.Setting('mscale_all_dim', ('mscale_all_dim',), float, nullable=True),
    ),
    ignored=('attn_factor', 'finetuned'),
  ),
  'longrope': Scaling(
    layers.LongRopeScaling,
    (
      config_entries.Setting('short_factors', ('short_factor',), tuple),
      config_entries.Setting('long_factors', ('long_factor',), tuple),
      config_entries.Setting(
        'original_positions', ('original_max_position_embeddings',), int, lambda fields: fields['max_positions']
      ),
      config_entries.Setting(
        'extension', ('factor',), float, lambda fields: fields['max_positions'] / fields['original_positions']
      ),
      config_entries.Setting('attention_factor', ('attention_factor',), float, nullable=True),
    ),
  ),
}
# The types that every family supports, by their names in config.json.
GENERAL = {name: name for name in ('default', 'linear', 'llama3', 'yarn')}


def rendered(config: configuration.TransformerConfig) -> dict[str, Any] | None:
  """The entry `rope_scaling`, which both transformers 4 and 5 read."""
  scaling = config.rope_scaling
  if isinstance(scaling, layers.LongRopeScaling):
    return _rendered_longrope(scaling, config.max_positions)
  for name, (make, settings, _) in SCALINGS.items():
    if make is not None and isinstance(scaling, make):
      written = {setting.keys[0]: getattr(scaling, setting.field) for setting in settings}
      return {'rope_type': name} | written
  return None


def _rendered_longrope(scaling: layers.LongRopeScaling, max_positions: int) -> dict[str, Any]:
  """The entry of Phi-3, for which transformers 4 accepts no other form: three entries and `type`, not `rope_type`."""
  entries = {'short_factor': list(scaling.short_factors), 'long_factor': list(scaling.long_factors), 'type': 'longrope'}
  if scaling.extension != max_positions / scaling.original_positions:
    entries['factor'] = scaling.extension
  if scaling.attention_factor is not None:
    entries['attention_factor'] = scaling.attention_factor
  return entries
