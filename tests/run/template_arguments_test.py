"""Tests of `template_arguments`: how they are written, and that every rendering of a program gets them."""

import json

import numpy as np
import pytest

from alignjax.commands import data as data_program
from alignjax.commands import evaluate, label, program, sample
from alignjax.data.tokens import tokenization, variables
from alignjax.run import preparation
from tests.commands import doctor_test
from tests.data import variants

STYLED = '{% if style is defined %}{{ style }}{% endif %}' + variants.TURNS + variants.GENERATION
ROWS = [
  {'prompt': [{'role': 'user', 'content': 'Name a film.'}], 'chosen': 'The warm story.', 'rejected': 'No.'},
  {'prompt': [{'role': 'user', 'content': 'And more?'}], 'chosen': 'Yes.', 'rejected': 'No.'},
]


@pytest.mark.parametrize(
  ('items', 'expected'),
  [
    ((), {}),
    (
      ('enable_thinking=false', 'style=terse', 'n=3', 'x='),
      {'enable_thinking': False, 'style': 'terse', 'n': 3, 'x': ''},
    ),
    (('{"style": "a, b", "deep": {"y": [1]}}', 'z=null'), {'style': 'a, b', 'deep': {'y': [1]}, 'z': None}),
    (('a=b=c',), {'a': 'b=c'}),
  ],
)
def test_arguments_are_pairs_or_json(items, expected):
  assert variables.parse(items) == expected


@pytest.mark.parametrize(
  ('items', 'message'),
  [
    (('enable_thinking',), "'enable_thinking' must be name=value, or, if a value has a comma, a JSON object"),
    (('two words=1',), "'two words=1' must be name=value"),
    (('{"a": }',), 'is no JSON object: Expecting value'),
    (('a=1', '{"a": 2}'), "'a' is given twice"),
    (('messages=[]',), "'messages' is set by every rendering"),
  ],
)
def test_malformed_arguments_are_refused(items, message):
  with pytest.raises(ValueError, match=message):
    variables.parse(items)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('arguments')
  doctor_test.write_model(folder / 'model')
  variants.edit_json(folder / 'model' / 'tokenizer_config.json', chat_template=STYLED)
  doctor_test.write_rows(folder / 'rows.jsonl', ROWS)
  return folder


def prompts_of(folder, style):
  """The tokens of the prompts with the variable `style`."""
  tokenizer = tokenization.Tokenizer.load(folder / 'model').with_template_arguments({'style': style} if style else {})
  return [tokenizer.encode_prompt(row['prompt']) for row in ROWS]


def test_training_tokenizes_with_the_arguments(folder):
  def prompts(*arguments):
    given = {'data': (str(folder / 'rows.jsonl'),), 'eval_data': (str(folder / 'rows.jsonl'),), 'reference': ''}
    config = doctor_test.configure(folder, **given, template_arguments=arguments, batch_size=8)
    prepared = preparation.prepare(config, doctor_test.SILENT)
    assert prepared.held_out.data.fingerprint == prepared.training.data.fingerprint
    return [list(example.prompt) for example in prepared.training.data]

  assert prompts('style=terse') == prompts_of(folder, 'terse') != prompts()
  assert prompts() == prompts_of(folder, '')
  with pytest.raises(ValueError, match=r"config\.template_arguments: .* reads no variable 'stile'; it reads style"):
    prompts('stile=terse')


def test_a_model_without_a_template_takes_no_arguments(tmp_path):
  tokenizer = tokenization.Tokenizer.load(variants.byte_level(tmp_path, chat_template=None))
  assert tokenizer.with_template_arguments({}) is tokenizer
  with pytest.raises(ValueError, match='the model has no chat template, so it takes no arguments'):
    tokenizer.with_template_arguments({'style': 'x'})


class Seen(Exception):
  """Ends a program at its first batch."""


@pytest.mark.parametrize(
  ('started', 'flags'),
  [
    (sample.PROGRAM, ['--prompts={}/rows.jsonl']),
    (label.PROGRAM, ['--prompts={}/rows.jsonl', '--reward=vader()', '--out={}/labelled.jsonl']),
    (evaluate.PROGRAM, ['--prompts={}/rows.jsonl', '--reward=vader()', '--out={}/eval', '--reference={}/model']),
  ],
)
def test_programs_sample_with_the_arguments(folder, monkeypatch, started, flags):
  seen = []

  def draw(sampler, placed, key, prompts):
    seen.append([list(row[:size]) for row, size in zip(np.asarray(prompts.tokens), prompts.length, strict=True)])
    raise Seen

  monkeypatch.setattr('alignjax.sampling.sharded.ShardedSampler.draw', draw)
  model = '--models={}/model' if started is evaluate.PROGRAM else '--model={}/model'
  flags = [flag.format(folder) for flag in (model, *flags)]
  program.execute(started, [started.name, *flags, '--template_arguments=style=terse'])
  assert seen[0][:2] == prompts_of(folder, 'terse')


def test_data_is_shown_and_stored_with_the_arguments(folder, tmp_path, capsys):
  flags = [f'--data={folder / "rows.jsonl"}', f'--model={folder / "model"}', '--template_arguments=style=terse']
  assert program.execute(data_program.PROGRAMS['inspect'], ['inspect', *flags]) == 0
  shown = capsys.readouterr().out
  length = len(prompts_of(folder, 'terse')[0])
  assert f'prompt, {length} tokens' in shown
  flags = [*flags, f'--token_cache={tmp_path}']
  assert program.execute(data_program.PROGRAMS['tokenize'], ['tokenize', *flags]) == 0
  (manifest,) = tmp_path.glob('*/manifest.json')
  assert json.loads(manifest.read_text())['content']['identity']['template_arguments'] == {'style': 'terse'}
