"""Merges models of any size in Hugging Face folders. Only some rows of one tensor are in memory at a time.

The models and the base must have the same tensors, configuration and tokenizer; otherwise an error names what differs.
The configuration and the tokenizer files are copied from the first model, unless `Output.assets_from` names another
folder. A record of the merge is written to merge.json and into the headers of the weight files. The output folder
appears only when it is complete.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import json
import math
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from alignjax import expressions, merging
from alignjax.models import checkpoint_io, comparison, folders, manifest, peft, transformer, weight_files
from alignjax.run import folder_tensors

RECORD = 'merge.json'
TOKENIZER = ('tokenizer.json', 'tokenizer.model', 'vocab.json', 'merges.txt')
_PASSING = ('padding', 'truncation')  # entries of tokenizer.json that record only how it was last used
_ROTARY = ('rope_parameters', 'rope_scaling', 'rope_theta')
# Entries that may differ between models of families that are not declared: they do not change what the weights mean.
_INCIDENTAL = frozenset(
  [
    '_name_or_path',
    'architectures',
    'attention_dropout',
    'bos_token_id',
    'dtype',
    'eos_token_id',
    'initializer_range',
    'pad_token_id',
    'pretraining_tp',
    'torch_dtype',
    'transformers_version',
    'use_cache',
  ]
)
Path = str | os.PathLike[str]


def parse_method(text: str) -> merging.Method:
  """Reads a merge method from its expression, such as `'ties(density=0.5)'`.

  Raises:
    ExpressionError: the text is not a merge method.
  """
  return expressions.parse(text, merging.Method, 'a merge method', {'merge methods': merging.METHODS})


class Inputs(NamedTuple):
  """The models to merge, the base for methods that need one, and weights in the form that `merging.merge` takes."""

  models: Sequence[Path]
  base: Path | None = None
  weights: Any = None


class Output(NamedTuple):
  """Options for writing the result.

  Attributes:
    dtype: type of the stored weights, 'float32', 'bfloat16' or 'float16'; None keeps the type of each
      tensor in the first model. Merging always computes in float32.
    assets_from: folder to copy the configuration and the tokenizer files from; None for the first model.
    allow_different_tokenizers: whether tokenizers may differ.
    shard_bytes: largest size of one file, in bytes.
  """

  dtype: str | None = None
  assets_from: Path | None = None
  allow_different_tokenizers: bool = False
  shard_bytes: int = folders.SHARD_BYTES


def merge(
  out: Path,
  method: merging.Method,
  inputs: Inputs,
  output: Output = Output(),  # noqa: B008  # a tuple of literals
  advance: Callable[[float], None] = lambda share: None,
) -> None:
  """Merges folders.

  Args:
    out: folder to create.
    method: the merge method.
    inputs: the models to merge.
    output: how to write the result.
    advance: called with the fraction of the work done since the last call.

  Raises:
    ValueError: the folders cannot be merged. The message names the difference.
  """
  models, base, weights = inputs
  dtype = output.dtype
  out, paths = pathlib.Path(out), [pathlib.Path(model) for model in models]
  if out.exists():
    raise ValueError(f'--out={out}: the folder exists; choose another one')
  if not paths:
    raise ValueError('--models: give at least one folder')
  if dtype is not None and dtype not in folders.DTYPES.values():
    raise ValueError(f'--dtype={dtype}: must be one of {", ".join(folders.DTYPES.values())}')
  origins = paths if base is None else [*paths, pathlib.Path(base)]
  assets = paths[0] if output.assets_from is None else pathlib.Path(output.assets_from)
  entries, configs = _check_configs([assets, *origins])
  if not output.allow_different_tokenizers:
    _check_tokenizers([assets, *origins])
  stored = [folder_tensors.places(path, config) for path, config in zip(origins, configs[1:], strict=True)]
  _check_tensors(dict(zip(origins, stored, strict=True)))
  method.check(stored[0], len(paths), base is not None, weights)

  planned = [weight_files.Planned(name, place.shape, dtype or place.dtype) for name, place in stored[0].items()]
  record = _record(method, inputs, dtype)
  total = sum(math.prod(tensor.shape) for tensor in planned)

  def blocks(name: str) -> Iterator[np.ndarray]:
    origin = [tensors[name] for tensors in stored]
    for block in method.run(_tensor(origin, base is not None), len(paths), weights):
      yield np.asarray(block)
    advance(math.prod(origin[0].shape) / total)

  with folders.replacing(out) as partial:
    if dtype is not None:
      entries |= {key: dtype for key in ('torch_dtype', 'dtype') if key in entries} or {'torch_dtype': dtype}
    folders.write_json(partial / folders.CONFIG, entries)
    folders.copy_assets(assets, partial)
    folders.write_json(partial / RECORD, record)
    folder_tensors.write(partial, planned, blocks, {'alignjax_merge': json.dumps(record)}, output.shard_bytes)


def merge_adapter(out: Path, model: Path, adapter: Path, dtype: str = '', assets_from: Path = '') -> None:
  """Merges a LoRA adapter in PEFT format into its base model, leaf by leaf.

  Args:
    out: folder to create.
    model: folder of the base model.
    adapter: folder of the adapter.
    dtype: type of the stored weights; empty for the widest type in the base model. Merging computes in float32.
    assets_from: folder to copy the tokenizer files from; empty for the base model.

  Raises:
    ValueError: a folder is invalid, or the adapter does not fit the model.
  """
  if pathlib.Path(out).exists():
    raise ValueError(f'--out={out}: the folder exists; choose another one')
  config = checkpoint_io.load_config(model)
  loading = checkpoint_io.Loading(None, peft.merging(adapter, config))
  stored = checkpoint_io.stored_dtypes(model)
  dtype = dtype or (stored.pop() if len(stored) == 1 else 'float32')
  with contextlib.ExitStack() as stack:
    params = checkpoint_io.deferred_params(model, config, stack, loading=loading)
    about = folders.About({'base': str(model), 'adapter': str(adapter)})
    checkpoint_io.save(out, config, params, assets_from or model, dtype, about)


def _tensor(origin: Sequence[folder_tensors.Place], has_base: bool) -> merging.Tensor:
  """One tensor of all models, read in blocks. `origin` ends with the base if there is one."""

  def blocks() -> Iterator[merging.Block]:
    row = 0
    for parts in zip(*(place.blocks() for place in origin), strict=True):
      models, last = (parts[:-1], parts[-1]) if has_base else (parts, None)
      yield merging.Block(last, tuple(models), np.uint32(row))
      row += parts[0].shape[0]

  return merging.Tensor(origin[0].name, *merging.rows_and_columns(origin[0].shape), blocks)


def _record(method: merging.Method, inputs: Inputs, dtype: str | None) -> dict[str, Any]:
  """The contents of merge.json."""
  record: dict[str, Any] = {'method': method.name, 'models': [os.fspath(model) for model in inputs.models]}
  if inputs.base is not None:
    record['base'] = os.fspath(inputs.base)
  if method.takes_weights:
    record['weights'] = str(merging.setting('weights', 1.0 if inputs.weights is None else inputs.weights))
  return record if dtype is None else {**record, 'dtype': dtype}


_Configs = list[transformer.TransformerConfig | None]


def _check_configs(paths: Sequence[pathlib.Path]) -> tuple[dict[str, Any], _Configs]:
  """Compares what the configurations mean, or their entries if one of them is not supported.

  Returns:
    The entries of the first configuration, and what each means; None for all if one is not supported.
  """
  entries = []
  for path in paths:
    manifest.check_settings(path)
    entries.append(folders.read_json(path / folders.CONFIG))
  try:
    configs: _Configs = [checkpoint_io.load_config(path) for path in paths]
  except ValueError:  # a family, or an entry, whose meaning is unknown
    configs = [None for _ in paths]
  for i, path in enumerate(paths[1:], 1):
    known = configs[0] is not None
    different = comparison.differences(configs[0], configs[i]) if known else _different(entries[0], entries[i])
    for key, (first, second) in different.items():
      raise ValueError(
        f'{path / folders.CONFIG}: {key} is {second!r}, and in {paths[0]} it is {first!r}: '
        'these models cannot be merged'
      )
  if configs[0] is not None and entries[0]['model_type'] != configs[0].model_type:  # only its text model is merged
    dtype = entries[0].get('torch_dtype') or entries[0].get('dtype') or 'float32'
    return checkpoint_io.rendered(configs[0], paths[0]) | {'torch_dtype': dtype}, configs
  return entries[0], configs


def _different(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
  """The entries that two configurations share and that differ, with both values.

  An entry that only one has is either visible in the tensors or a default, except those of rotary positions.
  """
  shared = (first.keys() & second.keys()) - _INCIDENTAL | set(_ROTARY)
  pairs = {key: (first.get(key), second.get(key)) for key in sorted(shared)}
  return {key: values for key, values in pairs.items() if values[0] != values[1]}


def _check_tokenizers(paths: Sequence[pathlib.Path]) -> None:
  """Compares the tokenizer files that two folders share."""
  first = _tokenizer(paths[0])
  for path in paths[1:]:
    other = _tokenizer(path)
    shared = first.keys() & other.keys()
    different = sorted(name for name in shared if first[name] != other[name])
    if not shared and (first or other):
      different = sorted(first.keys() | other.keys())
    if different:
      raise ValueError(
        f'{path}: the tokenizer differs from that of {paths[0]} ({", ".join(different)}), so rows of the '
        'embeddings may mean different tokens: if you know that they agree, give --allow_different_tokenizers'
      )


def _tokenizer(path: pathlib.Path) -> dict[str, Any]:
  """The contents of a tokenizer's files, by name."""
  files: dict[str, Any] = {}
  for name in TOKENIZER:
    if (path / name).exists():
      is_json = name.endswith('.json')
      files[name] = folders.read_json(path / name) if is_json else (path / name).read_bytes()
  for key in _PASSING:
    files.get('tokenizer.json', {}).pop(key, None)
  return files


def _check_tensors(stored: Mapping[pathlib.Path, Mapping[str, folder_tensors.Place]]) -> None:
  """Compares names and shapes."""
  (reference, expected), *others = stored.items()
  for path, found in others:
    faults = {
      'missing': expected.keys() - found.keys(),
      'additional': found.keys() - expected.keys(),
      'with another shape': [
        f'{name} {list(found[name].shape)} instead of {list(expected[name].shape)}'
        for name in expected.keys() & found.keys()
        if found[name].shape != expected[name].shape
      ],
    }
    if any(faults.values()):
      listed = '; '.join(f'tensors {fault}: {folders.listed(names)}' for fault, names in faults.items() if names)
      raise ValueError(f'{path}: cannot be merged with {reference}: {listed}')
