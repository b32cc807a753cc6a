"""The configuration of a training run: every field, what it means, and what changing it does to a run that resumes."""

from collections.abc import Mapping
import dataclasses
import difflib
from typing import Any

import ml_collections

# What a change of a field does to a run that is resumed: `identity` refuses it (another training would silently go on
# under the old name), `warns` says so in the log (legitimate, but the curve is not that of a single run), `free` does
# not touch the result. Paths are free because what stands in the files is compared, not where they are.
IDENTITY, WARNS, FREE = 'identity', 'warns', 'free'


def _field(default: Any, on_resume: str, text: str, choices: tuple[str, ...] = ()) -> Any:
  return dataclasses.field(default=default, metadata={'on_resume': on_resume, 'text': text, 'choices': choices})


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """How the devices are arranged. One size may be -1 and takes what is left."""

  data: int = _field(1, WARNS, 'copies of the model, which share the prompts of a batch')
  fsdp: int = _field(-1, WARNS, 'parts of parameters and optimizer state; shares the prompts of a batch too')
  tensor: int = _field(1, WARNS, 'parts of heads, feed-forward width and vocabulary')


@dataclasses.dataclass(frozen=True)
class Config:
  """A training run.

  Raises:
    ValueError: naming the field, its value and what it may be.
  """

  model: str = _field('', FREE, 'folder of the model to align, in Hugging Face layout')
  reference: str = _field('', FREE, 'folder of the reference model; empty: the model before training')
  reference_cache: str = _field(
    '', FREE, 'folder of caches of what the reference says, made where missing; empty: none'
  )
  base_model: str = _field('', FREE, 'folder of the model from which `model` was fine-tuned, for online merging')
  data: tuple[str, ...] = _field((), FREE, 'what to train on, [form:]location: pairs.jsonl, hh:train.jsonl.gz')
  eval_data: tuple[str, ...] = _field((), WARNS, 'held-out data, written likewise; empty: no evaluation')
  ignore_fields: tuple[str, ...] = _field((), WARNS, 'fields of the data files that are not used; others must be known')
  on_error: str = _field('raise', WARNS, 'what a malformed row does: stops, or is counted', ('raise', 'skip'))
  objective: str = _field('dpo(beta=0.1)', IDENTITY, 'expression of objectives, such as simpo(beta=2.0) + 0.1 * sft()')
  seed: int = _field(0, IDENTITY, 'of the order of the data; an optimizer that draws has one of its own')
  steps: int = _field(0, WARNS, 'updates in all; 0: as many as `epochs` takes')
  epochs: int = _field(0, WARNS, 'passes over the data; 0: one, unless `steps` is set')
  batch_size: int = _field(8, IDENTITY, 'prompts in an update, over all devices and processes')
  microbatches: int = _field(1, WARNS, 'parts of a batch worked on in turn, to save memory; the result is the same')
  chunk: int = _field(1024, WARNS, 'response tokens whose logits exist at once on a device')
  max_prompt: int = _field(512, IDENTITY, 'tokens; longer prompts are cut on the left')
  max_response: int = _field(512, IDENTITY, 'tokens; pairs with a longer response are dropped and counted')
  buckets: tuple[tuple[int, int], ...] = _field((), IDENTITY, 'shapes (prompt, response) of batches; empty: chosen')
  optimizer: str = _field(
    'adamw(1e-6)', WARNS, 'expression of experiments/recipes.py, such as chain(sgd(0.1), weight_decay(0.01))'
  )
  adapter: str = _field('', IDENTITY, 'expression of an adapter to train instead, such as lora(rank=16, alpha=32)')
  base_quantization: str = _field('none', IDENTITY, 'how the model under an adapter is kept', ('none', 'int8', 'nf4'))
  schedule: str = _field('linear', WARNS, 'of the learning rate after the warm-up', ('constant', 'cosine', 'linear'))
  warmup: float = _field(0.0, WARNS, 'part of the steps over which the learning rate rises from 0')
  gradient_clip: float = _field(1.0, WARNS, 'largest global norm of a gradient; 0: not clipped')
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  delta_dtype: str = _field('bfloat16', WARNS, 'of the difference model - base_model', ('bfloat16', 'float32'))
  delta_memory: str = _field('device', FREE, 'where this difference lives between steps', ('device', 'host'))
  compute_dtype: str = _field('float32', WARNS, 'of activations; parameters are float32', ('float32', 'bfloat16'))
  remat: str = _field('dots', WARNS, 'what a layer keeps for its backward pass', ('none', 'dots', 'full'))
  scan_layers: bool = _field(True, WARNS, 'one compiled layer for all; False unrolls: slow to compile, faster on a CPU')
  attention: str = _field('xla', WARNS, 'implementation; cudnn needs bfloat16 and an NVIDIA GPU', ('xla', 'cudnn'))
  doctor: str = _field('stop', FREE, 'before the first update, errors found stop the run', ('stop', 'warn', 'off'))
  log_every: int = _field(10, FREE, 'steps between lines on the console; the files have every step')
  eval_every: int = _field(100, WARNS, 'steps between evaluations; 0: only before and after training')
  save_every: int = _field(500, FREE, 'steps between checkpoints; 0: only at the end')
  keep: int = _field(2, FREE, 'checkpoints that are kept, the newest')
  workdir: str = _field('', FREE, 'folder for checkpoints, metrics and the aligned model')

  def __post_init__(self):
    for name in ('steps', 'epochs', 'gradient_clip', 'eval_every', 'save_every', 'seed'):
      _require(getattr(self, name) >= 0, name, getattr(self, name), 'at least 0')
    for name in ('batch_size', 'microbatches', 'chunk', 'log_every', 'keep'):
      _require(getattr(self, name) >= 1, name, getattr(self, name), 'at least 1')
    _require(0 <= self.warmup < 1, 'warmup', self.warmup, 'in [0, 1)')
    _require(not (self.steps and self.epochs), 'epochs', self.epochs, f'0 where steps={self.steps} is given')
    for field in dataclasses.fields(self):
      choices = field.metadata.get('choices')
      if choices:
        _require(getattr(self, field.name) in choices, field.name, getattr(self, field.name), ' or '.join(choices))


