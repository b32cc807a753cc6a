r"""Merges models in Hugging Face folders, of any size: no model is ever held, only some rows of one tensor.

  python -m experiments.merge --method='ties(density=0.5)' --base=base --models=helpful,harmless --out=merged
  python -m experiments.merge --method='slerp(t=0.3)' --models=first,second --out=merged --dtype=bfloat16
  python -m experiments.merge --method='linear()' --models=first,second --weights='*.mlp.*=0.3,0.7; *=0.5' --out=merged

Methods are linear, slerp, task_arithmetic, ties, dare, breadcrumbs, della and model_stock, with arguments as their
docstrings say (alignjax/merging/offline.py). A density or a weight is one number; one for each model, '0.3,0.7'; or
either by patterns of tensor names, first match first, as in the last line.

The models, and the base, must have the same tensors, configuration and tokenizer; what differs is refused by name. The
configuration and the tokenizer files are those of the first model, or of --assets_from. What was merged is written to
merge.json and into the headers of the weight files. The folder appears complete or not at all.

Exit codes: 0 done, 1 an error in flags or folders.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import json
import math
import os
import pathlib
import sys
import traceback
from typing import Any

from absl import app, flags, logging
import numpy as np
from rich import console as rich_console
from rich import progress as rich_progress

from alignjax import expressions, merging
from alignjax.models import folders
from alignjax.run import folder_tensors

RECORD = 'merge.json'
TOKENIZER = ('tokenizer.json', 'tokenizer.model', 'vocab.json', 'merges.txt')
_PASSING = ('padding', 'truncation')  # entries of tokenizer.json that say how it was last used
# Entries of config.json that may differ between models to be merged: they do not change what the weights mean.
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
    ExpressionError: for anything else.
  """
  return expressions.parse(text, merging.Method, 'a merge method', {'merge methods': merging.METHODS})


def merge(
  out: Path,
  method: merging.Method,
  models: Sequence[Path],
  base: Path | None = None,
  *,
  weights: Any = None,
  dtype: str | None = None,
  assets_from: Path | None = None,
  allow_different_tokenizers: bool = False,
  shard_bytes: int = folders.SHARD_BYTES,
  advance: Callable[[float], None] = lambda share: None,
) -> None:
  """Merges folders.

  Args:
    out: folder to write, which must not exist.
    method: what to do.
    models: folders of the models.
    base: folder of the model that they were trained from, for methods that need it.
    weights: as `alignjax.merging.merge` takes them.
    dtype: of the stored weights, 'float32', 'bfloat16' or 'float16'; None leaves each the type that it has in the first
      model. Whatever it is, merging is done in float32.
    assets_from: folder to copy the configuration and the tokenizer files from; None: the first model.
    allow_different_tokenizers: whether tokenizers may differ.
    shard_bytes: largest size of one file.
    advance: called with the share of the work that has been done since the last call.

  Raises:
    ValueError: what cannot be merged, by name.
  """
  out, paths = pathlib.Path(out), [pathlib.Path(model) for model in models]
  if out.exists():
    raise ValueError(f'--out={out}: exists; choose another folder')
  if not paths:
    raise ValueError('--models: no folder is given')
  if dtype is not None and dtype not in folders.DTYPES.values():
    raise ValueError(f'--dtype={dtype}: must be one of {", ".join(folders.DTYPES.values())}')
  origins = paths if base is None else [*paths, pathlib.Path(base)]
  assets = paths[0] if assets_from is None else pathlib.Path(assets_from)
  config = _check_configs([assets, *origins])
  if not allow_different_tokenizers:
    _check_tokenizers([assets, *origins])
  stored = [folder_tensors.places(path) for path in origins]
  _check_tensors(dict(zip(origins, stored, strict=True)))
  method.check(stored[0], len(paths), base is not None, weights)

  planned = [folder_tensors.Planned(name, place.shape, dtype or place.dtype) for name, place in stored[0].items()]
  record = _record(method, models, base, weights, dtype)
  total = sum(math.prod(tensor.shape) for tensor in planned)

  def blocks(name: str) -> Iterator[np.ndarray]:
    origin = [tensors[name] for tensors in stored]
    for block in method.run(_tensor(origin, base is not None), len(paths), weights):
      yield np.asarray(block)
    advance(math.prod(origin[0].shape) / total)

  with folders.replacing(out) as partial:
    if dtype is not None:
      config |= {key: dtype for key in ('torch_dtype', 'dtype') if key in config} or {'torch_dtype': dtype}
    folders.write_json(partial / folders.CONFIG, config)
    folders.copy_assets(assets, partial)
    folders.write_json(partial / RECORD, record)
    folder_tensors.write(partial, planned, blocks, {'alignjax_merge': json.dumps(record)}, shard_bytes)


def _tensor(origin: Sequence[folder_tensors.Place], has_base: bool) -> merging.Tensor:
  """One tensor of all models, the base being the last, to be read in blocks."""

  def blocks() -> Iterator[merging.Block]:
    row = 0
    for parts in zip(*(place.blocks() for place in origin), strict=True):
      models, last = (parts[:-1], parts[-1]) if has_base else (parts, None)
      yield merging.Block(last, tuple(models), np.uint32(row))
      row += parts[0].shape[0]

  return merging.Tensor(origin[0].name, *merging.rows_and_columns(origin[0].shape), blocks)


