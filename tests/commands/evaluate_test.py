"""`alignjax evaluate`: its values, its files, and that it continues where it was stopped."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from alignjax import rewards, stats
from alignjax.commands import evaluate, program
from alignjax.data.tokens import tokenization
from alignjax.evaluation import evaluator
from alignjax.models import checkpoint_io, transformer
from alignjax.sampling import text
from alignjax.types import PreferenceBatch
from tests import assets
from tests.commands import export_test

LOCAL = pathlib.Path(__file__).parents[2] / 'launch' / 'local.sh'
PROMPTS = ['The film was', 'She said', 'A good review explains what works and', 'Why', 'It']
REWARD, PROXY = 'length(target=3, scale=2) - 0.5 * missing_end(1.0)', "matches('[aeiou]')"
OPTIONS = text.Options(samples=2, max_new_tokens=4, batch_size=8)
SIZES = ('--samples=2', '--max_new_tokens=4', '--compute_dtype=float32')


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  """Two models of one architecture, and prompts with answers."""
  folder = tmp_path_factory.mktemp('evaluate')
  for name, seed in (('sft', 0), ('tuned', 1)):
    assets.write_tiny_model(folder / name, seed=seed, layers=1)
  rows = [{'prompt': prompt, 'answer': ' and'} for prompt in PROMPTS]
  (folder / 'prompts.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return folder


def run(folder: pathlib.Path, out: pathlib.Path, *arguments: str, reward: str = REWARD) -> int:
  flags = {
    '--models': f'{folder}/tuned',
    '--reference': f'{folder}/sft',
    '--prompts': f'{folder}/prompts.jsonl',
    '--reward': reward,
    '--reward_fields': 'answer',
    '--out': str(out),
  }
  flags |= dict(each.split('=', 1) for each in (*SIZES, *arguments))
  return program.execute(evaluate.PROGRAM, ['evaluate', *(f'{name}={value}' for name, value in flags.items())])


@pytest.fixture(scope='module')
def evaluated(folder) -> pathlib.Path:
  out = folder / 'out'
  assert run(folder, out, f'--proxy={PROXY}') == 0
  return out


def result(out: pathlib.Path) -> dict:
  return json.loads((out / 'evaluation.json').read_text())


def announced(output: str) -> list[str]:
  """The parts that a program has made."""
  lines = output.splitlines()
  return [pathlib.Path(line).name for line in lines[: lines.index('## Models')] if ': ' in line]


def test_values_are_those_of_samples_drawn_apart(folder, evaluated):
  """The responses are those of `sample`; the KL is computed on one device, prompt by prompt."""
  drawn = {name: list(text.sample(folder / name, PROMPTS, OPTIONS)) for name in ('sft', 'tuned')}
  reward = rewards.parse(REWARD)
  scores = {
    name: reward([rewards.Sample(each.prompt, each.response, each.tokens, each.finished) for each in responses])
    for name, responses in drawn.items()
  }
  scores = {name: values.reshape(5, 2) for name, values in scores.items()}
  found = result(evaluated)
  values = found['models'][f'{folder}/tuned']
  assert values['reward']['mean'] == pytest.approx(scores['tuned'].mean())
  assert values['win_rate']['mean'] == pytest.approx(evaluator.win_rate(scores['tuned'], scores['sft']).mean)
  assert values['tokens']['mean'] == pytest.approx(np.mean([each.tokens for each in drawn['tuned']]))
  assert values['reward/missing_end']['mean'] == pytest.approx(np.mean([not each.finished for each in drawn['tuned']]))
  assert set(found['models']) == {f'{folder}/sft', f'{folder}/tuned'}
  assert found['models'][f'{folder}/sft']['kl']['mean'] == pytest.approx(0.0, abs=1e-6)
  assert [each['n'] for each in found['best_of_n']] == [1, 2]


def test_the_kl_is_that_of_the_tokens_drawn(folder, evaluated):
  part = next(path for path in (evaluated / 'parts').iterdir() if 'tuned.responses' in path.name)
  ids = json.loads(part.read_text())['content']['ids']
  config = checkpoint_io.load_config(folder / 'sft')
  model = transformer.build(config)
  policy, reference = (checkpoint_io.load_params(folder / name, config) for name in ('tuned', 'sft'))
  encoded = [tokenization.Tokenizer.load(folder / 'sft').encode_prompt(prompt) for prompt in PROMPTS]
  prompt, response = np.zeros((5, max(map(len, encoded))), np.int32), np.zeros((5, 2, 4), np.int32)
  for b, each in enumerate(encoded):
    prompt[b, : len(each)] = each
    for n, tokens in enumerate(ids[b]):
      response[b, n, : len(tokens)] = tokens
  length = np.array([[len(tokens) for tokens in row] for row in ids], np.int32)
  ones = np.ones(5, np.float32)
  batch = PreferenceBatch(prompt, np.array([len(each) for each in encoded]), response, length, ones, ones)
  table = jax.jit(evaluator.build_kl_step(model))(policy, reference, batch)
  values = result(evaluated)['models'][f'{folder}/tuned']
  assert values['kl']['mean'] == pytest.approx(float(table.sum(stats.reverse_kl).mean()), rel=1e-4)
  log_ratio = table.sum(stats.logp) - table.sum(stats.reference_logp)
  assert values['kl_of_draws']['mean'] == pytest.approx(float(log_ratio.mean()), rel=1e-4)
  entropy = float(np.mean(table.sum(stats.entropy) / length))
  assert values['entropy']['mean'] == pytest.approx(entropy, rel=1e-4)


def test_files_are_written(folder, evaluated):
  table = (evaluated / 'evaluation.md').read_text()
  assert f'| {folder}/tuned | ' in table
  assert '## Best of n samples of the reference' in table
  assert (evaluated / 'evaluation.png').read_bytes().startswith(b'\x89PNG')
  shown = [json.loads(line) for line in (evaluated / 'samples.jsonl').read_text().splitlines()]
  assert [row['prompt'] for row in shown] == PROMPTS
  (part,) = (path for path in (evaluated / 'parts').iterdir() if 'tuned.responses' in path.name)
  drawn = [row['responses'][f'{folder}/tuned']['response'] for row in shown]
  assert drawn == [responses[0] for responses in json.loads(part.read_text())['content']['text']]
  command = json.loads((evaluated / 'about.json').read_text())['command']
  assert command.startswith(f'alignjax evaluate --prompts={folder}/prompts.jsonl ')
  assert len(list((evaluated / 'parts').iterdir())) == 8  # responses, kl, reward and proxy of two models


def test_what_is_there_is_not_made_again(folder, evaluated, tmp_path, capsys):
  out = shutil.copytree(evaluated, tmp_path / 'out')
  before = (out / 'evaluation.json').read_bytes()
  assert run(folder, out, f'--proxy={PROXY}') == 0
  assert announced(capsys.readouterr().out) == []
  assert (out / 'evaluation.json').read_bytes() == before
  assert run(folder, out, reward="exact_answer('answer')") == 0  # another reward of the same responses
  assert announced(capsys.readouterr().out) == ['sft: reward', 'tuned: reward']
  (damaged,) = (path for path in (out / 'parts').iterdir() if 'tuned.reward' in path.name)
  damaged.write_bytes(damaged.read_bytes()[:-9])
  assert run(folder, out, reward="exact_answer('answer')") == 0
  assert announced(capsys.readouterr().out) == ['tuned: reward']


def test_it_continues_after_a_reward_has_failed(folder, evaluated, tmp_path, capsys):
  out = shutil.copytree(evaluated, tmp_path / 'out')
  assert run(folder, out, reward="exact_answer('nothing')") == 1
  assert "no column 'nothing'" in capsys.readouterr().err
  assert run(folder, out, f'--proxy={PROXY}') == 0
  assert announced(capsys.readouterr().out) == []


def test_models_are_compared_with_responses_in_the_data(folder, evaluated, tmp_path):
  """Responses of one token and the end token, which the reward prefers to all others."""
  rows = [{'prompt': prompt, 'completion': '!'} for prompt in PROMPTS]
  (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  flags = (f'--prompts=supervised:{tmp_path}/rows.jsonl', '--reward_fields=')
  reward = 'length(target=2, scale=0.1)'
  assert run(folder, tmp_path / 'out', *flags, f'--judge=as_judge({reward})', reward=reward) == 0
  values = result(tmp_path / 'out')['models'][f'{folder}/tuned']
  assert values['win_rate_data']['mean'] == pytest.approx(0.5 * values['reward']['mean'])
  assert values['win_rate_data_judge'] == values['win_rate_data']


def test_judges_compare_the_responses_in_pairs(folder, evaluated, tmp_path, capsys):
  """The n-th response of a model with the n-th of the reference."""
  out = shutil.copytree(evaluated, tmp_path / 'out')
  judges = f'--judge=as_judge({REWARD})', f'--second_judge=as_judge({PROXY})'
  assert run(folder, out, f'--proxy={PROXY}', *judges) == 0
  assert announced(capsys.readouterr().out) == ['tuned: judge', 'tuned: second_judge']

  def scores(kind):
    parts = (next((out / 'parts').glob(f'*_{name}.{kind}-*.json')) for name in ('tuned', 'sft'))
    return (np.array(json.loads(part.read_text())['content']['total']) for part in parts)

  wins = [0.5 + 0.5 * np.sign(np.subtract(*scores(kind))) for kind in ('reward', 'proxy')]
  values = result(out)['models'][f'{folder}/tuned']
  assert values['win_rate_judge']['mean'] == pytest.approx(wins[0].mean())
  assert values['win_rate_second_judge']['mean'] == pytest.approx(wins[1].mean())
  assert values['agreement']['mean'] == pytest.approx(np.mean(wins[0] * wins[1] + (1 - wins[0]) * (1 - wins[1])))
  assert values['position_bias_judge'] == {'mean': 0.0, 'error': 0.0}
  assert 'win rate by the judge' in (out / 'evaluation.md').read_text()


@pytest.mark.slow  # draws again; the strategies are those of `sample`
def test_there_is_no_kl_with_another_strategy(folder, tmp_path):
  assert run(folder, tmp_path / 'out', '--strategy=greedy()') == 0
  values = result(tmp_path / 'out')['models'][f'{folder}/tuned']
  assert not {'kl', 'entropy'} & values.keys()
  assert not (tmp_path / 'out' / 'evaluation.png').exists()


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--models=nowhere'], '--models=nowhere: there is no such folder'),
    (['--reference=nowhere'], '--reference=nowhere: there is no such folder'),
    (['--models=a,a'], 'a'),
    (['--reward=length()'], 'length'),
    (['--reward=vador()'], 'vador'),
    (['--proxy=length()'], 'length'),
    (['--judge=length(3, 2)'], 'this is a reward, not a judge'),
    (['--second_judge=as_judge(matches("a"))'], 'give --judge too'),
    (['--strategy=hot()'], 'hot'),
    (['--prompts=missing.jsonl'], 'missing.jsonl'),
    (['--samples=0'], '--samples = 0: must be at least 1'),
  ],
)
def test_errors_of_the_user_are_one_message_and_exit_code_1(folder, tmp_path, capsys, arguments, message):
  assert run(folder, tmp_path / 'out', *arguments) == 1
  error = capsys.readouterr().err
  assert message in error
  assert 'Traceback' not in error
  assert not (tmp_path / 'out').exists()


def test_a_model_that_is_named_twice_is_refused(folder, tmp_path, capsys):
  assert run(folder, tmp_path / 'out', f'--models={folder}/tuned,{folder}/tuned') == 1
  assert 'a model is named twice' in capsys.readouterr().err


def test_a_folder_without_checkpoints_is_refused(folder, tmp_path, capsys):
  (tmp_path / 'checkpoints').mkdir()
  assert run(folder, tmp_path / 'out', f'--models={tmp_path}/checkpoints') == 1
  assert f'{tmp_path}/checkpoints: holds no checkpoint' in capsys.readouterr().err


@pytest.mark.slow  # saves a checkpoint of a run; tests/run/object_store_test.py exports one
def test_checkpoints_of_a_run_are_evaluated(folder, tmp_path, capsys):
  config = export_test.settings.Config(
    model=str(folder / 'sft'), data=('gone.jsonl',), workdir=str(tmp_path / 'run'), optimizer='adamw(1e-3)'
  )
  export_test.finish(config)
  checkpoints, model = f'{tmp_path}/run/checkpoints', f'{tmp_path}/run/model'
  assert run(folder, tmp_path / 'out', f'--models={checkpoints},{model}') == 0
  found = result(tmp_path / 'out')
  assert found['models'][f'{checkpoints}/7'] == found['models'][model]
  assert found['over_optimisation'] == {str(tmp_path / 'run'): []}
  capsys.readouterr()
  assert run(folder, tmp_path / 'out', f'--models={checkpoints},{model}') == 0
  assert announced(capsys.readouterr().out) == []


@pytest.mark.slow  # starts processes
def test_two_processes_write_what_one_writes(folder, tmp_path):
  written = []
  for count in (1, 2):
    out = tmp_path / str(count)
    flags = [f'--models={folder}/tuned', f'--reference={folder}/sft', f'--prompts={folder}/prompts.jsonl', *SIZES]
    flags += [f'--reward={REWARD}', '--reward_fields=answer', f'--out={out}']
    environment = os.environ | {'PYTHON': sys.executable, 'DEVICES_PER_PROCESS': str(4 // count), 'XLA_FLAGS': ''}
    command = [str(LOCAL), str(count), '--module=evaluate', '--', *flags]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    written.append((out / 'evaluation.json').read_bytes())
  assert written[0] == written[1]
