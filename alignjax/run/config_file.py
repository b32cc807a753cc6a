"""The configuration behind --config: the defaults, or the settings of a .json or .yaml file."""

import ml_collections
import yaml

from alignjax import files
from alignjax.run import settings


class _Loader(yaml.SafeLoader):
  """Reads YAML without references, with which a small file can describe a huge value, and without repeated names."""

  def compose_node(self, parent: yaml.Node, index: object) -> yaml.Node:
    if self.check_event(yaml.AliasEvent):
      event = self.peek_event()
      raise yaml.composer.ComposerError(None, None, f'references (*{event.anchor}) are not allowed', event.start_mark)
    return super().compose_node(parent, index)

  def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
    names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
      raise yaml.constructor.ConstructorError(None, None, f'{twice!r} is given more than once', node.start_mark)
    return super().construct_mapping(node, deep)


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
    values = yaml.load(files.read_text(path), _Loader)  # JSON is YAML
  except RecursionError:
    raise ValueError(f'--config={path}: the values are nested too deeply') from None
  except (OSError, ValueError, yaml.YAMLError) as error:
    raise ValueError(f'--config={path}: {error}') from error
  if not isinstance(values, dict):
    raise ValueError(f'--config={path}: must contain settings by name')
  return settings.config_dict(**vars(settings.from_dict(values)))
