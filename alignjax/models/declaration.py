"""How a model family stores its configuration and its weights: the building blocks of `families`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import math
from typing import Any, NamedTuple, TypeVar

import numpy as np

from alignjax.models import classifiers, folders, inert, layers, transformer

_Stored = TypeVar('_Stored')
ARCHITECTURES = 'architectures'
_SHOWN = 80  # characters of a value in an error


class Setting(NamedTuple):
  """One field of `TransformerConfig` and the entries of config.json that hold it.

  A dot in a key denotes a nested entry. All keys are read; only the first is written. A setting without keys always has
  its default. `default` is the value that the family's own code uses if the entry is missing: a constant, or a function
  of the fields read so far. If it is None, the entry is required. A null entry counts as missing, unless the setting is
  `nullable`: then the field is None, and None is a valid default.
  """

  field: str
  keys: tuple[str, ...]
  kind: type[int] | type[float] | type[bool]
  default: int | float | bool | Callable[[Mapping[str, Any]], int] | None = None
  nullable: bool = False


class Block(NamedTuple):
  """Consecutive rows of a stored tensor, and the parts of its leaves that they hold."""

  first: int  # of the rows
  axis: int  # the axis of the leaves that the rows divide, apart from the layers: 0 or -1
  parts: Mapping[str, tuple[int, int]]  # by leaf: the first entry along the axis, and how many
  groups: int  # groups of outputs in the block, for `Tensor.join`


class Tensor(NamedTuple):
  """One leaf of the parameter tree and the tensors that store it, or several leaves fused into one tensor.

  `{layer}` in the name is replaced by each index of the leaf's first axis. Fused leaves are concatenated along their
  last axis, the outputs.
  """

  leaf: str
  name: str
  transposed: bool = False  # stored as [out, in]; kernels are [in, out]
  fused: tuple[str, ...] = ()  # further leaves in the same tensor, in this order
  grouped_by: str | None = None  # field of `TransformerConfig`: the number of groups in which fused leaves alternate

  @property
  def leaves(self) -> tuple[str, ...]:
    """All leaves that the tensor stores."""
    return (self.leaf, *self.fused)

  @property
  def stacked(self) -> bool:
    """Whether the leaf stacks one stored tensor per layer."""
    return '{layer}' in self.name

  def names(self, shape: tuple[int, ...]) -> list[str]:
    """The stored names of a leaf of this shape, in the order of its first axis."""
    return [self.name.format(layer=layer) for layer in range(shape[0])] if self.stacked else [self.name]

  def group_count(self, config: transformer.TransformerConfig) -> int:
    """The number of groups of outputs in which fused leaves alternate."""
    return 1 if self.grouped_by is None else getattr(config, self.grouped_by)

  def stored_shape(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of a stored tensor, given those of its leaves."""
    row = shapes[0][1:] if self.stacked else shapes[0]
    row = (*row[:-1], sum(shape[-1] for shape in shapes))
    return row[::-1] if self.transposed else row

  def join(self, parts: Sequence[np.ndarray], groups: int) -> np.ndarray:
    """The stored tensor of the leaves, each given as [..., out]."""
    grouped = [part.reshape(*part.shape[:-1], groups, -1) for part in parts]
    joined = np.concatenate(grouped, axis=-1).reshape(*parts[0].shape[:-1], -1) if self.fused else parts[0]
    return joined.T if self.transposed else joined

  def blocks(self, shapes: Sequence[tuple[int, ...]], groups: int, entries: int) -> Iterator[Block]:
    """Divides the stored tensor into blocks of rows.

    Args:
      shapes: the shapes of its leaves, [..., out], without the axis of the layers.
      groups: the number of groups in which fused leaves alternate.
      entries: the largest number of entries in a block, unless one row has more.
    """
    inputs, sizes = shapes[0][:-1], [shape[-1] for shape in shapes]
    if inputs and not self.transposed:  # a row holds the outputs of one input
      step = max(1, entries // sum(sizes))
      for first in range(0, inputs[0], step):
        part = first, min(step, inputs[0] - first)
        yield Block(first, 0, dict.fromkeys(self.leaves, part), groups)
      return
    step, of_group = max(1, entries // math.prod(inputs)), [size // groups for size in sizes]
    if sum(of_group) <= step:
      count = step // sum(of_group)
      for first in range(0, groups, count):
        held = min(count, groups - first)
        parts = {leaf: (first * size, held * size) for leaf, size in zip(self.leaves, of_group, strict=True)}
        yield Block(first * sum(of_group), -1, parts, held)
      return
    row = 0
    for group in range(groups):
      for leaf, size in zip(self.leaves, of_group, strict=True):
        for first in range(0, size, step):
          held = min(step, size - first)
          yield Block(row, -1, {leaf: (group * size + first, held)}, 1)
          row += held

  def part(self, stored: np.ndarray, leaf: str, sizes: Sequence[int], groups: int) -> np.ndarray:
    """The values of one leaf, [..., out], from a stored tensor of leaves with `sizes` outputs."""
    joined = stored.T if self.transposed else stored
    if not self.fused:
      return joined
    which = self.leaves.index(leaf)
    first, last = sum(sizes[:which]) // groups, sum(sizes[: which + 1]) // groups
    grouped = joined.reshape(*joined.shape[:-1], groups, -1)[..., first:last]
    return grouped.reshape(*joined.shape[:-1], -1)


_SCORE = Tensor('score/kernel', classifiers.SCORE, transposed=True)


@dataclasses.dataclass(frozen=True)
class Family:
  """How one family stores its configuration and its weights.

  Attributes:
    model_type: the entry of config.json that names the family.
    settings: the entries that configure the model.
    fixed: entries that affect the function computed, each with the only supported value.
    cycles: entries that list one item per layer, each with the supported repeating pattern.
    fields: fields of `TransformerConfig` that are constant for the family.
    ignored: entries that do not affect the function computed, whatever their value.
    inert: entries that do not affect the function computed with the listed values; others are refused.
    tensors: the stored tensors, covering every leaf of the parameter tree.
    ignored_tensors: name suffixes of stored tensors that are not parameters.
    optional_prefix: a prefix of all tensor names that some checkpoints omit.
    rotary_places: entries that describe the scaling of rotary frequencies; the first is written.
  """

  model_type: str
  settings: tuple[Setting, ...]
  fixed: Mapping[str, Any]
  ignored: frozenset[str]
  tensors: tuple[Tensor, ...]
  ignored_tensors: tuple[str, ...] = ()
  inert: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
  cycles: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  optional_prefix: str = ''
  rotary_places: tuple[str, ...] = ('rope_scaling', 'rope_parameters')  # the names in transformers 4 and 5

  @property
  def classifier(self) -> str:
    """The class of a model with a score head, in `architectures`; '' if transformers has none."""
    return classifiers.BY_TYPE.get(self.model_type, '')

  def parse(self, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the contents of config.json.

    Args:
      entries: the parsed contents of config.json.

    Returns:
      Fields of `TransformerConfig` by name.

    Raises:
      ValueError: an entry is missing, malformed, unknown or unsupported; the message names it.
    """
    fields: dict[str, Any] = {'model_type': self.model_type, **self.fields}
    if self.classifier and entries.get(ARCHITECTURES) == [self.classifier]:
      classifiers.check(entries)
      fields['output'] = 'score'
      entries = {**entries, ARCHITECTURES: None}
    entries = self._effective(entries)
    rotary_type = self._rotary_type(entries)
    if refused := self._refused(entries, rotary_type):
      raise ValueError(f'unsupported fields for model_type {self.model_type!r}: {", ".join(refused)}')
    for setting in self.settings:
      fields[setting.field] = _read(setting, entries, fields)
    scaled = {setting.field: _read(setting, entries, {}) for setting in self._rotary_settings(rotary_type)}
    make = _ROTARY_SCALINGS[rotary_type].make
    return fields | {'rope_scaling': make(**scaled) if make else None}

  def _effective(self, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that may affect the function computed, with dotted keys."""
    flat = _flatten({key: value for key, value in entries.items() if key not in self.ignored})
    set_by = {key for setting in self.settings for key in setting.keys}
    values = {key: allowed for key, allowed in self._inert.items() if key not in set_by}
    return {key: value for key, value in flat.items() if not inert.has_no_effect(key, value, values)}

  @property
  def _inert(self) -> dict[str, tuple[Any, ...]]:
    return {**inert.VALUES, **self.inert}

  def _refused(self, entries: Mapping[str, Any], rotary_type: Any) -> list[str]:
    """The unsupported entries, each with the reason: first the type of rotary scaling, which explains others."""
    known = {key for setting in self.settings for key in setting.keys} | {'model_type'}
    known |= {*self.cycles, *self.fixed, *self.rotary_places, *self._rotary_type_keys}
    first, refused = [], []
    if rotary_type in _ROTARY_SCALINGS:
      known |= {key for setting in self._rotary_settings(rotary_type) for key in setting.keys}
      ignored = _ROTARY_SCALINGS[rotary_type].ignored
      known |= {f'{place}.{key}' for place in self.rotary_places for key in ignored}
    else:
      types = ', '.join(map(repr, _ROTARY_SCALINGS))
      named = [f'{key}={entries[key]!r}' for key in self._rotary_type_keys if entries.get(key) is not None]
      first.append(f'{", ".join(named)} (only {types} are supported)')
      known |= {key for key in entries if key.startswith(tuple(f'{place}.' for place in self.rotary_places))}
    for key in entries.keys() - known:
      allowed = ' and '.join(map(repr, self._inert.get(key, ())))
      reason = f'only {allowed} are supported' if allowed else 'unknown'
      refused.append(f'{key}={_shown(entries[key])} ({reason})')
    for key, supported in {**dict.fromkeys(self.rotary_places), **self.fixed}.items():
      if entries.get(key, supported) != supported:
        reason = f'only {supported!r} is supported'
        if key == ARCHITECTURES and classifiers.is_reward_model(entries[key]):
          reason = classifiers.refusal(self.classifier)
        refused.append(f'{key}={_shown(entries[key])} ({reason})')
    for key, cycle in self.cycles.items():
      items = [] if entries.get(key) is None else entries[key]
      if not isinstance(items, list) or any(item != cycle[i % len(cycle)] for i, item in enumerate(items)):
        refused.append(f'{key}={_shown(items)} (only a list that repeats {", ".join(map(repr, cycle))} is supported)')
    return first + sorted(refused)

  @property
  def _rotary_type_keys(self) -> tuple[str, ...]:
    return tuple(f'{place}.{name}' for place in self.rotary_places for name in ('rope_type', 'type'))

  def _rotary_type(self, entries: Mapping[str, Any]) -> Any:
    """The type of rotary scaling; if the entries disagree or are not strings, a tuple of their values."""
    found = [entries[key] for key in self._rotary_type_keys if entries.get(key) is not None]
    if not found:
      return 'default'
    one = isinstance(found[0], str) and all(value == found[0] for value in found)
    return found[0] if one else tuple(map(repr, found))

  def _rotary_settings(self, rotary_type: str) -> list[Setting]:
    """The settings of one type of rotary scaling, with the keys of this family."""
    settings = _ROTARY_SCALINGS[rotary_type].settings
    return [
      setting._replace(keys=tuple(f'{place}.{key}' for place in self.rotary_places for key in setting.keys))
      for setting in settings
    ]

  def render(self, config: transformer.TransformerConfig) -> dict[str, Any]:
    """The contents of config.json for `config`, as `parse` and other tools read it."""
    entries = {'model_type': self.model_type}
    entries |= {setting.keys[0]: getattr(config, setting.field) for setting in self.settings if setting.keys}
    entries |= {key: value for key, value in self.fixed.items() if '.' not in key}
    if self.rotary_places:
      entries[self.rotary_places[0]] = _rendered(config.rope_scaling)
    if config.scored and self.classifier:
      entries |= {ARCHITECTURES: [self.classifier], **classifiers.ENTRIES}
    return entries

  def tensor(self, leaf: str) -> Tensor:
    """The stored tensor that holds the parameter at the path `leaf`.

    Raises:
      ValueError: the family does not declare the parameter.
    """
    for tensor in (*self.tensors, _SCORE):
      if leaf in tensor.leaves:
        return tensor
    raise ValueError(f'model_type {self.model_type!r} declares no tensor for the parameter {leaf}')

  def prefixed(self, stored: Mapping[str, _Stored]) -> Mapping[str, _Stored]:
    """Tensors by their full names; adds `optional_prefix` if the checkpoint omits it."""
    if any(name.startswith(self.optional_prefix) for name in stored):
      return stored
    return {self.optional_prefix + name: tensor for name, tensor in stored.items()}

  def check(self, shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]]) -> None:
    """Compares the parameters of a model with the tensors in a file.

    Args:
      shapes: shapes of the parameters, by path.
      stored: shapes of the stored tensors, by name.

    Raises:
      ValueError: a tensor is missing, unexpected or has the wrong shape; the message names all of them.
    """
    expected = {}
    for leaf, shape in shapes.items():
      tensor = self.tensor(leaf)
      if tensor.stacked and shape[0] > len(stored):  # avoids building a huge list of names for an absurd layer count
        raise ValueError(f'{len(stored)} tensors are too few for {shape[0]} layers')
      stored_shape = tensor.stored_shape([shapes[part] for part in tensor.leaves])
      expected |= dict.fromkeys(tensor.names(shape), stored_shape)
    both = expected.keys() & stored.keys()
    faults = {
      'missing': expected.keys() - stored.keys(),
      'unexpected': stored.keys() - expected.keys(),
      'with the wrong shape': [
        f'{name} (expected {expected[name]}, found {stored[name]})' for name in both if expected[name] != stored[name]
      ],
    }
    if any(faults.values()):
      raise ValueError(
        '; '.join(f'tensors {fault}: {folders.listed(names)}' for fault, names in faults.items() if names)
      )


def _flatten(entries: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Flattens nested entries into dotted keys, so that one table covers all of them."""
  flat = {}
  for key, value in entries.items():
    nested = isinstance(value, dict) and value
    flat |= _flatten(value, f'{prefix}{key}.') if nested else {prefix + key: value}
  return flat


def _shown(value: Any) -> str:
  """A value as errors show it: long ones, such as lists with an item for each frequency, are cut."""
  text = repr(value)
  return text if len(text) <= _SHOWN else f'{text[: _SHOWN - 3]}...'


def _read(setting: Setting, entries: Mapping[str, Any], fields: Mapping[str, Any]) -> int | float | bool | None:
  """The value of one setting."""
  found = {key: entries[key] for key in setting.keys if entries.get(key) is not None}
  if not found and setting.nullable and any(key in entries for key in setting.keys):
    return None
  if not found:
    if setting.default is None and not setting.nullable:
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


class _RotaryScaling(NamedTuple):
  """One type of rotary scaling: its constructor and the entries of config.json with its parameters."""

  make: Callable[..., layers.RotaryScaling] | None
  settings: tuple[Setting, ...] = ()
  ignored: tuple[str, ...] = ()  # entries without effect


_ROTARY_SCALINGS = {
  'default': _RotaryScaling(None),
  'linear': _RotaryScaling(layers.LinearScaling, (Setting('factor', ('factor',), float),)),
  'llama3': _RotaryScaling(
    layers.Llama3Scaling,
    (
      Setting('factor', ('factor',), float),
      Setting('low_frequency_factor', ('low_freq_factor',), float),
      Setting('high_frequency_factor', ('high_freq_factor',), float),
      Setting('original_positions', ('original_max_position_embeddings',), int),
    ),
  ),
  'yarn': _RotaryScaling(
    layers.YarnScaling,
    (
      Setting('factor', ('factor',), float),
      Setting('original_positions', ('original_max_position_embeddings',), int),
      Setting('fast_turns', ('beta_fast',), float, 32.0),
      Setting('slow_turns', ('beta_slow',), float, 1.0),
      Setting('truncate', ('truncate',), bool, True),
      Setting('attention_factor', ('attention_factor',), float, nullable=True),
      Setting('mscale', ('mscale',), float, nullable=True),
      Setting('mscale_all_dim', ('mscale_all_dim',), float, nullable=True),
    ),
    ignored=('attn_factor', 'finetuned'),
  ),
}


def _rendered(scaling: layers.RotaryScaling | None) -> dict[str, Any] | None:
  """The entry `rope_scaling`, which both transformers 4 and 5 read."""
  for name, (make, settings, _) in _ROTARY_SCALINGS.items():
    if make is not None and isinstance(scaling, make):
      written = {setting.keys[0]: getattr(scaling, setting.field) for setting in settings}
      return {'rope_type': name} | written
  return None
