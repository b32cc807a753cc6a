"""The flags of the programs that take the configuration of a run: train and doctor.

Every setting has a flag, --batch_size=16. A file sets many at once, --config=path.py (or .json, .yaml), and
--config.batch_size=16 or --batch_size=16 overrides one of them.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import difflib
import os
import pathlib
import traceback
import warnings

from absl import flags
import ml_collections
from ml_collections import config_flags

from alignjax import paths
from alignjax.run import config_file, fields, process_flags, settings, user_code

# Flags of other trainers, and what to use instead.
HINTS = {
  'learning_rate': "the learning rate is part of the optimizer: --optimizer='adamw(1e-6)'",
  'lr': "the learning rate is part of the optimizer: --optimizer='adamw(1e-6)'",
  'weight_decay': "weight decay is part of the optimizer: --optimizer='adamw(1e-6, weight_decay=0.01)'",
  'beta': "beta is part of the objective: --objective='dpo(beta=0.1)'",
  'loss_type': "the loss is an expression: --objective='ipo()'",
  'num_train_epochs': 'give --epochs=1',
  'max_steps': 'give --steps=1000',
  'warmup_ratio': 'give --warmup=0.1, a share of the run',
  'warmup_steps': 'give --warmup=100, a number of updates',
  'lr_scheduler_type': 'give --schedule=cosine',
  'max_grad_norm': 'give --gradient_clip=1.0',
  'per_device_train_batch_size': 'give --batch_size=32, the prompts in an update over all devices',
  'gradient_accumulation_steps': 'give --microbatches=4, the parts of a batch',
  'model_name_or_path': 'give --model=FOLDER',
  'ref_model': 'give --reference=FOLDER',
  'dataset_name': 'give --data=FILE',
  'output_dir': 'give --workdir=FOLDER',
  'bf16': 'give --compute_dtype=bfloat16',
}


@dataclasses.dataclass(frozen=True)
class Invocation:
  """The parsed command line: the configuration of the run, and how its processes connect."""

  config: settings.Config = dataclasses.field(default_factory=settings.Config, metadata={'flag': ''})
  processes: process_flags.Processes = dataclasses.field(default_factory=process_flags.Processes, metadata={'flag': ''})


def parse_flags(kind: type[Invocation], argv: Sequence[str], values: flags.FlagValues) -> Invocation:
  """The configuration and the processes that a command line describes.

  Args:
    kind: `Invocation`.
    argv: the command line.
    values: the flag values in which to define the flags.

  Raises:
    ValueError: a setting is unknown, given twice with different values, or has an invalid value.
  """
  argv = [_checked(argument) for argument in argv]
  with _one_message(argv):
    config_flags.DEFINE_config_file(
      'config', config_file.__file__, 'A file of settings.', flag_values=values, sys_argv=argv
    )
    fields.define_flags(kind, values)
    fields.parse(kind, argv, values)
    if not isinstance(values.config, ml_collections.ConfigDict):
      raise TypeError(f'get_config() must return settings.config_dict(...), not {type(values.config).__name__}')
    from_file = fields.flat_dict(values.config.to_dict(), 'config.')
  plain = fields.given(kind, values)
  for name, dotted in values['config'].override_values.items():
    value = plain.get(f'config.{name}', dotted)
    if fields.listed(value) != fields.listed(dotted):
      raise ValueError(f'--{name}={value} and --config.{name}={dotted} differ: give one of them')
  chosen = fields.nested(from_file | plain)
  return kind(settings.from_dict(chosen['config']), fields.build(process_flags.Processes, chosen.get('processes', {})))


def _checked(argument: str) -> str:
  """Rejects --config=<file> if the file is missing, and --config.<name> for an unknown name; checks text files.

  Returns:
    The argument, with lists as tuples, and --config=run/config.json as --config=.../config_file.py:run/config.json.
  """
  name, _, path = argument.partition('=')
  option = name.lstrip('-').removeprefix('no')
  if option.startswith('config.'):
    known = {leaf.name: leaf.field.type for leaf in fields.leaves(settings.Config)}
    setting = option.removeprefix('config.')
    if setting not in [*known, 'mesh']:
      close = difflib.get_close_matches(setting, known, n=1)
      raise ValueError(f'--{option} is not a setting' + (f'; did you mean {close[0]}?' if close else ''))
    if known.get(setting) == fields.Strings and '=' in argument:
      return f'{name}={fields.split(path)}'  # ml_collections would read a,b as one string
  if option != 'config' or not path:
    return argument
  path = paths.expand(path)
  if not os.path.isfile(path.partition(':')[0]):
    raise ValueError(f'{argument}: there is no such file')
  if not path.endswith(('.json', '.yaml', '.yml')):
    return f'{name}={path}'
  config_file.get_config(path)
  return f'--config={config_file.__file__}:{path}'


@contextlib.contextmanager
def _one_message(argv: Sequence[str]) -> Iterator[None]:
  """Turns errors from ml_collections and from config files into a ValueError with one message."""
  files = [argument.partition('=')[2] for argument in argv if argument.lstrip('-').startswith('config=')]
  path = files[-1].partition(':')[0] if files else ''
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', DeprecationWarning)  # ml_collections loads files in a deprecated way
      yield
  except (Exception, SystemExit) as error:
    place = _place(error, path)
    text = str(error.args[0] if error.args else error).strip()
    if 'Traceback' in text:  # ml_collections puts one into its messages
      raise ValueError(f'--config={path}: {text.splitlines()[-1].removeprefix("ValueError: ")}') from error
    if not place and isinstance(error, ValueError | flags.Error | SystemExit):
      raise
    raise ValueError(f'--config={path}: {place}{user_code.reason(error)}') from error


def _place(error: BaseException, path: str) -> str:
  """The line of a config file that raised an exception: 'line 12: '; '' if none did."""
  if isinstance(error, SyntaxError) and error.filename:
    return f'line {error.lineno}: '
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if pathlib.Path(frame.filename).resolve() == pathlib.Path(path).resolve()]
  return f'line {lines[-1]}: ' if path and lines else ''
