"""The configuration of a training run, in parts by concern: every field, and what changing it does to a resumed run.

`Config` has the fields of all parts, because it is one: `Config(...)` is accepted wherever a part is asked for. A
function takes the part that it needs, and never `Config`, unless it is about the run as a whole.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import ml_collections

from alignjax.run import fields, user_code

field = fields.field

# What a change of a field does to a run that is resumed: `identity` refuses it (another training would silently go on
# under the old name), `warns` logs it (legitimate, but the curve is not that of a single run), `free` does not touch
# the result. Paths are free because the contents of files are compared, not where they are.
IDENTITY, WARNS, FREE = 'identity', 'warns', 'free'


def _field(default: Any, on_resume: str, text: str, **options: Any) -> Any:
  return field(default, text, on_resume=on_resume, **options)


@dataclasses.dataclass(frozen=True)
class ModelSettings:
  """Model."""

  model: str = _field('', FREE, 'Folder of the model to align, in Hugging Face layout.')
  reference: str = _field('', FREE, 'Folder of the reference model; empty: the model before training.')
  reference_cache: str = _field(
    '', FREE, 'Folder for cached outputs of the reference, filled where they are missing; empty: no cache.'
  )
  adapter: str = _field('', IDENTITY, 'Expression of an adapter to train instead, such as lora(rank=16, alpha=32).')
  base_quantization: str = _field(
    'none', IDENTITY, 'Storage of the frozen model under an adapter.', choices=('none', 'int8', 'nf4')
  )
  base_model: str = _field('', FREE, 'Folder of the model that `model` was fine-tuned from, for online merging.')
  delta_dtype: str = _field('bfloat16', WARNS, 'Type of model - base_model.', choices=('bfloat16', 'float32'))
  delta_memory: str = _field('device', FREE, 'Memory that holds model - base_model.', choices=('device', 'host'))


@dataclasses.dataclass(frozen=True)
class DataSettings:
  """Data."""

  data: tuple[str, ...] = _field(
    (), FREE, 'Training data, [form:]location: pairs.jsonl, hh:train.jsonl.gz; can be repeated.'
  )
  eval_data: tuple[str, ...] = _field((), WARNS, 'Held-out data in the same notation; empty: no evaluation.')
  ignore_fields: tuple[str, ...] = _field(
    (), WARNS, 'Fields of the data files to ignore; any other unknown field is an error.'
  )
  on_error: str = _field(
    'raise', WARNS, 'Stop at the first malformed row, or skip and count it.', choices=('raise', 'skip')
  )
  max_prompt: int = _field(512, IDENTITY, 'Largest prompt in tokens; longer ones are cut on the left.')
  max_response: int = _field(512, IDENTITY, 'Largest response in tokens; examples with a longer one are dropped.')
  batch_size: int = _field(32, IDENTITY, 'Prompts in an update, over all devices and processes.', at_least=1)
  buckets: tuple[tuple[int, int], ...] = _field(
    (), IDENTITY, 'Batch shapes (prompt, response) in tokens; empty: chosen from the data.'
  )
  seed: int = _field(
    0, IDENTITY, 'Seed of the order of the data; an optimizer that draws has its own seed.', at_least=0
  )


@dataclasses.dataclass(frozen=True)
class ObjectiveSettings(user_code.UserCode):
  """Objective."""

  objective: str = _field('dpo(beta=0.1)', IDENTITY, 'Expression of objectives, such as simpo(beta=2.0) + 0.1 * sft().')


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
  """Optimization."""

  optimizer: str = _field(
    'adamw(1e-6)', WARNS, 'Expression of an optimizer, such as chain(sgd(0.1), weight_decay(0.01)).'
  )
  schedule: str = _field('linear', WARNS, 'Learning rate after the warm-up.', choices=('constant', 'cosine', 'linear'))
  warmup: float = _field(0.1, WARNS, 'Fraction of the steps over which the learning rate rises from 0, in [0, 1).')
  gradient_clip: float = _field(1.0, WARNS, 'Largest global norm of a gradient; 0: no clipping.', at_least=0)
  steps: int = _field(0, WARNS, 'Updates in total; 0: as many as `epochs` takes.', at_least=0)
  epochs: int = _field(0, WARNS, 'Passes over the data; 0: one, unless `steps` is set.', at_least=0)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """How the devices are arranged. One size may be -1 and takes what is left."""

  data: int = _field(1, WARNS, 'Copies of the model, which share the prompts of a batch.')
  fsdp: int = _field(-1, WARNS, 'Shards of parameters and optimizer state, which share the prompts too; -1: the rest.')
  tensor: int = _field(1, WARNS, 'Shards of heads, feed-forward width and vocabulary.')


@dataclasses.dataclass(frozen=True)
class StepSettings:
  """Devices and memory."""

  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  microbatches: int = _field(
    1, WARNS, 'Parts of a batch computed in turn to save memory; the result is the same.', at_least=1
  )
  chunk: int = _field(1024, WARNS, 'Response tokens whose logits exist at once on a device.', at_least=1)
  compute_dtype: str = _field(
    'float32', WARNS, 'Type of activations; parameters are float32.', choices=('float32', 'bfloat16')
  )
  remat: str = _field('dots', WARNS, 'What a layer keeps for its backward pass.', choices=('none', 'dots', 'full'))
  scan_layers: bool = _field(True, WARNS, 'Compile one layer for all; false: slow to compile, faster on a CPU.')
  attention: str = _field(
    'xla', WARNS, 'Implementation of attention; cudnn needs bfloat16 and an NVIDIA GPU.', choices=('xla', 'cudnn')
  )


@dataclasses.dataclass(frozen=True)
class OutputSettings:
  """Checks and output."""

  workdir: str = _field('', FREE, 'Folder for checkpoints, metrics and the aligned model.')
  doctor: str = _field(
    'stop',
    FREE,
    'Before the first update, errors found stop the run, or are only reported.',
    choices=('stop', 'warn', 'off'),
  )
  log_every: int = _field(10, FREE, 'Steps between lines on the console; the files have every step.', at_least=1)
  eval_every: int = _field(100, WARNS, 'Steps between evaluations; 0: only before and after training.', at_least=0)
  save_every: int = _field(500, FREE, 'Steps between checkpoints; 0: only at the end.', at_least=0)
  keep: int = _field(2, FREE, 'Number of checkpoints to keep, the newest.', at_least=1)


# The fields of the last base come first.
@dataclasses.dataclass(frozen=True)
class InputSettings(StepSettings, DataSettings, ModelSettings):
  """What a run reads, and how it computes: all that is needed for models and batches."""


@dataclasses.dataclass(frozen=True)
class Config(OutputSettings, OptimizerSettings, ObjectiveSettings, InputSettings):
  """A training run.

  Raises:
    ValueError: naming the field, its value and what it may be.
  """

  def __post_init__(self):
    fields.check(self, 'config.')
    if not 0 <= self.warmup < 1:
      raise ValueError(f'config.warmup = {self.warmup!r}: must be in [0, 1)')
    if self.steps and self.epochs:
      raise ValueError(f'config.epochs = {self.epochs!r}: must be 0 where steps={self.steps} is given')


def config_dict(**overrides: Any) -> ml_collections.ConfigDict:
  """A configuration as config files return it; flags change it, `--config.batch_size=16`, `--config.mesh.tensor=2`."""
  return ml_collections.ConfigDict(dataclasses.asdict(Config(**overrides)))


def from_dict(values: Mapping[str, Any]) -> Config:
  """Reads a configuration from a ConfigDict, or from the JSON of an earlier run.

  Raises:
    ValueError: a field is unknown, with the nearest known one, or a value is invalid.
  """
  return fields.build(Config, values, 'config.')


def flat(config: Config) -> dict[str, Any]:
  """The values by field name, the mesh's as `mesh.data` and so on."""
  return fields.flat(config)


def on_resume() -> dict[str, str]:
  """What a change of each field does to a resumed run, by the names that `flat` uses."""
  return {leaf.name: leaf.field.metadata['on_resume'] for leaf in fields.leaves(Config)}


def require(settings: Any, *names: str) -> None:
  """Raises a ValueError if one of these settings is empty."""
  for name in names:
    if not getattr(settings, name):
      raise ValueError(f'config.{name} is missing: give --{name}=...')
