"""How one model family stores its configuration and its weights: the parts of a declaration in `families`."""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any, NamedTuple

from alignjax.models import folders, layers, transformer


class Setting(NamedTuple):
  """One field of `TransformerConfig` and the entries of config.json that hold it.

  A nested entry is written with a dot. The first key is the one that is written; all of them are read.
  `default` is what the family's own code takes where the entry is absent: a value, or a function of the fields so far.
  A null entry counts as absent, unless the setting is `nullable`: then the field is None.
  """

  field: str
  keys: tuple[str, ...]
  kind: type[int] | type[float] | type[bool]
  default: int | float | bool | Callable[[Mapping[str, Any]], int] | None = None  # None: the entry must be there
  nullable: bool = False


class Tensor(NamedTuple):
  """One leaf of the parameter tree and the tensors that hold it.

  A `{layer}` in the name stands for each index of the leaf's first axis.
  """

  leaf: str
  name: str
  transposed: bool = False  # stored as [out, in], while kernels are [in, out]

  @property
  def stacked(self) -> bool:
    """Whether the leaf stacks one stored tensor for each layer."""
    return '{layer}' in self.name

  def names(self, shape: tuple[int, ...]) -> list[str]:
    """The stored names of a leaf of this shape, in the order of its first axis."""
    return [self.name.format(layer=layer) for layer in range(shape[0])] if self.stacked else [self.name]


