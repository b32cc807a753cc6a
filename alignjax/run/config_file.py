"""The configuration behind --config: the defaults, or the settings of a .json or .yaml file."""

import pathlib

import ml_collections
import yaml

from alignjax.run import settings


def get_config(path: str = '') -> ml_collections.ConfigDict:
  """The defaults, changed by the values in a file.

  Args:
    path: the file; '' gives the defaults.

  Raises:
    ValueError: the file cannot be read as JSON or YAML, or has an unknown or invalid setting.
  """
  if not path:
    return settings.config_dict()
  try:
    values = yaml.safe_load(pathlib.Path(path).read_text(encoding='utf-8'))  # JSON is YAML
  except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
    raise ValueError(f'--config={path}: {error}') from error
  if not isinstance(values, dict):
    raise ValueError(f'--config={path}: must contain settings by name')
  return settings.config_dict(**vars(settings.from_dict(values)))