def _record(
  method: merging.Method, models: Sequence[Path], base: Path | None, weights: Any, dtype: str | None
) -> dict[str, Any]:
  """What was merged, for later readers."""
  record: dict[str, Any] = {'method': method.name, 'models': [os.fspath(model) for model in models]}
  if base is not None:
    record['base'] = os.fspath(base)
  if method.takes_weights:
    record['weights'] = str(merging.setting('weights', 1.0 if weights is None else weights))
  return record if dtype is None else {**record, 'dtype': dtype}


def _check_configs(paths: Sequence[pathlib.Path]) -> dict[str, Any]:
  """Compares configurations, as far as they have the same entries, and returns the first.

  An entry that only one has shows in the tensors or is the default; but without `rope_scaling`, none is meant.
  """
  entries = [folders.read_json(path / folders.CONFIG) for path in paths]
  for path, other in zip(paths[1:], entries[1:], strict=True):
    for key in sorted((entries[0].keys() & other.keys()) - _INCIDENTAL | {'rope_scaling'}):
      first, second = entries[0].get(key), other.get(key)
      if first != second:
        raise ValueError(
          f'{path / folders.CONFIG}: {key} is {second!r}, and in {paths[0]} it is {first!r}: '
          'these models cannot be merged'
        )
  return entries[0]


def _check_tokenizers(paths: Sequence[pathlib.Path]) -> None:
  """Compares the files of tokenizers, as far as two folders have the same ones."""
  first = _tokenizer(paths[0])
  for path in paths[1:]:
    other = _tokenizer(path)
    shared = first.keys() & other.keys()
    different = sorted(name for name in shared if first[name] != other[name])
    if not shared and (first or other):
      different = sorted(first.keys() | other.keys())
    if different:
      raise ValueError(
        f'{path}: the tokenizer differs from that of {paths[0]} ({", ".join(different)}), so that rows of the '
        'embeddings stand for other tokens: if you know that they do not, say --allow_different_tokenizers'
      )


def _tokenizer(path: pathlib.Path) -> dict[str, Any]:
  """What the files of a tokenizer say, by name."""
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
      'of another shape': [
        f'{name} {list(found[name].shape)} instead of {list(expected[name].shape)}'
        for name in expected.keys() & found.keys()
        if found[name].shape != expected[name].shape
      ],
    }
    if any(faults.values()):
      told = '; '.join(f'tensors {fault}: {folders.listed(names)}' for fault, names in faults.items() if names)
      raise ValueError(f'{path}: cannot be merged with {reference}: {told}')


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
  """The flags of the program. Not on import: flags are global, and other programs have flags of the same names."""
  flags.DEFINE_string('method', None, "Expression of the method, such as 'ties(density=0.5)'.", flag_values=values)
  flags.DEFINE_list('models', None, 'Folders of the models, in Hugging Face layout.', flag_values=values)
  flags.DEFINE_string('base', None, 'Folder of the model that they were trained from.', flag_values=values)
  flags.DEFINE_string('weights', None, "1 by default; '0.3,0.7', or '*.mlp.*=0.3,0.7; *=0.5'.", flag_values=values)
  flags.DEFINE_string('out', None, 'Folder to write, which must not exist.', flag_values=values)
  flags.DEFINE_enum(
    'dtype', None, sorted(folders.DTYPES.values()), 'Of the result; that of the first model.', flag_values=values
  )
  flags.DEFINE_string('assets_from', None, 'Folder of the tokenizer; that of the first model.', flag_values=values)
  flags.DEFINE_bool(
    'allow_different_tokenizers', False, 'Merge models whose tokenizer files differ.', flag_values=values
  )
  flags.mark_flags_as_required(['method', 'models', 'out'], flag_values=values)


def run(given: flags.FlagValues) -> None:
  """Does what the flags say.

  Raises:
    ValueError: for flags or folders that are unfit.
  """
  console = rich_console.Console(stderr=True)
  with rich_progress.Progress(console=console, disable=not console.is_terminal) as progress:
    task = progress.add_task('merging', total=1.0)
    merge(
      given.out,
      parse_method(given.method),
      given.models,
      given.base,
      weights=given.weights,
      dtype=given.dtype,
      assets_from=given.assets_from,
      allow_different_tokenizers=given.allow_different_tokenizers,
      advance=lambda share: progress.advance(task, share),
    )
  print(f'wrote {given.out}')


def attempt(given: flags.FlagValues) -> int:
  """Runs, tells what went wrong, and returns the exit code."""
  try:
    run(given)
  except (ValueError, OSError) as error:
    logging.debug('%s', traceback.format_exc())
    print(f'error: {error}\n(--verbosity=1 shows where)', file=sys.stderr)
    return 1
  return 0


def main(argv: Sequence[str]) -> None:
  if argv[1:]:
    raise app.UsageError(f'what is {argv[1]!r}? Folders are given by --models, separated by commas')
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)
  sys.exit(attempt(flags.FLAGS))


def start() -> None:
  """The program; flags are defined here and not on import, because they are global."""
  sys.modules['__main__'].__doc__ = __doc__
  define_flags()
  app.run(main)
