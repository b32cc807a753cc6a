"""A language model as a judge: its question, its log-odds, and its independence of the batch."""

import shutil

import jax
import numpy as np
import pytest

from alignjax import judges, rewards
from alignjax.models import checkpoint_io, transformer
from tests import assets
from tests.data import variants

CHAT = [{'role': 'user', 'content': 'Name a film.'}]
TEMPLATE = '{prompt} A: {a} B: {b} Which?'  # so short that all questions have one padded size
PAIRS = [
  (CHAT, 'The warm story.', 'Bad.'),
  ('A film is', ' good {b}', ' bad and never good again'),
  ([*CHAT, {'role': 'assistant', 'content': 'Up'}, {'role': 'user', 'content': 'More'}], 'Heat.', 'No.'),
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return assets.write_tiny_model(tmp_path_factory.mktemp('judge') / 'model', layers=1, max_positions=256)


@pytest.fixture(scope='module')
def scorer(folder):
  return judges.JudgeModel.load(folder, template=TEMPLATE)


def test_the_odds_are_those_of_the_next_token(folder, scorer):
  """Of the logits after the whole question as the model's chat template shows it."""
  config = checkpoint_io.load_config(folder)
  model, params = transformer.build(config), checkpoint_io.load_params(folder, config)
  shown = ['Name a film.', 'A film is', 'User: Name a film.\n\nAssistant: Up\n\nUser: More']
  prompt, length = np.zeros((3, 128), np.int32), np.zeros(3, np.int32)
  for row, (text, (_, first, second)) in enumerate(zip(shown, PAIRS, strict=True)):
    question = TEMPLATE.replace('{a}', first.strip()).replace('{prompt}', text)
    question = question.replace(' {b} Which', f' {second.strip()} Which')  # not the one that a response spells
    ids = scorer._loaded.tokenizer.encode_prompt([{'role': 'user', 'content': question}])
    prompt[row, : len(ids)], length[row] = ids, len(ids)
  empty = np.zeros((3, 1, 1), np.int32), np.ones((3, 1), np.int32)
  states = jax.jit(model.hidden)(params, prompt, length, *empty)[:, 0, 0]
  logits = np.asarray(states, np.float64) @ np.asarray(model.head(params).kernel, np.float64)
  a, b = (scorer._loaded.tokenizer.backend.token_to_id(answer) for answer in 'AB')
  np.testing.assert_allclose(scorer(PAIRS), 1 / (1 + np.exp(logits[:, b] - logits[:, a])), rtol=0, atol=1e-6)


def test_verdicts_depend_on_their_pair_alone(folder, scorer):
  order = [2, 0, 1]
  np.testing.assert_allclose(scorer([PAIRS[i] for i in order]), scorer(PAIRS)[order], rtol=0, atol=1e-6)
  np.testing.assert_allclose(scorer(PAIRS[:1]), scorer(PAIRS)[:1], rtol=0, atol=1e-6)


def test_an_expression_builds_a_judge_of_both_orders(folder, scorer):
  judge = judges.parse(f'judge("{folder}", template="{TEMPLATE}")')
  assert judge.collective
  assert judge.fingerprint
  samples = [[rewards.Sample(prompt, text, 3, finished=True) for text in texts] for prompt, *texts in PAIRS]
  verdicts = judge.verdicts(samples)
  straight, reverse = scorer(PAIRS), scorer([(prompt, b, a) for prompt, a, b in PAIRS])
  log_odds = [np.log(p) - np.log1p(-p) for p in (straight, reverse)]
  np.testing.assert_allclose(verdicts.log_odds, (log_odds[0] - log_odds[1]) / 2, atol=1e-6)
  np.testing.assert_allclose(verdicts.position_bias, (log_odds[0] + log_odds[1]) / 2, atol=1e-6)


def test_the_template_of_the_judge_reads_its_variables(folder, tmp_path):
  shutil.copytree(folder, tmp_path / 'model')
  variants.edit_json(
    tmp_path / 'model' / 'tokenizer_config.json',
    chat_template="{{ 'do' if enable_thinking else 'no' }} think {% for m in messages %}{{ m.content }}{% endfor %}",
  )
  thinking, silent = (
    judges.JudgeModel.load(tmp_path / 'model', template=TEMPLATE, template_arguments=f'enable_thinking={value}')
    for value in ('true', 'false')
  )
  asked = [each._loaded.tokenizer.decode(each._encode(PAIRS[:1])[0].prompt) for each in (thinking, silent)]
  assert asked[0].startswith('do think')
  assert asked[1].startswith('no think')


def test_mistakes_are_named(folder, scorer):
  with pytest.raises(ValueError, match="reads no variable 'enable_thinking'"):
    judges.judge(str(folder), template_arguments='enable_thinking=false')
  with pytest.raises(ValueError, match=r'the template lacks \{b\}'):
    judges.judge(str(folder), template='{prompt} {a}')
  with pytest.raises(ValueError, match=r'pair 1: the question has .* tokens, and the judge reads 256'):
    scorer([PAIRS[0], ('word ' * 300, 'a', 'b')])
  with pytest.raises(ValueError, match='judge=nowhere: there is no such folder'):
    judges.judge('nowhere')
