"""Reads and writes models as Hugging Face folders: config.json, *.safetensors and tokenizer files.

Weights are read and written only as safetensors, never as pickles.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import os
import pathlib
import types
from typing import Any, NamedTuple

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from alignjax.models import (
  classifiers,
  comparison,
  declaration,
  families,
  folders,
  manifest,
  pieces,
  slices,
  storing,
  tied_heads,
  transformer,
  weight_files,
)
from alignjax.types import Head, Params

FLOAT32 = 'float32'
SCORE = 'score/kernel'
TOKEN_IDS = ('bos_token_id', 'eos_token_id', 'pad_token_id')  # entries of config.json that other tools need to generate


def load_config(folder: str | os.PathLike[str], **overrides: Any) -> transformer.TransformerConfig:
  """Reads config.json.

  Args:
    folder: a Hugging Face folder, of a language model or of a reward model.
    **overrides: fields of `TransformerConfig` that override the file, such as `compute_dtype='bfloat16'`. A reward
      model is only read with `output='score'` or 'both', so that nothing takes it for a language model by mistake.

  Raises:
    ValueError: the file is missing or malformed, an entry or override is unknown or unsupported, the folder holds a
      reward model and `output` is not given, or a file other than the weights differs from the manifest.
  """
  path = pathlib.Path(folder) / folders.CONFIG
  known = {field.name for field in dataclasses.fields(transformer.TransformerConfig)}
  if unknown := sorted(set(overrides) - known):
    raise ValueError(f'unknown fields of TransformerConfig: {", ".join(unknown)}; known: {", ".join(sorted(known))}')
  manifest.check_settings(folder)
  if not path.exists() and (path.parent / 'adapter_config.json').exists():
    raise ValueError(
      f'{path}: is missing, because the folder holds an adapter: give its base as the model, and this folder as '
      '--adapter_from (train) or --adapter (sample, merge)'
    )
  entries = folders.read_json(path)
  with folders.naming(path):
    family = families.by_type(entries.get('model_type'))
    parsed = family.parse(entries)
    config = transformer.TransformerConfig(**(parsed | {'output': 'logits'}))
  config = dataclasses.replace(config, **overrides)  # an invalid override is no fault of the file
  with folders.naming(path):
    classifiers.check_use(config.model_type, stored='output' in parsed, wanted=config.scored)
  return config


class Loading(NamedTuple):
  """How leaves are loaded.

  Attributes:
    dtype: the dtype of the leaves; None for the one of the file, and float32 where the layers of a leaf differ.
    convert: applied to each leaf and its path once it is placed, for example to quantise it.
    together: calls a function on every process. If it fails on one of them, all must raise.
    score: draws the score kernel, [D, 1] float32, if the folder holds a language model; None: the folder must have one.
  """

  dtype: str | None = FLOAT32
  convert: Callable[[str, jax.Array], Any] = lambda _, leaf: leaf
  together: Callable[[Callable[[], Any]], Any] = lambda call: call()
  score: Callable[[], jax.Array] | None = None


IN_FLOAT32 = Loading()


def load_params(
  folder: str | os.PathLike[str],
  config: transformer.TransformerConfig,
  shardings: Any = None,
  loading: Loading = IN_FLOAT32,
) -> Params:
  """Reads the weights, leaf by leaf.

  Each process reads only what its devices need, and holds this part of one leaf in host memory, in addition to the
  leaves that are already placed. If a folder has a manifest and the shardings span several processes, they divide the
  verification of its files among them.

  Args:
    folder: a Hugging Face folder, with weights in one file or in several with an index.
    config: the configuration of the model; it determines the expected leaves and shapes.
    shardings: a tree like the parameters, with the sharding of each leaf. None places all on the default device.
    loading: the dtype of the leaves, and what to do with each.

  Returns:
    A nested dict of arrays, or of what `loading.convert` returns.

  Raises:
    ValueError: a file is missing or malformed, or a tensor is missing, unexpected, of the wrong shape, not finite, or
      not float32, float16 or bfloat16; the message names the tensor and the file.
  """
  with contextlib.ExitStack() as stack:
    targets = _targets(config, shardings)
    stored = loading.together(lambda: _open_leaves(pathlib.Path(folder), config, stack, _share(targets)))
    placed = [_load_or_draw(leaf, stored, target, loading) for leaf, target in targets.items()]
    return jax.tree.unflatten(parameter_shapes(config)[1], placed)


def deferred_params(
  folder: str | os.PathLike[str],
  config: transformer.TransformerConfig,
  stack: contextlib.ExitStack,
  shardings: Any = None,
  loading: Loading = IN_FLOAT32,
) -> Params:
  """The leaves of `load_params`, each to be read when it is needed, until `stack` closes. Args, Raises: see there."""
  targets = _targets(config, shardings)
  stored = loading.together(lambda: _open_leaves(pathlib.Path(folder), config, stack, _share(targets)))
  shapes = parameter_shapes(config)[0]

  def defer(leaf: str, target: jax.sharding.Sharding | None) -> pieces.Deferred:
    dtype = loading.dtype or (stored[leaf].dtype if leaf in stored else FLOAT32)
    return pieces.Deferred(shapes[leaf], np.dtype(dtype), lambda: _load_or_draw(leaf, stored, target, loading))

  deferred = [defer(leaf, target) for leaf, target in targets.items()]
  return jax.tree.unflatten(parameter_shapes(config)[1], deferred)


def stored_dtypes(folder: str | os.PathLike[str]) -> set[str]:
  """The dtypes in which the weights of a folder are stored: 'float32', 'bfloat16' or 'float16'."""
  with contextlib.ExitStack() as stack:
    family = family_of(pathlib.Path(folder))
    tensors = folders.open_tensors(pathlib.Path(folder), stack, family.ignored_tensors, verify=lambda folder: None)
    return {folders.DTYPES[tensor.dtype] for tensor in family.prefixed(tensors).values()}


def load_head(
  folder: str | os.PathLike[str],
  config: transformer.TransformerConfig,
  shardings: Any = None,
  loading: Loading = IN_FLOAT32,
) -> Head:
  """Reads only the head of a model, which maps final hidden states to logits.

  Args and Raises: see `load_params`.
  """
  with contextlib.ExitStack() as stack:
    targets, config = _targets(config, shardings), dataclasses.replace(config, output='logits')
    stored = loading.together(lambda: _open_leaves(pathlib.Path(folder), config, stack, _share(targets)))
    shapes, treedef = parameter_shapes(config)
    model = transformer.build(config)
    of_head = 'embed/embedding' if config.tied_embeddings else 'unembed/'
    used = {leaf: _load(stored[leaf], target, loading) for leaf, target in targets.items() if leaf.startswith(of_head)}

    def head(used: dict[str, jax.Array]) -> Head:
      unused = {leaf: jax.ShapeDtypeStruct(shape, np.float32) for leaf, shape in shapes.items()}
      return model.head(jax.tree.unflatten(treedef, [used.get(leaf, unused[leaf]) for leaf in shapes]))

    return jax.jit(head)(used)


def delta_from(
  model: str | os.PathLike[str],
  base: str | os.PathLike[str],
  config: transformer.TransformerConfig,
  shardings: Any = None,
  dtype: str = 'bfloat16',
  together: Callable[[Callable[[], Any]], Any] = lambda call: call(),
) -> Params:
  """Reads the reference delta of online merging, tau = theta_model - theta_base, leaf by leaf.

  Subtracts in float32. Each process reads what its devices need, and holds this part of one leaf of each model in host
  memory, in addition to the leaves that are already placed.

  Args:
    model: the Hugging Face folder of the fine-tuned model.
    base: the Hugging Face folder of the model that it was fine-tuned from.
    config: the configuration of the model.
    shardings: a tree like the parameters, with the sharding of each leaf. None places all on the default device.
    dtype: the dtype of tau, 'bfloat16' or 'float32'.
    together: see `Loading`.

  Returns:
    tau, a tree like the parameters.

  Raises:
    ValueError: either folder is invalid (see `load_params`), the configurations differ, the models have the same
      weights, or `dtype` is unknown.
  """
  if dtype not in ('bfloat16', 'float32'):
    raise ValueError(f'dtype={dtype!r}: must be bfloat16 or float32')
  model, base = pathlib.Path(model), pathlib.Path(base)
  for entry, (of_model, of_base) in comparison.differences(config, load_config(base)).items():
    raise ValueError(
      f'{base / folders.CONFIG}: {entry} is {of_base!r}, and in {model} it is {of_model!r}: choose the model that '
      f'{model} was fine-tuned from'
    )
  changed = False
  with contextlib.ExitStack() as stack:
    targets = _targets(config, shardings)

    def opened() -> list[dict[str, slices.Stored]]:
      return [_open_leaves(folder, config, stack, _share(targets)) for folder in (model, base)]

    def difference(leaf: str, indices: Sequence[slices.Index]) -> list[np.ndarray]:
      nonlocal changed
      parts, of_base = (stored[leaf].read(indices, FLOAT32) for stored in (of_model, of_base_model))
      for part, subtracted in zip(parts, of_base, strict=True):
        part -= subtracted
        changed = changed or bool(part.any())
      return [part.astype(dtype) for part in parts]

    of_model, of_base_model = together(opened)
    placed = []
    for leaf, target in targets.items():
      read = functools.partial(difference, leaf)
      placed.append(together(functools.partial(slices.place, of_model[leaf], target, read)))
    delta = jax.tree.unflatten(parameter_shapes(config)[1], placed)
  if not all(target is None or target.is_fully_addressable for target in targets.values()):
    changed = multihost_utils.process_allgather(np.array(changed)).any()  # each process has seen its part
  if not changed:
    raise ValueError(f'{base}: has the same weights as {model}, so their difference is 0 everywhere')
  return delta


def save(
  folder: str | os.PathLike[str],
  config: transformer.TransformerConfig,
  params: Params,
  assets_from: str | os.PathLike[str] | None = None,
  dtype: str = 'float32',
  about: folders.About = folders.UNTOLD,
) -> None:
  """Writes a folder that `load_params` and other tools for the Hugging Face layout can read.

  The folder appears complete or not at all, and replaces an earlier model in the same place. The weights leave the
  devices and are written in pieces of at most `pieces.PIECE` bytes. In a multi-process run, all processes must call
  this function; process 0 writes.

  Args:
    folder: the folder to write. If it exists, it must hold the files of a model and nothing else.
    config: the configuration of the model.
    params: the parameters, with any sharding. Adapted and quantised kernels are merged layer by layer. Deferred
      leaves are loaded when they are written, and then freed.
    assets_from: a Hugging Face folder to copy the tokenizer, chat template and generation settings from.
    dtype: the dtype of the stored weights: 'float32', 'bfloat16' or 'float16'.
    about: the run and the step of the parameters, stored in the manifest, and the model card.

  Raises:
    ValueError: the parameters do not match the configuration, a value is not finite in `dtype`, or a folder is invalid.
  """
  if dtype not in folders.DTYPES.values():
    raise ValueError(f'dtype={dtype!r}: must be one of {", ".join(folders.DTYPES.values())}')
  family = families.of(config)
  leaves = storing.checked(parameter_shapes(config)[0], params)
  entries = rendered(config, assets_from) | {'torch_dtype': dtype}
  blocks = storing.blocks(family, config, leaves)
  if jax.process_index() == 0:
    with folders.replacing(folder, about=about) as partial:
      folders.write_json(partial / folders.CONFIG, entries)
      planned = storing.planned(family, parameter_shapes(config)[0], dtype)
      with weight_files.writing(weight_files.divide(partial, planned)) as writer:
        for block in blocks:
          writer.write(*block)
      if assets_from is not None:
        folders.copy_assets(pathlib.Path(assets_from), partial)
  else:
    for _ in blocks:  # all processes must take part in gathering sharded leaves
      pass
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('alignjax.models.checkpoint_io.save')


def rendered(config: transformer.TransformerConfig, assets_from: str | os.PathLike[str] | None) -> dict[str, Any]:
  """The contents of config.json for `config`, with the ids of special tokens that a folder has."""
  entries = families.of(config).render(config) | _token_ids(assets_from)
  if config.scored:
    entries['pad_token_id'] = classifiers.pad_token_id(entries, assets_from)
  return entries


def family_of(folder: pathlib.Path) -> declaration.Family:
  """The family of a folder, which names its tensors. A larger model with a model of a family in it has its own.

  Raises:
    ValueError: config.json is missing or malformed, or the family is not declared.
  """
  entries = folders.read_json(folder / folders.CONFIG)
  with folders.naming(folder / folders.CONFIG):
    return families.by_type(entries.get('model_type'))


@functools.lru_cache(maxsize=8)
def parameter_shapes(config: transformer.TransformerConfig) -> tuple[Mapping[str, tuple[int, ...]], Any]:
  """The shape of every parameter by path ('layers/mlp/up/kernel'), in tree order, and the structure of the tree."""
  tree = jax.eval_shape(transformer.build(config).init, jax.random.key(0))
  paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
  shapes = {jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape for path, leaf in paths}
  return types.MappingProxyType(shapes), treedef


def _open_leaves(
  folder: pathlib.Path,
  config: transformer.TransformerConfig,
  stack: contextlib.ExitStack,
  share: tuple[int, int],
) -> dict[str, slices.Stored]:
  """Checks the tensors of a folder, and returns where its leaves are stored, but not a score kernel that it lacks.

  Args:
    folder: the folder of the model.
    config: its configuration.
    stack: the exit stack that keeps the files open.
    share: which part of the values this process verifies, and the number of parts.
  """
  family = family_of(folder)
  verify = functools.partial(manifest.check_weights, part=share[0], parts=share[1])
  opened = folders.open_tensors(folder, stack, family.ignored_tensors, verify)
  tensors = family.prefixed(opened)
  if family.dropped and jax.process_index() == 0:
    count = sum(name.startswith(family.dropped) for name in opened)
    of = ' and '.join(prefix.rstrip('.') for prefix in family.dropped[:2])
    logging.warning('%s: only its text model is read; %d tensors of %s are left out', folder, count, of)
  index = folder / folders.INDEX
  shapes, _ = parameter_shapes(config)
  with folders.naming(index if index.exists() else folder / folders.WEIGHTS):
    if config.output == 'score':
      tensors = {name: held for name, held in tensors.items() if name != family.tensor('unembed/kernel').name}
    elif config.tied_embeddings:
      tensors = tied_heads.without(family, tensors, share)
    if config.scored and classifiers.SCORE not in tensors:
      shapes = {leaf: shape for leaf, shape in shapes.items() if leaf != SCORE}
    family.check(shapes, {name: tensor.shape for name, tensor in tensors.items()})
  stored = {}
  for leaf, shape in shapes.items():
    tensor = family.tensor(leaf)
    sizes, held = [shapes[part][-1] for part in tensor.leaves], [tensors[name] for name in tensor.names(shape)]
    stored[leaf] = slices.Stored(leaf, shape, tensor, sizes, tensor.group_count(config), held)
  return stored


def _targets(config: transformer.TransformerConfig, shardings: Any) -> dict[str, jax.sharding.Sharding | None]:
  """The sharding of each leaf, by path."""
  shapes, treedef = parameter_shapes(config)
  targets = [None] * len(shapes) if shardings is None else treedef.flatten_up_to(shardings)
  return dict(zip(shapes, targets, strict=True))


def _share(targets: Mapping[str, jax.sharding.Sharding | None]) -> tuple[int, int]:
  """The part of the weights that this process verifies: all, or its share if all processes load."""
  if all(target is None or target.is_fully_addressable for target in targets.values()):
    return 0, 1
  return jax.process_index(), jax.process_count()


def _load_or_draw(
  leaf: str, stored: Mapping[str, slices.Stored], target: jax.sharding.Sharding | None, loading: Loading
) -> Any:
  """Reads a leaf, or draws the score kernel if the folder has none."""
  if leaf in stored:
    return _load(stored[leaf], target, loading)
  if loading.score is None:
    raise ValueError(f'tensor {classifiers.SCORE} is missing: the folder holds a language model, not a reward model')
  return loading.convert(leaf, loading.score() if target is None else jax.jit(loading.score, out_shardings=target)())


def _load(stored: slices.Stored, target: jax.sharding.Sharding | None, loading: Loading) -> Any:
  """Reads, places and converts a leaf."""
  dtype = loading.dtype or stored.dtype
  leaf = loading.together(lambda: slices.place(stored, target, lambda indices: stored.read(indices, dtype)))
  return loading.convert(stored.leaf, leaf)


def on_host(value: Any) -> np.ndarray:
  """The full array in host memory. If it is sharded over processes, all of them must call this function."""
  addressable = not isinstance(value, jax.Array) or value.is_fully_addressable
  return np.asarray(value) if addressable else multihost_utils.process_allgather(value, tiled=True)


def _token_ids(folder: str | os.PathLike[str] | None) -> dict[str, Any]:
  """The entries of config.json with the ids of special tokens."""
  if folder is None:
    return {}
  entries = family_of(pathlib.Path(folder)).rewrite(folders.read_json(pathlib.Path(folder) / folders.CONFIG))
  return {key: entries[key] for key in TOKEN_IDS if key in entries}
