"""How a model family stores its configuration and its weights: the building blocks of `families`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import math
from typing import Any, NamedTuple, TypeVar

import numpy as np

from alignjax.models import classifiers, config_entries, folders, inert, rotary_entries, transformer

_Stored = TypeVar('_Stored')
ARCHITECTURES = 'architectures'


class Block(NamedTuple):
  """Consecutive rows of a stored tensor, and the parts of its leaves that they hold."""

  first: int  # of the rows
  axis: int  # the axis of the leaves that the rows divide, apart from the layers: 0 or -1
  parts: Mapping[str, tuple[int, int]]  # by leaf: the first entry along the axis, and how many
  groups: int  # groups of outputs in the block, for `Tensor.join`


class Tensor(NamedTuple):
  """One leaf of the parameter tree and the tensors that store it, or several leaves fused into one tensor.

  `{layer}` in the name is replaced by each index of the leaf's first axis, and `{expert}` by each index of its second.
  Fused leaves are concatenated along their last axis, the outputs.
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
  def depth(self) -> int:
    """The number of leading axes of the leaf that stack stored tensors: layers, or layers and experts."""
    return ('{layer}' in self.name) + ('{expert}' in self.name)

  def names(self, shape: tuple[int, ...]) -> list[str]:
    """The stored names of a leaf of this shape, in the order of `places`."""
    places = (dict(zip(('layer', 'expert'), place, strict=False)) for place in self.places(shape))
    return [self.name.format(**place) for place in places]

  def places(self, shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The places of the stored tensors in a leaf of this shape: (layer,), (layer, expert), or ()."""
    return np.ndindex(shape[: self.depth])

  def group_count(self, config: transformer.TransformerConfig) -> int:
    """The number of groups of outputs in which fused leaves alternate."""
    return 1 if self.grouped_by is None else getattr(config, self.grouped_by)

  def stored_shape(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of a stored tensor, given those of its leaves."""
    row = shapes[0][self.depth :]
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
    also_written: further entries that are written, for tools that do not read the others.
    rotary_types: the types of scaling that the family supports, by their names in config.json.
    rotary_keys: further entries with parameters of the scaling, by field; they have no effect without it.
    rewrite: maps the contents of config.json to equivalent ones in which the other attributes find what they name.
    renamed: prefixes of stored names, and what replaces them.
    dropped: prefixes of the names of stored tensors that belong to another part of a larger model.
  """

  model_type: str
  settings: tuple[config_entries.Setting, ...]
  fixed: Mapping[str, Any]
  ignored: frozenset[str]
  tensors: tuple[Tensor, ...]
  ignored_tensors: tuple[str, ...] = ()
  inert: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
  cycles: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  optional_prefix: str = ''
  rotary_places: tuple[str, ...] = ('rope_scaling', 'rope_parameters')  # the names in transformers 4 and 5
  also_written: Callable[[transformer.TransformerConfig], Mapping[str, Any]] = lambda config: {}
  rotary_types: Mapping[str, str] = dataclasses.field(default_factory=rotary_entries.GENERAL.copy)
  rotary_keys: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  rewrite: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda entries: entries
  renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
  dropped: tuple[str, ...] = ()

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
    entries = self.rewrite(entries)
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
      fields[setting.field] = config_entries.read(setting, entries, fields)
    scaled: dict[str, Any] = {}
    for setting in self._rotary_settings(rotary_type):
      scaled[setting.field] = config_entries.read(setting, entries, fields | scaled)
    make = rotary_entries.SCALINGS[rotary_type].make
    return fields | {'rope_scaling': make(**scaled) if make else None}

  def _effective(self, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that may affect the function computed, with dotted keys."""
    flat = config_entries.flatten({key: value for key, value in entries.items() if key not in self.ignored})
    set_by = {key for setting in self.settings for key in setting.keys}
    values = {key: allowed for key, allowed in self._inert.items() if key not in set_by}
    return {key: value for key, value in flat.items() if not inert.has_no_effect(key, value, values)}

  @property
  def _inert(self) -> dict[str, tuple[Any, ...]]:
    return {**inert.VALUES, **self.inert}

  def _refused(self, entries: Mapping[str, Any], rotary_type: str | None) -> list[str]:
    """The unsupported entries, each with the reason: first the type of rotary scaling, which explains others."""
    known = {key for setting in self.settings for key in setting.keys} | {'model_type'}
    known |= {*self.cycles, *self.fixed, *self.rotary_places, *self._rotary_type_keys}
    known |= {key for keys in self.rotary_keys.values() for key in keys}
    first, refused = [], []
    if rotary_type is not None:
      known |= {key for setting in self._rotary_settings(rotary_type) for key in setting.keys}
      ignored = rotary_entries.SCALINGS[rotary_type].ignored
      known |= {f'{place}.{key}' for place in self.rotary_places for key in ignored}
    else:
      types = ', '.join(map(repr, self.rotary_types))
      named = [f'{key}={entries[key]!r}' for key in self._rotary_type_keys if entries.get(key) is not None]
      first.append(f'{", ".join(named)} (only {types} are supported)')
      known |= {key for key in entries if key.startswith(tuple(f'{place}.' for place in self.rotary_places))}
    for key in entries.keys() - known:
      allowed = ' and '.join(map(repr, self._inert.get(key, ())))
      reason = f'only {allowed} are supported' if allowed else 'unknown'
      refused.append(f'{key}={config_entries.shown(entries[key])} ({reason})')
    for key, supported in {**dict.fromkeys(self.rotary_places), **self.fixed}.items():
      if entries.get(key, supported) != supported:
        reason = f'only {supported!r} is supported'
        if key == ARCHITECTURES and classifiers.is_reward_model(entries[key]):
          reason = classifiers.refusal(self.classifier)
        refused.append(f'{key}={config_entries.shown(entries[key])} ({reason})')
    for key, cycle in self.cycles.items():
      items = [] if entries.get(key) is None else entries[key]
      if not isinstance(items, list) or any(item != cycle[i % len(cycle)] for i, item in enumerate(items)):
        refused.append(
          f'{key}={config_entries.shown(items)} (only a list that repeats {", ".join(map(repr, cycle))} is supported)'
        )
    return first + sorted(refused)

  @property
  def _rotary_type_keys(self) -> tuple[str, ...]:
    return tuple(f'{place}.{name}' for place in self.rotary_places for name in ('rope_type', 'type'))

  def _rotary_type(self, entries: Mapping[str, Any]) -> str | None:
    """The type of rotary scaling; None if the entries disagree or the family does not support it."""
    found = [entries[key] for key in self._rotary_type_keys if entries.get(key) is not None]
    if not found:
      return 'default'
    one = isinstance(found[0], str) and all(value == found[0] for value in found)
    return self.rotary_types.get(found[0]) if one else None

  def _rotary_settings(self, rotary_type: str) -> list[config_entries.Setting]:
    """The settings of one type of rotary scaling, with the keys of this family."""
    settings = rotary_entries.SCALINGS[rotary_type].settings
    return [
      setting._replace(
        keys=tuple(f'{place}.{key}' for place in self.rotary_places for key in setting.keys)
        + self.rotary_keys.get(setting.field, ())
      )
      for setting in settings
    ]

  def render(self, config: transformer.TransformerConfig) -> dict[str, Any]:
    """The contents of config.json for `config`, as `parse` and other tools read it."""
    entries = {'model_type': self.model_type}
    entries |= {setting.keys[0]: getattr(config, setting.field) for setting in self.settings if setting.keys}
    entries |= {key: value for key, value in self.fixed.items() if '.' not in key}
    if self.rotary_places:
      entries[self.rotary_places[0]] = rotary_entries.rendered(config)
    for field, keys in self.rotary_keys.items():
      entries |= {key: getattr(config.rope_scaling, field) for key in keys if hasattr(config.rope_scaling, field)}
    entries |= self.also_written(config)
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
    """The tensors of the model by their full names; adds `optional_prefix` if the checkpoint omits it."""
    if self.renamed:
      stored = {self._full_name(name): tensor for name, tensor in stored.items() if not name.startswith(self.dropped)}
    if any(name.startswith(self.optional_prefix) for name in stored):
      return stored
    return {self.optional_prefix + name: tensor for name, tensor in stored.items()}

  def _full_name(self, name: str) -> str:
    prefix = next((prefix for prefix in self.renamed if name.startswith(prefix)), '')
    return self.renamed.get(prefix, '') + name.removeprefix(prefix)

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
      if tensor.depth and math.prod(shape[: tensor.depth]) > len(stored):  # before a huge list of names is made
        experts = f' with {shape[1]} experts' if tensor.depth > 1 else ''
        raise ValueError(f'{len(stored)} tensors are too few for {shape[0]} layers{experts}')
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