def _require(condition: bool, name: str, value: Any, wanted: str) -> None:
  if not condition:
    raise ValueError(f'config.{name} = {value!r}: must be {wanted}')


def config_dict(**overrides: Any) -> ml_collections.ConfigDict:
  """A configuration as config files give it and flags change it: `--config.batch_size=16`, `--config.mesh.tensor=2`."""
  return ml_collections.ConfigDict(dataclasses.asdict(Config(**overrides)))


def from_dict(values: Mapping[str, Any]) -> Config:
  """Reads a configuration from a ConfigDict, or from the JSON of an earlier run.

  Raises:
    ValueError: for an unknown field, with the nearest known one, or for a value that a field cannot have.
  """
  return _build(Config, values, '')


def _build(kind: type, values: Mapping[str, Any], prefix: str) -> Any:
  fields = {field.name: field for field in dataclasses.fields(kind)}
  arguments = {}
  for name, value in values.items():
    if name not in fields:
      close = difflib.get_close_matches(name, fields, n=1)
      hint = f'; did you mean {prefix}{close[0]}?' if close else '.'
      raise ValueError(f'config.{prefix}{name} is no field of a training run{hint} Known: {", ".join(fields)}')
    arguments[name] = _convert(fields[name].type, value, prefix + name)
  return kind(**arguments)


def _convert(kind: Any, value: Any, name: str) -> Any:
  """`value` as the type of its field: an int is a float too, a list a tuple, and one string a tuple of one."""
  if kind is MeshConfig:
    return _build(MeshConfig, value, name + '.')
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if kind == tuple[str, ...]:
    value = (value,) if isinstance(value, str) else value
    fits = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    return _fitting(fits, lambda: tuple(value), value, name, 'a list of strings')
  if kind == tuple[tuple[int, int], ...]:
    fits = isinstance(value, list | tuple) and all(
      isinstance(item, list | tuple) and len(item) == 2 and all(type(size) is int for size in item) for item in value
    )
    return _fitting(fits, lambda: tuple(map(tuple, value)), value, name, 'a list of pairs (prompt, response) of tokens')
  return _fitting(type(value) is kind, lambda: value, value, name, f'of type {kind.__name__}')


def _fitting(fits: bool, convert: Any, value: Any, name: str, wanted: str) -> Any:
  _require(fits, name, value, wanted)
  return convert()


def flat(config: Config) -> dict[str, Any]:
  """The values by field name, the mesh's as `mesh.data` and so on."""
  values = dataclasses.asdict(config)
  return {k: v for k, v in values.items() if k != 'mesh'} | {f'mesh.{k}': v for k, v in values['mesh'].items()}


def on_resume() -> dict[str, str]:
  """What a change of each field does to a resumed run, by the names that `flat` uses."""
  fields = {field.name: field for field in dataclasses.fields(Config)}
  mesh = {f'mesh.{field.name}': field for field in dataclasses.fields(MeshConfig)}
  return {name: field.metadata['on_resume'] for name, field in (fields | mesh).items() if name != 'mesh'}


def describe_fields() -> str:
  """One line a field, for --help."""
  lines = []
  for kind, prefix in ((Config, ''), (MeshConfig, 'mesh.')):
    for field in dataclasses.fields(kind):
      if field.name != 'mesh':
        choices = f' ({", ".join(field.metadata["choices"])})' if field.metadata['choices'] else ''
        lines.append(f'  --config.{prefix + field.name:<14} {field.metadata["text"]}{choices} [{field.default!r}]')
  return '\n'.join(lines)
