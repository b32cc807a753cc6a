"""Results that are kept in files part by part, so that a program that is started again continues."""

from collections.abc import Callable, Mapping
import hashlib
import json
import pathlib
import re
from typing import Any

from alignjax import files
from alignjax.training import processes


class Parts:
  """The parts of a result, one file for each. All processes call the methods together; the first one has the files.

  Args:
    folder: the folder of the files.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    processes.on_first(lambda: folder.mkdir(parents=True, exist_ok=True))

  def get(self, name: str, made_of: Mapping[str, Any], make: Callable[[], Any]) -> Any:
    """Returns a part. It is made if there is no file of it, or one that was made of something else.

    Args:
      name: the name of the part.
      made_of: everything that the part depends on, in JSON types.
      make: makes the part on all processes, in JSON types.
    """
    readable = re.sub(r'[^\w.-]+', '_', name).strip('_')[-80:]
    path = self._folder / f'{readable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.json'
    made_of = json.loads(json.dumps(made_of))
    found = processes.from_first(lambda alive: _read(path, made_of))
    if found:
      return json.loads(found)
    content = make()
    text = json.dumps({'made_of': made_of, 'content': content}, allow_nan=False)
    processes.on_first(lambda: files.replace(path, text.encode()))
    return content


def _read(path: pathlib.Path, made_of: Mapping[str, Any]) -> str:
  """The content of a file as JSON, if it was made of the same."""
  try:
    found = files.read_json(path) if path.exists() else {}
  except ValueError:  # damaged, so it is made again
    return ''
  return json.dumps(found['content']) if isinstance(found, dict) and found.get('made_of') == made_of else ''
