"""`alignjax label`: draws, scores, and writes rows that training reads."""

import json

import numpy as np
import pytest

from alignjax import exit_codes, rewards
from alignjax.commands import label, program
from alignjax.data.reading import drops, sources
from alignjax.run import labelling
from tests import assets

PROMPTS = ['The film was', 'A good review explains', 'She said', 'In the end', 'Tell me']


def answer(response, score, finished=True):
  return labelling.Answer(response, 3, finished, -2.0, score, {})


ANSWERS = [answer('a', 1.0), answer('b', 3.0), answer('c', 2.0, finished=False), answer('d', 1.0)]


@pytest.mark.parametrize(
  ('forming', 'expected'),
  [
    (labelling.Forming('best_worst'), [{'chosen': 'b', 'rejected': 'a', 'score': [3.0, 1.0]}]),
    (labelling.Forming('two'), [{'chosen': 'b', 'rejected': 'a', 'score': [3.0, 1.0]}]),
    (labelling.Forming('best'), [{'completion': 'b'}]),
    (labelling.Forming('all'), [{'responses': ['a', 'b', 'c', 'd'], 'scores': [1.0, 3.0, 2.0, 1.0]}]),
    (
      labelling.Forming('all', unfinished='drop', behaviour_logp=True),
      [{'responses': ['a', 'b', 'd'], 'scores': [1.0, 3.0, 1.0], 'behaviour_logp': [-2.0] * 3}],
    ),
  ],
)
def test_rows_of_a_pairing(forming, expected):
  assert list(forming.formed('Why?', ANSWERS)) == [{'prompt': 'Why?'} | row for row in expected]


def test_tied_pairs_are_dropped_or_kept_with_an_even_label():
  rows = list(labelling.Forming('all_pairs').formed('Why?', ANSWERS))
  assert len(rows) == 5  # of 6 pairs, a and d are tied
  assert all(row['score'][0] > row['score'][1] for row in rows)
  kept = list(labelling.Forming('all_pairs', ties='keep').formed('Why?', ANSWERS))
  assert [(row['chosen'], row['rejected']) for row in kept if row.get('label') == 0.5] == [('a', 'd')]


def test_too_few_or_equal_responses_give_no_row():
  forming = labelling.Forming('best_worst', ties='keep', unfinished='drop')
  assert not list(forming.formed('Why?', ANSWERS[1:3]))
  assert not list(forming.formed('Why?', [answer('a', 1.0), answer('a', 1.0)]))


class Interrupted(Exception):
  pass


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return assets.write_tiny_model(tmp_path_factory.mktemp('label') / 'model', layers=1)


@pytest.fixture
def prompts(tmp_path):
  path = tmp_path / 'prompts.jsonl'
  path.write_text(''.join(json.dumps({'prompt': text, 'wanted': 'a'}) + '\n' for text in PROMPTS))
  return path


class Letters:
  """A user's reward: how often a response has the letter that the row wants, and a little for its length."""

  left = None  # calls until it fails; None for never

  def __call__(self, samples):
    if self.left is not None:
      self.left -= 1
      if self.left < 0:
        raise Interrupted
    return np.array([each.response.count(each.fields['wanted']) + 0.01 * len(each.response) for each in samples])


@pytest.fixture
def letters():
  score = Letters()

  def letters():
    return score

  rewards.factory(letters)
  yield score
  del rewards.REWARDS['letters']


def execute(model, prompts, out, *flags):
  return program.execute(
    label.PROGRAM,
    [
      'label',
      f'--model={model}',
      f'--prompts={prompts}',
      '--reward=letters()',
      '--reward_fields=wanted',
      f'--out={out}',
      '--samples=2',
      '--max_new_tokens=4',  # as in sample_test.py, so that it is compiled once
      '--batch_size=1',
      *flags,
    ],
  )


def test_an_interrupted_run_continues_and_writes_the_same_files(model, prompts, letters, tmp_path, capsys):
  whole, parts = tmp_path / 'whole.jsonl', tmp_path / 'parts.jsonl'
  assert execute(model, prompts, whole) == exit_codes.DONE
  letters.left = 2
  assert execute(model, prompts, parts) == exit_codes.REFUSED
  assert 'Interrupted' in capsys.readouterr().err
  assert not parts.exists()
  partial = tmp_path / 'parts.samples.jsonl.partial'
  assert len(partial.read_text().splitlines()) == 3  # what identifies the run, and two prompts
  with partial.open('a') as stream:
    stream.write('{"prompt": "cut sho')
  letters.left = None
  assert execute(model, prompts, parts, '--seed=1') == exit_codes.REFUSED
  assert 'was begun with seed = 0, not 1' in capsys.readouterr().err
  assert execute(model, prompts, parts) == exit_codes.DONE
  assert parts.read_bytes() == whole.read_bytes()
  assert (tmp_path / 'parts.samples.jsonl').read_bytes() == (tmp_path / 'whole.samples.jsonl').read_bytes()
  assert not partial.exists()


def test_training_reads_the_rows_and_all_responses_are_kept(model, prompts, letters, tmp_path, capsys):
  out = tmp_path / 'pairs.jsonl'
  assert execute(model, prompts, out) == exit_codes.DONE
  assert f'read it with --data={out}' in capsys.readouterr().out
  examples = list(sources.read_examples(str(out), drops.DropReport()))
  assert all(each.score[0] > each.score[1] for each in examples)
  lines = [json.loads(line) for line in (tmp_path / 'pairs.samples.jsonl').read_text().splitlines()]
  assert [line['prompt'] for line in lines[1:]] == PROMPTS
  for line in lines[1:]:
    for response in line['responses']:
      expected = response['response'].count('a') + 0.01 * len(response['response'])
      assert response['score'] == response['parts']['letters()'] == pytest.approx(expected)
  assert execute(model, prompts, out) == exit_codes.REFUSED
  assert 'the file exists' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--samples=1'], '--pairing=best_worst takes two or more responses to a prompt: give --samples=2 or more'),
    (['--reward=nothing()'], 'nothing'),
    (['--out=pairs.csv'], 'the name must end with .jsonl'),
    (['--greedy', '--temperature=0.5'], '--greedy leaves nothing to draw'),
  ],
)
def test_what_cannot_work_is_refused_before_the_model_is_read(prompts, tmp_path, flags, message, capsys):
  named = {'--out': str(tmp_path / 'pairs.jsonl'), '--reward': 'missing_end(1.0)'}
  named |= dict(flag.partition('=')[::2] for flag in flags if '=' in flag)
  given = [f'{name}={value}' for name, value in named.items()] + [flag for flag in flags if '=' not in flag]
  command = ['label', '--model=nowhere', f'--prompts={prompts}', '--ignore_fields=wanted', *given]
  assert program.execute(label.PROGRAM, command) == exit_codes.REFUSED
  assert message in capsys.readouterr().err