@dataclasses.dataclass(frozen=True)
class Family:
  """How one family stores its configuration and its weights.

  Attributes:
    model_type: entry of config.json that names the family.
    settings: entries that configure the model.
    fixed: entries that change the function computed, with the only value that is supported.
    cycles: entries that hold a list with an item for each layer, with the cycle of items that is supported.
    fields: of `TransformerConfig`, that the family sets without an entry.
    ignored: entries without effect on the function computed.
    tensors: every leaf of the parameter tree.
    ignored_tensors: endings of the names of stored tensors that hold no parameter.
  """

  model_type: str
  settings: tuple[Setting, ...]
  fixed: Mapping[str, Any]
  ignored: frozenset[str]
  tensors: tuple[Tensor, ...]
  ignored_tensors: tuple[str, ...] = ()
  cycles: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def parse(self, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the contents of config.json.

    Args:
      entries: config.json, parsed.

    Returns:
      Fields of `TransformerConfig` by name.

    Raises:
      ValueError: an entry is missing, malformed, unknown or not supported; the message names it.
    """
    entries = _flatten({key: value for key, value in entries.items() if key not in self.ignored})
    rotary_type = _rotary_type(entries)
    if refused := self._refused(entries, rotary_type):
      raise ValueError(
        f'fields that model_type {self.model_type!r} does not support here: {", ".join(sorted(refused))}'
      )
    fields: dict[str, Any] = {'model_type': self.model_type, **self.fields}
    for setting in self.settings:
      fields[setting.field] = _read(setting, entries, fields)
    scaling = _ROTARY_SCALINGS[rotary_type]
    scaled = {setting.field: _read(setting, entries, {}) for setting in scaling.settings}
    return fields | {'rope_scaling': scaling.make(**scaled) if scaling.make else None}

  def _refused(self, entries: Mapping[str, Any], rotary_type: Any) -> list[str]:
    """The entries that are not supported, each with the reason."""
    known = {key for setting in self.settings for key in setting.keys} | {'model_type'}
    known |= {*self.cycles, *self.fixed, *_ROTARY_PLACES, *_ROTARY_TYPE_KEYS}
    if rotary_type in _ROTARY_SCALINGS:
      known |= {key for setting in _ROTARY_SCALINGS[rotary_type].settings for key in setting.keys}
    refused = [f'{key}={value!r} (unknown)' for key, value in entries.items() if key not in known]
    for key, supported in {**dict.fromkeys(_ROTARY_PLACES), **self.fixed}.items():
      if entries.get(key, supported) != supported:
        refused.append(f'{key}={entries[key]!r} (only {supported!r} is supported)')
    for key, cycle in self.cycles.items():
      items = [] if entries.get(key) is None else entries[key]
      if not isinstance(items, list) or any(item != cycle[i % len(cycle)] for i, item in enumerate(items)):
        refused.append(f'{key}={items!r} (only a list that repeats {", ".join(map(repr, cycle))} is supported)')
    if rotary_type not in _ROTARY_SCALINGS:
      types = ', '.join(map(repr, _ROTARY_SCALINGS))
      named = [f'{key}={entries[key]!r}' for key in _ROTARY_TYPE_KEYS if entries.get(key) is not None]
      refused.append(f'{", ".join(named)} (only {types} are supported)')
    return refused

  def render(self, config: transformer.TransformerConfig) -> dict[str, Any]:
    """The contents of config.json for `config`: what `parse` reads back, and what other tools expect to find."""
    entries = {'model_type': self.model_type}
    entries |= {setting.keys[0]: getattr(config, setting.field) for setting in self.settings}
    entries |= {key: value for key, value in self.fixed.items() if '.' not in key}
    return entries | {'rope_scaling': _rendered(config.rope_scaling)}

  def tensor(self, leaf: str) -> Tensor:
    """Where the parameter at the path `leaf` is stored.

    Raises:
      ValueError: the family does not declare it.
    """
    for tensor in self.tensors:
      if tensor.leaf == leaf:
        return tensor
    raise ValueError(f'model_type {self.model_type!r} declares no tensor for the parameter {leaf}')

  def check(self, shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]]) -> None:
    """Compares what a model asks for with what a file holds.

    Args:
      shapes: of the parameters, by path.
      stored: shapes of the stored tensors, by name.

    Raises:
      ValueError: a tensor is missing, unexpected or mis-shaped; the message names all of them.
    """
    expected = {}
    for leaf, shape in shapes.items():
      tensor = self.tensor(leaf)
      row = shape[1:] if tensor.stacked else shape
      expected |= dict.fromkeys(tensor.names(shape), row[::-1] if tensor.transposed else row)
    found = {name: shape for name, shape in stored.items() if not name.endswith(self.ignored_tensors)}
    both = expected.keys() & found.keys()
    faults = {
      'missing': expected.keys() - found.keys(),
      'unexpected': found.keys() - expected.keys(),
      'of another shape': [f'{n} (expected {expected[n]}, found {found[n]})' for n in both if expected[n] != found[n]],
    }
    if any(faults.values()):
      raise ValueError(
        '; '.join(f'tensors {fault}: {folders.listed(names)}' for fault, names in faults.items() if names)
      )


def _flatten(entries: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Turns nested entries into dotted ones, so that one table speaks of all of them."""
  flat = {}
  for key, value in entries.items():
    nested = isinstance(value, dict) and value
    flat |= _flatten(value, f'{prefix}{key}.') if nested else {prefix + key: value}
  return flat


def _read(setting: Setting, entries: Mapping[str, Any], fields: Mapping[str, Any]) -> int | float | bool | None:
  """The value of one setting."""
  found = {key: entries[key] for key in setting.keys if entries.get(key) is not None}
  if not found and setting.nullable and any(key in entries for key in setting.keys):
    return None
  if not found:
    if setting.default is None:
      raise ValueError(f'field {setting.keys[0]} is missing')
    return setting.default(fields) if callable(setting.default) else setting.default
  for key, value in found.items():
    if not _valid(value, setting.kind):
      expected = 'true or false' if setting.kind is bool else f'a positive {setting.kind.__name__}'
      raise ValueError(f'field {key}={value!r} must be {expected}')
  if len(set(found.values())) > 1:
    raise ValueError(f'fields contradict each other: {", ".join(f"{key}={value!r}" for key, value in found.items())}')
  return setting.kind(next(iter(found.values())))


def _valid(value: Any, kind: type) -> bool:
  if kind is bool or isinstance(value, bool):
    return kind is bool and isinstance(value, bool)
  if isinstance(value, int):
    return 0 < value < 2**31
  return kind is float and isinstance(value, float) and 0 < value < math.inf


_ROTARY_PLACES = ('rope_scaling', 'rope_parameters')  # as transformers 4 and 5 call it


def _rotary_keys(*names: str) -> tuple[str, ...]:
  return tuple(f'{place}.{name}' for place in _ROTARY_PLACES for name in names)


_ROTARY_TYPE_KEYS = _rotary_keys('rope_type', 'type')


class _RotaryScaling(NamedTuple):
  """What config.json calls the parts of one way to scale rotary frequencies."""

  make: Callable[..., layers.RotaryScaling] | None
  settings: tuple[Setting, ...] = ()


_ROTARY_SCALINGS = {
  'default': _RotaryScaling(None),
  'linear': _RotaryScaling(layers.LinearScaling, (Setting('factor', _rotary_keys('factor'), float),)),
  'llama3': _RotaryScaling(
    layers.Llama3Scaling,
    (
      Setting('factor', _rotary_keys('factor'), float),
      Setting('low_frequency_factor', _rotary_keys('low_freq_factor'), float),
      Setting('high_frequency_factor', _rotary_keys('high_freq_factor'), float),
      Setting('original_positions', _rotary_keys('original_max_position_embeddings'), int),
    ),
  ),
}


def _rotary_type(entries: Mapping[str, Any]) -> Any:
  """The one type of rotary scaling that the entries name; a tuple of what they hold if that is no one string."""
  found = [entries[key] for key in _ROTARY_TYPE_KEYS if entries.get(key) is not None]
  if not found:
    return 'default'
  one = isinstance(found[0], str) and all(value == found[0] for value in found)
  return found[0] if one else tuple(map(repr, found))


def _rendered(scaling: layers.RotaryScaling | None) -> dict[str, Any] | None:
  """The entry `rope_scaling`, which transformers 4 and 5 read."""
  for name, (make, settings) in _ROTARY_SCALINGS.items():
    if make is not None and isinstance(scaling, make):
      written = {setting.keys[0].split('.')[1]: getattr(scaling, setting.field) for setting in settings}
      return {'rope_type': name} | written
  return None
