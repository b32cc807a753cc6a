"""The flags of the programs that take the settings of a run."""

from collections.abc import Iterator, Sequence
import contextlib
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from alignjax.parallel import distributed
from alignjax.run import settings

# Settings with a flag of their own, because nearly every run gives them.
SHORT = (
  'model',
  'reference',
  'reference_cache',
  'base_model',
  'data',
  'eval_data',
  'objective',
  'optimizer',
  'adapter',
  'doctor',
  'workdir',
)


def define_flags() -> None:
  """The flags of the program. Not on import: flags are global, and other programs have flags of the same names."""
  with _refusing_unknown_settings():
    config_flags.DEFINE_config_file(
      'config',
      str(pathlib.Path(__file__).parent / 'default_config.py'),
      'A file whose get_config() gives the settings; --config.<name>=<value> changes one of them.',
    )
  for name in SHORT:
    if name in ('data', 'eval_data'):
      flags.DEFINE_multi_string(name, None, f'Short for --config.{name}; may be repeated.')
    else:
      flags.DEFINE_string(name, None, f'Short for --config.{name}.')
  flags.DEFINE_string('coordinator', None, 'host:port of process 0, where there are several processes.')
  flags.DEFINE_integer('num_processes', 1, 'Processes in the run.')
  flags.DEFINE_integer('process_id', 0, 'Of this process, from 0.')
  flags.DEFINE_integer('local_devices', 0, 'Virtual CPU devices of this process; 0: the real devices.')


@contextlib.contextmanager
def _refusing_unknown_settings() -> Iterator[None]:
  """ml_collections reports --config.<name> of a name that does not exist by exceptions, with a good message."""
  try:
    yield
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    print(f'error: in the flags: {error.args[0] if error.args else error}', file=sys.stderr)
    sys.exit(1)


def parse(argv: Sequence[str]) -> Sequence[str]:
  with _refusing_unknown_settings():
    return app.parse_flags_with_usage(argv)


def begin(argv: Sequence[str]) -> None:
  """What a program does first: refuses what is no flag, and is quiet about what is no warning."""
  if argv[1:]:
    raise app.UsageError(f'what is {argv[1]!r}? Settings are given as --config.<name>=<value>')
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # at INFO, every checkpoint writes 40 lines


def resolve() -> settings.Config:
  """The configuration that the flags describe, once the processes of the run know each other."""
  given = flags.FLAGS
  values = given.config.to_dict()
  short = {name: given[name].value for name in SHORT}
  config = settings.from_dict(values | {name: value for name, value in short.items() if value is not None})
  distributed.initialize(given.coordinator, given.num_processes, given.process_id, given.local_devices)
  return config
