"""Writes what lm-evaluation-harness's Hugging Face backend answers about a tiny model: tests/golden/harness.json.

Run by hand, where lm-eval, torch and transformers are installed; the library itself needs none of them:

  python tests/golden/make_harness.py [--model alignjax]

With `--model alignjax` it asks alignjax's own backend through lm-eval, and compares the answers with the file.
"""

import json
import pathlib
import sys
import tempfile

import lm_eval
from lm_eval import tasks
import numpy as np
import yaml

ROOT = pathlib.Path(__file__).parents[2]
sys.path.append(str(ROOT))
from tests import assets  # noqa: E402

FILE = pathlib.Path(__file__).parent / 'harness.json'
MODEL = {'layers': 1, 'max_positions': 96}
ITEMS, TEXTS = 50, 10
TASKS = {
  'choice': {
    'output_type': 'multiple_choice',
    'doc_to_text': '{{question}}',
    'doc_to_choice': '{{choices}}',
    'doc_to_target': '{{answer}}',
    'metric_list': [{'metric': 'acc'}],
  },
  'generation': {
    'output_type': 'generate_until',
    'doc_to_text': '{{question}}',
    'doc_to_target': '{{choices[0]}}',
    'generation_kwargs': {'until': ['\n', '.', ' the'], 'max_gen_toks': 16},
    'metric_list': [{'metric': 'exact_match'}],
  },
  'text': {
    'output_type': 'loglikelihood_rolling',
    'doc_to_text': '',
    'doc_to_target': '{{text}}',
    'metric_list': [{'metric': 'word_perplexity'}],
  },
}


def documents() -> dict[str, list[dict[str, object]]]:
  """Questions of a few words to longer than the model reads, with two to four answers, and long texts."""
  rng = np.random.default_rng(0)
  words = ' '.join(assets.CORPUS).split()

  def phrase(count: int) -> str:
    return ' '.join(rng.choice(words, count))

  questions = []
  for i in range(ITEMS):
    question = phrase(int(rng.integers(1, 12))) + ('  ' if i % 7 == 3 else '') + (' café ☕' if i % 9 == 4 else '')
    if i % 10 == 8:
      question = phrase(120)
    choices = [phrase(int(rng.integers(1, 6))) for _ in range(int(rng.integers(2, 5)))]
    questions.append({'question': question, 'choices': choices, 'answer': int(rng.integers(len(choices)))})
  texts = [{'text': phrase(int(rng.integers(1, 150)))} for _ in range(TEXTS)]
  return {'choice': questions, 'generation': questions, 'text': texts}


def answers(model: str, folder: pathlib.Path) -> dict[str, list[list[object]]]:
  """The requests of each task with the answers of a model."""
  for name, documents_of in documents().items():
    (folder / f'{name}.json').write_text(json.dumps(documents_of))
    entries = {
      'task': f'alignjax_{name}',
      'dataset_path': 'json',
      'dataset_kwargs': {'data_files': {'test': str(folder / f'{name}.json')}},
      'test_split': 'test',
      **TASKS[name],
    }
    (folder / f'{name}.yaml').write_text(yaml.safe_dump(entries))
  found = lm_eval.simple_evaluate(
    model=model,
    model_args={'pretrained': str(folder / 'model'), 'dtype': 'float32'},
    tasks=[f'alignjax_{name}' for name in TASKS],
    task_manager=tasks.TaskManager(include_path=str(folder)),
    batch_size=8,
    device='cpu' if model == 'hf' else None,
    bootstrap_iters=0,
  )
  print({name: found['results'][f'alignjax_{name}'] for name in TASKS})
  result = {}
  for name in TASKS:
    samples = sorted(found['samples'][f'alignjax_{name}'], key=lambda sample: sample['doc_id'])
    result[name] = [
      [*arguments, response[0]]
      for sample in samples
      for arguments, response in zip(sample['arguments'], sample['resps'], strict=True)
    ]
  return result


def main() -> None:
  model = 'alignjax' if '--model' in sys.argv else 'hf'
  if model == 'alignjax':
    from alignjax.run import harness  # noqa: F401  registers the model
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    assets.write_tiny_model(folder / 'model', **MODEL)
    found = answers(model, folder)
  if model == 'hf':
    FILE.write_text(json.dumps(found, ensure_ascii=False, indent=0) + '\n')
    return
  expected = json.loads(FILE.read_text())
  for name in TASKS:
    for ours, theirs in zip(found[name], expected[name], strict=True):
      assert list(ours[:-1]) == list(theirs[:-1])
    print(name, len(found[name]), [(a[-1], b[-1]) for a, b in zip(found[name], expected[name], strict=True)][:3])


if __name__ == '__main__':
  main()
