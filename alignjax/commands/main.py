"""alignjax: aligns language models with preferences."""

from alignjax.commands import program

SUMMARIES = {
  'train': 'align a model with preference data, or resume a run',
  'doctor': 'examine a run before it trains: tokenizer, data, models, memory',
  'plan': 'find out whether a run fits on a machine, and what it costs',
  'export': 'write the model of a checkpoint, without the data',
  'sample': 'draw responses from a model',
  'evaluate': 'measure rewards, win rates and the KL of models on prompts',
  'label': 'draw responses, score them and write training data',
  'data': 'validate, inspect, tokenise, convert or build preference data',
  'download': 'fetch a model: smollm2, or one of the Hugging Face Hub',
  'compare': 'compare runs: settings, metrics and curves',
  'sweep': 'train a grid of settings and seeds, and compare the runs',
  'report': 'write one HTML page of runs, evaluations and sweeps',
  'merge': 'merge models in Hugging Face folders, or an adapter into its base',
}
OTHERS = {
  **dict.fromkeys(('fit', 'finetune', 'fine-tune', 'align', 'run', 'resume', 'dpo', 'sft', 'kto', 'orpo'), 'train'),
  **dict.fromkeys(('generate', 'chat', 'infer', 'inference', 'predict', 'decode'), 'sample'),
  **dict.fromkeys(('eval', 'judge', 'benchmark'), 'evaluate'),
  **dict.fromkeys(('check', 'examine', 'lint'), 'doctor'),
  **dict.fromkeys(('eval', 'score', 'test', 'benchmark'), 'evaluate'),
  **dict.fromkeys(('dataset', 'datasets', 'preprocess'), 'data'),
  **{name: f'data {name}' for name in ('validate', 'inspect', 'tokenize', 'convert', 'build')},
  **dict.fromkeys(('estimate', 'memory', 'cost', 'flops'), 'plan'),
  **dict.fromkeys(('pull', 'fetch', 'get'), 'download'),
  **dict.fromkeys(('diff', 'plot'), 'compare'),
  **dict.fromkeys(('html', 'dashboard', 'show', 'view'), 'report'),
  **dict.fromkeys(('grid', 'search', 'tune', 'multirun'), 'sweep'),
}
PROGRAM = program.Group('alignjax', __doc__, SUMMARIES, program.lazy, OTHERS)


def main() -> None:
  """The command `alignjax`."""
  program.start(PROGRAM)
