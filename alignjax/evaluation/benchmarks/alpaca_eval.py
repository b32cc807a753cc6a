"""AlpacaEval 2: the file of a model's outputs, and the annotations of its judge.

  alpaca_eval --model_outputs outputs.json        # writes annotations.json

References:
  Dubois et al., Length-Controlled AlpacaEval, https://arxiv.org/abs/2404.04475.
"""

from collections.abc import Sequence
import json
import pathlib
from typing import NamedTuple

from alignjax import files
from alignjax.data.reading import rows
from alignjax.evaluation.benchmarks import records


class Output(NamedTuple):
  """A model's answer to an instruction."""

  instruction: str
  output: str


def write(path: pathlib.Path, outputs: Sequence[Output], generator: str, dataset: str = 'alpaca_eval') -> None:
  """Writes a model's outputs, one for each instruction.

  Args:
    path: the .json file.
    outputs: the answers.
    generator: the name of the model.
    dataset: the name of the set of instructions.
  """
  written = [
    {'instruction': each.instruction, 'output': each.output, 'generator': generator, 'dataset': dataset}
    for each in outputs
  ]
  files.replace(path, (json.dumps(written, ensure_ascii=False, indent=1) + '\n').encode())


def read_instructions(path: str) -> list[str]:
  """The instructions of the benchmark's alpaca_eval.json.

  Raises:
    DataError: a row is malformed; the message names it.
  """
  return [records.field(origin, fields, 'instruction', str) for origin, fields in records.read(path)]


class Outcome(NamedTuple):
  """The judge's verdict on one instruction."""

  instruction: str
  win: float  # P(the model is better than the reference), in [0, 1]
  output: str  # the model's
  reference: str  # the reference model's output


def read(path: str) -> list[Outcome]:
  """Reads annotations.json. Instructions that the judge could not decide, with a preference of null, are left out.

  A preference is between 1, for output_1, and 2, for output_2; 0 is an old way to write a tie. The first output is the
  reference model's.

  Raises:
    DataError: a row is malformed; the message names it.
  """
  found = []
  for origin, fields in records.read(path):
    if 'preference' not in fields:
      continue
    preference = records.field(origin, fields, 'preference', (int, float))
    if preference != 0 and not 1 <= preference <= 2:
      raise rows.DataError(origin, 'wrong_field', f'field preference: {preference} is not between 1 and 2')
    instruction, reference, output = (
      records.field(origin, fields, name, str) for name in ('instruction', 'output_1', 'output_2')
    )
    found.append(Outcome(instruction, preference - 1 if preference else 0.5, output, reference))
  return found
