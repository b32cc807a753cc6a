"""The configuration of a training run: groups of fields, and how a resumed run treats a change of each.

`Config` inherits all groups, so a `Config` can be passed wherever a group is expected. Functions take the group that
they need, and `Config` only if they deal with the whole run.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import ml_collections

from alignjax import paths
from alignjax.data.tokens import variables
from alignjax.optim import schedules
from alignjax.run import arithmetic, fields, profiling, rollout_settings, user_code

field = fields.field

# How a resumed run treats a changed field. `identity`: an error, because the run would silently become another one.
# `warns`: a warning, because the change is legitimate but affects the curves. `free`: no effect on the result. Paths
# are free because the contents of files are compared, not their locations.
IDENTITY, WARNS, FREE = 'identity', 'warns', 'free'


def _field(default: Any, on_resume: str, text: str, **options: Any) -> Any:
  return field(default, text, on_resume=on_resume, **options)


@dataclasses.dataclass(frozen=True)
class ModelSettings:
  """Model."""

  model: str = _field(
    '',
    FREE,
    'Model to align, needed by a new run: a folder in Hugging Face format, or a name on the Hub, such as '
    'Qwen/Qwen2.5-0.5B@main.',
    path=paths.READ,
  )
  reference: str = _field(
    '', FREE, 'Reference model: a folder or a name; empty: the model before training.', path=paths.READ
  )
  reference_cache: str = _field(
    '', FREE, 'Folder for cached outputs of the reference, created if missing; empty: no cache.', path=paths.DISK
  )
  adapter: str = _field(
    '', IDENTITY, 'Adapter to train, such as lora(rank=16, alpha=32); empty: train the whole model.'
  )
  adapter_from: str = _field(
    '',
    FREE,
    'Folder of a LoRA adapter in PEFT format to start from: merged into `model`, or trained on if `adapter` is set; '
    'empty: none.',
    path=paths.READ,
  )
  base_quantization: str = _field(
    'none', IDENTITY, 'Storage format of the frozen model under an adapter.', choices=('none', 'int8', 'nf4')
  )
  base_model: str = _field(
    '',
    FREE,
    'Folder of the model that `model` was fine-tuned from, for online merging; empty: no online merging.',
    path=paths.READ,
  )
  delta_dtype: str = _field(
    'bfloat16', WARNS, 'Storage type of the delta, model - base_model.', choices=('bfloat16', 'float32')
  )
  delta_memory: str = _field(
    'device', FREE, 'Memory that holds the delta, model - base_model.', choices=('device', 'host')
  )


@dataclasses.dataclass(frozen=True)
class DataSettings:
  """Data."""

  data: tuple[str, ...] = _field(
    (),
    FREE,
    'Training data, needed by a new run: [form:]location[part], such as pairs.jsonl, hh:train.jsonl.gz[:1000], or a '
    'dataset on the Hub, hh:Anthropic/hh-rlhf/harmless-base:test; can be repeated.',
    path=paths.READ,
  )
  eval_data: tuple[str, ...] = _field(
    (), WARNS, 'Held-out data in the same notation; empty: no evaluation.', path=paths.READ
  )
  ignore_fields: tuple[str, ...] = _field(
    (),
    WARNS,
    'Columns of the data files to ignore, and paths of fields within them, such as prompt[].weight; empty: none.',
  )
  unknown_columns: str = _field(
    'refuse',
    WARNS,
    'Columns that the form does not have: an error, which catches misspelt ones, or counted and left out, which suits '
    'public datasets with metadata.',
    choices=('refuse', 'note'),
  )
  on_error: str = _field(
    'raise', WARNS, 'Stop at the first malformed row, or skip and count malformed rows.', choices=('raise', 'skip')
  )
  token_cache: str = _field(
    '',
    FREE,
    'Folder for tokenised data, shared by runs and created if missing; empty: `tokens` in the work directory, for '
    'files of 1 MiB or more; off: tokenise at every start.',
    path=paths.DISK,
  )
  template_arguments: tuple[str, ...] = _field((), IDENTITY, variables.TEXT)
  max_prompt: int = _field(512, IDENTITY, 'Largest prompt in tokens; longer ones lose their first tokens.', at_least=2)
  max_response: int = _field(
    512, IDENTITY, 'Largest response in tokens; for longer ones see `long_responses`.', at_least=2
  )
  long_responses: str = _field(
    'drop',
    IDENTITY,
    'Drop an example with a longer response, or cut the response, which then has no end token to learn.',
    choices=('drop', 'cut'),
  )
  weighting: str = _field(
    'prompts',
    FREE,  # it changes the weights of examples, and the contents of the data are compared
    'What counts the same: every prompt, or every response token (for data with one response to a prompt), which makes '
    'sft() the mean over all tokens of a batch.',
    choices=('prompts', 'tokens'),
  )
  batch_size: int = _field(
    32, IDENTITY, 'Prompts per update, summed over all devices and processes.', at_least=1, at_most=2**24
  )
  buckets: tuple[tuple[int, int], ...] = _field(
    (), IDENTITY, 'Batch shapes (prompt, response) in tokens; empty: chosen from the data.'
  )
  packing: str = _field(
    'off',
    FREE,  # it changes which prompts a batch has, and the identity of a run holds what decides that
    'Batches of packed rows, each of which holds several whole prompts with their responses, instead of `buckets`: '
    'never, always, or whichever computes fewer positions.',
    choices=('off', 'on', 'auto'),
  )
  seed: int = _field(
    0,
    IDENTITY,
    'Seed of the data order and of new adapters; a random optimizer has its own seed.',
    at_least=0,
    at_most=2**63 - 1,
  )


@dataclasses.dataclass(frozen=True)
class ObjectiveSettings(user_code.UserCode):
  """Objective."""

  objective: str = _field('dpo(beta=0.1)', IDENTITY, 'Objective, such as simpo(beta=2.0, gamma=0.5) + 0.1 * sft().')


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
  """Optimization."""

  optimizer: str = _field('adamw(1e-6)', WARNS, 'Optimizer, such as chain(sgd(0.1), weight_decay(0.01)).')
  schedule: str = _field(
    'linear',
    WARNS,
    'Learning rate after the warm-up: constant, linear or cosine; cosine(to=0.1) ends at a tenth of the peak.',
  )
  warmup: float = _field(
    0.1,
    WARNS,
    'Updates over which the learning rate rises from 0: below 1, a share of the run, such as 0.1; else a number, '
    'such as 100.',
  )
  gradient_clip: float = _field(1.0, WARNS, 'Largest global norm of a gradient; 0: no clipping.', at_least=0)
  steps: int = _field(0, WARNS, 'Total number of updates, including skipped batches; 0: use `epochs`.', at_least=0)
  epochs: int = _field(0, WARNS, 'Passes over the data; 0: one, unless `steps` is set.', at_least=0)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """The device mesh. One size may be -1: it uses the remaining devices."""

  data: int = _field(1, WARNS, 'Number of model replicas; the prompts of a batch are split over them.')
  fsdp: int = _field(
    -1, WARNS, 'Shards of parameters and optimizer state; prompts are split over them too. -1: the rest.'
  )
  tensor: int = _field(1, WARNS, 'Shards of attention heads, feed-forward width and vocabulary.')
  slices: int = _field(
    0, WARNS, 'Number of slices (of TPUs, or processes) that `data` spans; 0: as many as the devices have.', at_least=0
  )
  allow_dcn_fsdp: bool = _field(False, FREE, 'Allow `fsdp` to cross slices, whose network is slow.')


@dataclasses.dataclass(frozen=True)
class StepSettings:
  """Devices and memory."""

  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  microbatches: int = _field(
    1, WARNS, 'Parts of a batch, computed one after another to save memory; the result is the same.', at_least=1
  )
  chunk: int = _field(1024, WARNS, 'Response tokens whose logits exist at once on a device.', at_least=1)
  compute_dtype: str = _field(
    arithmetic.AUTO,
    WARNS,
    'Type of activations; parameters are float32. auto: bfloat16 on accelerators and on CPUs that compute it faster, '
    'decided at the first start.',
    choices=arithmetic.CHOICES,
  )
  remat: str = _field(
    'dots',
    WARNS,
    'Recomputed in the backward pass: nothing, all but matrix products (dots), or everything.',
    choices=('none', 'dots', 'full'),
  )
  scan_layers: bool = _field(
    True, WARNS, 'Compile one layer and scan it; false compiles longer, but runs faster on a CPU.'
  )
  attention: str = _field(
    'xla', WARNS, 'Implementation of attention; cudnn needs bfloat16 and an NVIDIA GPU.', choices=('xla', 'cudnn')
  )


@dataclasses.dataclass(frozen=True)
class WatchConfig:
  """How long a run may make no progress before it counts as hung and ends."""

  step: float = _field(
    120.0,
    FREE,
    'Seconds in one step before the run counts as hung and ends with exit code 134, so that a launcher restarts it; '
    'at least 5 times the median step; 0: no limit.',
    at_least=0,
  )
  compile: float = _field(
    3600.0, FREE, 'The same limit for one compilation, and for each of the first 5 steps.', at_least=0
  )
  save: float = _field(1800.0, FREE, 'The same limit for one checkpoint.', at_least=0)
  restore: float = _field(3600.0, FREE, 'The same limit for reading a checkpoint.', at_least=0)
  evaluation: float = _field(
    1800.0, FREE, 'The same limit for one batch of an evaluation or of the reference cache.', at_least=0
  )
  export: float = _field(3600.0, FREE, 'The same limit for writing the aligned model.', at_least=0)


@dataclasses.dataclass(frozen=True)
class OutputSettings:
  """Checks and output."""

  workdir: str = _field(
    '', FREE, 'Folder for checkpoints, metrics and the aligned model; only `train` needs one.', path=paths.RUN
  )
  trackers: tuple[str, ...] = _field(
    (), FREE, 'Services that draw the metrics in a browser: wandb, trackio; empty: only files and TensorBoard.'
  )
  tracker_project: str = _field('alignjax', FREE, 'Project of the run in the trackers.')
  run_name: str = _field('', FREE, 'Name of the run in the trackers; empty: the name of the work directory.')
  push_to_hub: str = _field(
    '',
    FREE,
    'Repository on the Hugging Face Hub to which the aligned model is uploaded after training, such as me/model; '
    'private if it is new; empty: none.',
  )
  doctor: str = _field(
    'stop',
    FREE,
    'Examine the run before the first update; errors stop it, or are only reported.',
    choices=('stop', 'warn', 'off'),
  )
  nonfinite_limit: int = _field(
    5,
    FREE,
    'Batches in a row with a loss or gradient that is not finite that stop the run. Fewer are skipped and reported: '
    'they change nothing. 1: stop at the first.',
    at_least=1,
  )
  accept_data: str = _field(
    '',
    FREE,
    'Fingerprint of changed training data with which to resume a run on purpose; the error that refuses the data '
    'prints it; empty: refuse changed data.',
  )
  log_every: int = _field(10, FREE, 'Steps between lines on the console; files log every step.', at_least=1)
  eval_every: int = _field(100, WARNS, 'Steps between evaluations; 0: only before and after training.', at_least=0)
  save_every: int = _field(
    500, FREE, 'Steps between checkpoints; 0: only by `save_minutes` and at the end.', at_least=0
  )
  save_minutes: float = _field(
    30.0, FREE, 'Longest time between checkpoints, in minutes; 0: only by `save_every` and at the end.', at_least=0
  )
  keep: int = _field(2, FREE, 'Number of newest checkpoints to keep.', at_least=1)
  profile_steps: str = _field('', FREE, profiling.TEXT)
  watch: WatchConfig = dataclasses.field(default_factory=WatchConfig)


# The fields of the last base come first.
@dataclasses.dataclass(frozen=True)
class InputSettings(StepSettings, DataSettings, ModelSettings):
  """The settings that models and batches need."""


@dataclasses.dataclass(frozen=True)
class Config(OutputSettings, OptimizerSettings, rollout_settings.RolloutSettings, ObjectiveSettings, InputSettings):
  """A training run.

  Raises:
    ValueError: a value is not allowed. The message names the field, its value and what is allowed.
  """

  def __post_init__(self):
    fields.check(self, 'config.')
    try:
      schedules.parse_shape(self.schedule)
    except ValueError as error:
      raise ValueError(f'config.schedule = {self.schedule!r}: {error}') from None
    try:
      schedules.warmup_steps(self.warmup, self.steps)
    except ValueError as error:
      raise ValueError(f'config.{error}') from None
    if fields.naming('config.profile_steps', profiling.parse, self.profile_steps):
      fields.naming('config.profile_steps', lambda workdir: paths.check(workdir, paths.DISK), self.workdir)
    if self.steps and self.epochs:
      raise ValueError(f'config.epochs = {self.epochs!r}: must be 0 if steps={self.steps} is given')


PATHS = frozenset(item.name for item in dataclasses.fields(Config) if item.metadata.get('path'))


def config_dict(**overrides: Any) -> ml_collections.ConfigDict:
  """A configuration for `get_config()` of a config file. Flags override it, such as `--config.mesh.tensor=2`."""
  return ml_collections.ConfigDict(dataclasses.asdict(from_dict(overrides)))


def from_dict(values: Mapping[str, Any]) -> Config:
  """Reads a configuration from a ConfigDict, or from the JSON of an earlier run.

  Raises:
    ValueError: a field is unknown (the message suggests the nearest known one), or a value is invalid.
  """
  return fields.build(Config, values, 'config.')


def saved(values: Mapping[str, Any]) -> Config:
  """Reads the configuration of an earlier run, without its paths: this machine may not have the object stores."""
  return from_dict({name: value for name, value in values.items() if name not in PATHS})


def flat(config: Config) -> dict[str, Any]:
  """The values by field name; those of the mesh as `mesh.data` and so on."""
  return fields.flat(config)


def on_resume() -> dict[str, str]:
  """How a resumed run treats a change of each field, by the names that `flat` uses."""
  return {leaf.name: leaf.field.metadata['on_resume'] for leaf in fields.leaves(Config)}


def require(settings: Any, *names: str) -> None:
  """Raises a ValueError if one of these settings is empty."""
  for name in names:
    if not getattr(settings, name):
      raise ValueError(f'config.{name} is missing: give --{name}=...')
