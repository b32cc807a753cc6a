"""alignjax: aligns language models with preferences."""

from alignjax.commands import program

SUMMARIES = {
  'train': 'align a model with preference data, or resume a run',
  'doctor': 'examine a run before it trains: tokenizer, data, models, memory',
  'export': 'write the model of a checkpoint, without the data',
  'sample': 'draw responses from a model',
  'data': 'validate, inspect, tokenise, convert or build preference data',
  'merge': 'merge models in Hugging Face folders',
}
PROGRAM = program.Group('alignjax', __doc__, SUMMARIES, program.lazy)


def main() -> None:
  """The command `alignjax`."""
  program.start(PROGRAM)
