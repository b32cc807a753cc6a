"""Sampling from a folder: what is drawn, how it is told, and what is refused."""

import io
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from alignjax.commands import program, sample
from alignjax.data.reading import rows
from alignjax.data.tokens import tokenization
from alignjax.models import checkpoint_io, lora, peft, transformer
from alignjax.run import sampling_settings
from alignjax.sampling import strategies, text
from tests import assets
from tests.data import examples

PROMPTS = [
  'The film was',
  [{'role': 'user', 'content': 'Tell me.'}],
  'A good review explains what works and',
  'She said',
]


LOCAL = pathlib.Path(__file__).parents[2] / 'launch' / 'local.sh'


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> str:
  return str(assets.write_tiny_model(tmp_path_factory.mktemp('sample') / 'model', layers=1))


@pytest.fixture(scope='module')
def drawn(folder) -> list[text.Response]:
  return list(text.sample(folder, PROMPTS, text.Options(samples=2, max_new_tokens=4, seed=3)))


def test_every_prompt_gets_its_samples_in_order(drawn):
  assert [response.prompt for response in drawn] == [prompt for prompt in PROMPTS for _ in range(2)]
  assert len({response.response for response in drawn}) > 4  # a random model: the samples differ
  assert all(1 <= response.tokens <= 4 for response in drawn)
  assert all(response.tokens == 4 for response in drawn if not response.finished)


@pytest.mark.slow  # sampler_test.py compares them with the training forward
def test_log_probabilities_are_those_of_a_forward_pass(folder):
  """Greedy, so that the tokens can be found again, and must be the most probable ones."""
  config = checkpoint_io.load_config(folder)
  model, params = transformer.build(config), checkpoint_io.load_params(folder, config)
  tokenizer = tokenization.Tokenizer.load(folder)
  (response,) = text.sample(folder, PROMPTS[:1], text.Options(max_new_tokens=4, strategy=strategies.greedy()))
  ids = tokenizer.encode_prompt(PROMPTS[0])
  kernel = np.asarray(model.head(params).kernel, np.float64)
  hidden = jax.jit(model.hidden)
  tokens = np.zeros(response.tokens, np.int32)
  for i in range(response.tokens):
    arguments = ([ids], [len(ids)], [[tokens]], [[response.tokens]])
    logits = np.asarray(hidden(params, *map(jnp.asarray, arguments)), np.float64)[0, 0] @ kernel
    tokens[i] = logits[i].argmax()
  logp = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
  assert response.response == tokenizer.decode(tokens)
  assert response.logp == pytest.approx(logp[np.arange(len(tokens)), tokens].sum(), rel=1e-5)


def test_an_adapter_is_merged_into_the_model(folder, tmp_path, monkeypatch):
  config = checkpoint_io.load_config(folder)
  base, settings = checkpoint_io.load_params(folder, config), lora.LoRA(rank=2, alpha=4.0)
  factors = jax.tree.map(
    lambda leaf: np.ones(leaf.shape, np.float32),
    jax.eval_shape(lambda key: lora.init(key, base, settings), jax.random.key(0)),
  )
  peft.save(tmp_path / 'adapter', config, settings, factors, folder)
  read = []

  def sampled(model, prompts, options, compute_dtype, loading):
    read.append(checkpoint_io.load_params(model, config, loading=loading))
    return iter([])

  monkeypatch.setattr(text, 'sample', sampled)
  flags = [f'--model={folder}', f'--adapter={tmp_path / "adapter"}', '--prompt=Hi']
  assert program.execute(sample.PROGRAM, ['sample', *flags]) == 0
  merged = jax.jit(lora.merge, static_argnums=2)(base, factors, settings)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), read[0], merged)


def test_draws_depend_on_the_seed_and_the_place_but_not_on_the_batch(folder, drawn):
  def texts(prompts: list, seed: int) -> list[str]:
    responses = text.sample(folder, prompts, text.Options(samples=2, max_new_tokens=4, seed=seed))
    return [response.response for response in responses]

  expected = [response.response for response in drawn]
  # Longer prompts in the first batch, and a second batch, in which the first prompt stands again.
  more = texts([*PROMPTS, *['padding ' * 9] * 4, PROMPTS[0]], seed=3)
  assert more[: len(expected)] == expected
  assert more[-2:] != expected[:2]
  assert texts(PROMPTS, seed=4) != expected


@pytest.mark.parametrize(
  ('flag_values', 'kept'),
  [
    ({}, [0, 1, 2, 3]),
    ({'top_k': 2}, [0, 2]),
    ({'top_p': 0.9}, [0, 1, 2]),
    ({'top_p': 0.9, 'temperature': 0.2}, [0]),
    ({'greedy': True}, [0]),
    ({'strategy': 'chain(temperature(0.2), nucleus(0.9))'}, [0]),
  ],
)
def test_flags_become_strategies(flag_values, kept):
  logits = jnp.log(jnp.asarray([0.5, 0.2, 0.25, 0.05]))
  result = sampling_settings.build_strategy(sample.Settings(**flag_values))(logits)
  assert np.flatnonzero(np.isfinite(result)).tolist() == kept


@pytest.mark.parametrize(
  ('flag_values', 'message'),
  [
    ({'greedy': True, 'temperature': 0.5}, '--greedy leaves nothing to draw'),
    ({'greedy': True, 'top_k': 3}, '--greedy leaves nothing to draw'),
    ({'greedy': True, 'strategy': 'greedy()'}, '--strategy replaces --greedy'),
    ({'strategy': 'gredy()'}, "unknown name 'gredy'; did you mean greedy"),
    ({'temperature': 0.0}, 'temperature'),
    ({'top_p': 0.0}, 'nucleus'),
    ({'top_p': 1.5}, 'nucleus'),
  ],
)
def test_flags_that_contradict_or_cannot_be(flag_values, message):
  with pytest.raises(ValueError, match=message):
    sampling_settings.build_strategy(sample.Settings(**flag_values))


def test_a_token_that_the_model_has_no_embedding_for_is_refused(tmp_path):
  """JAX would read another row of the embedding without a word."""
  folder = assets.write_tiny_model(tmp_path / 'model', layers=1)
  tokenizer = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  tokenizer.add_special_tokens(['<|think|>'])
  tokenizer.save(str(folder / 'tokenizer.json'))
  with pytest.raises(
    ValueError, match=r"a prompt has token id 384 \('<\|think\|>'\), but the model has 384 embeddings"
  ):
    next(text.sample(folder, ['Hello <|think|>']))


def test_prompts_are_read_from_a_file(tmp_path):
  rows = [{'prompt': 'one'}, {'prompt': PROMPTS[1], 'chosen': 'x', 'rejected': 'y'}]
  (tmp_path / 'p.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  assert text.read_prompts(str(tmp_path / 'p.jsonl')) == ['one', PROMPTS[1]]


def test_prompts_are_read_from_data_of_every_form(tmp_path):
  path = tmp_path / 'train.jsonl'
  path.write_text(json.dumps(examples.HH) + '\n')
  (prompt,) = text.read_prompts(f'hh:{path}')
  assert [message['role'] for message in prompt] == ['user', 'assistant', 'user']
  path.write_text(json.dumps({'prompt': 'one', 'question': 'x'}) + '\n')
  assert text.read_prompts(str(path), ['question']) == ['one']
  path.write_text(json.dumps(examples.HH | {'rejected': examples.HH['chosen']}) + '\n')
  with pytest.raises(ValueError, match='no prompts are left: 1 rows read, 0 kept'):
    text.read_prompts(f'hh:{path}')


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ('{"prompt": ""}', "p.jsonl:2: field 'prompt': the prompt is empty"),
    ('{"prompt": 3}', "p.jsonl:2: field 'prompt'"),
    ('{"prompt": []}', "p.jsonl:2: field 'prompt'"),
    ('{}', "p.jsonl:2: field 'prompt'"),
    ('{"prompt": [{"role": "wizard", "content": "x"}]}', r"p.jsonl:2: field 'prompt\[0\].role': 'wizard' is not one"),
    ('{"prompt": [{"role": "user", "content": 3}]}', r"p.jsonl:2: field 'prompt\[0\].content'"),
    ('{"prompt": ["x"]}', r"p.jsonl:2: field 'prompt\[0\]'"),
    ('{"question": "x"}', "p.jsonl:2: field 'prompt' is missing.*unknown fields: 'question'"),
    ('{"prompt": "x"', 'p.jsonl:2:'),
  ],
)
def test_bad_prompts_are_named(tmp_path, row, message):
  (tmp_path / 'p.jsonl').write_text('{"prompt": "fine"}\n' + row + '\n')
  with pytest.raises(rows.DataError, match=message):
    text.read_prompts(str(tmp_path / 'p.jsonl'))


def test_lines_are_json(drawn):
  stream = io.StringIO()
  text.write(iter(drawn), stream)
  rows = [json.loads(line) for line in stream.getvalue().splitlines()]
  assert [text.Response(**row) for row in rows] == drawn


def run(*arguments: str) -> int:
  """The program with a command line, in this process."""
  return program.execute(sample.PROGRAM, ['sample', *arguments])


def test_the_program_writes_a_file_or_prints(folder, tmp_path, capsys):
  arguments = (f'--model={folder}', '--prompt=Hello', '--samples=2', '--max_new_tokens=4')
  assert run(*arguments, f'--output={tmp_path / "o.jsonl"}') == 0
  rows = [json.loads(line) for line in (tmp_path / 'o.jsonl').read_text(encoding='utf-8').splitlines()]
  assert [row['prompt'] for row in rows] == [[{'role': 'user', 'content': 'Hello'}]] * 2
  assert [path.name for path in tmp_path.iterdir()] == ['o.jsonl']
  assert run(*arguments) == 0
  output = capsys.readouterr().out
  assert output.count('--- Hello\n') == 2
  assert f'log-probability {rows[0]["logp"]:.2f}]' in output


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--model=nowhere', '--prompt=x'], 'nowhere'),
    (['--model=nowhere'], 'give either --prompt or --prompts'),
    (['--model=nowhere', '--prompt=x', '--prompts=y'], 'give either --prompt or --prompts'),
    (['--model=.', '--prompts=missing.jsonl'], 'missing.jsonl'),
    (['--prompt=x'], '--model is missing: Model: a folder'),
    (['--model=nowhere', 'hello'], "unexpected argument 'hello': give settings as --<name>=<value>"),
    (['--model=nowhere', '--prompt=x', '--name=a'], 'give --benchmark, too'),
    (['--model=nowhere', '--prompt=x', '--benchmark=mt_bench'], 'needs the questions of the benchmark (--prompts)'),
    (
      ['--model=nowhere', '--prompts=x', '--output=y', '--benchmark=mt_bench', '--greedy'],
      'sets the temperature by the category of a question',
    ),
    (['--model=nowhere', '--prompt=x', '--samples=0'], '--samples = 0: must be at least 1'),
    (['--model=nowhere', '--prompt=x', '--samples=two'], 'samples'),
    (['--model=nowhere', '--promt=x'], 'did you mean --prompt?'),
  ],
)
def test_errors_of_the_user_are_one_message_and_exit_code_1(capsys, arguments, message):
  assert run(*arguments) == 1
  error = capsys.readouterr().err
  assert message in error
  assert 'Traceback' not in error


def answer(folder: str, tmp_path: pathlib.Path, benchmark: str, questions: list[dict], *arguments: str) -> list[dict]:
  """Answers questions, and returns the rows of the file."""
  kind = 'json' if benchmark == 'alpaca_eval' else 'jsonl'
  source, output = tmp_path / f'questions.{kind}', tmp_path / f'answers.{kind}'
  if kind == 'json':
    source.write_text(json.dumps(questions))
  else:
    source.write_text(''.join(json.dumps(question) + '\n' for question in questions))
  flags = (f'--benchmark={benchmark}', f'--prompts={source}', f'--output={output}', '--max_new_tokens=4')
  assert run(f'--model={folder}', *flags, *arguments) == 0
  written = output.read_text(encoding='utf-8')
  return json.loads(written) if kind == 'json' else [json.loads(line) for line in written.splitlines()]


def drawn_apart(folder: str, prompts: list, strategy: strategies.Strategy | None = None) -> list[text.Response]:
  return list(text.sample(folder, prompts, text.Options(max_new_tokens=4, strategy=strategy or strategies.chain())))


def asked(*turns: str) -> list[dict]:
  return [{'role': ('user', 'assistant')[i % 2], 'content': turn} for i, turn in enumerate(turns)]


def test_answers_for_alpaca_eval(folder, tmp_path):
  questions = [{'instruction': f'Say {i}.', 'output': '', 'generator': 'gpt4', 'dataset': 'koala'} for i in range(2)]
  rows = answer(folder, tmp_path, 'alpaca_eval', questions, '--name=mine', '--greedy')
  expected = drawn_apart(folder, [asked(question['instruction']) for question in questions], strategies.greedy())
  assert [row['output'] for row in rows] == [response.response for response in expected]
  assert {row['generator'] for row in rows} == {'mine'}


@pytest.mark.slow  # the questions and rows are checked in tests/evaluation/benchmarks_test.py
def test_answers_for_arena_hard(folder, tmp_path):
  questions = [{'uid': f'u{i}', 'category': 'hard_prompt', 'prompt': f'Explain {i}.'} for i in range(2)]
  rows = answer(folder, tmp_path, 'arena_hard', questions)
  expected = drawn_apart(folder, [asked(question['prompt']) for question in questions])
  assert [row['messages'][-1]['content']['answer'] for row in rows] == [response.response for response in expected]
  assert [row['metadata']['token_len'] for row in rows] == [response.tokens for response in expected]
  assert [row['uid'] for row in rows] == ['u0', 'u1']
  assert {row['model'] for row in rows} == {pathlib.Path(folder).name}


@pytest.mark.slow  # compiles two programs twice; tests/run/benchmark_answers_test.py covers turns and temperatures
def test_answers_for_mt_bench_have_two_turns_and_the_temperature_of_the_category(folder, tmp_path):
  categories = ('coding', 'writing', 'math')
  questions = [
    {'question_id': 81 + i, 'category': category, 'turns': [f'Write {i}.', f'And {i}?']}
    for i, category in enumerate(categories)
  ]
  rows = answer(folder, tmp_path, 'mt_bench', questions)
  assert [row['question_id'] for row in rows] == [81, 82, 83]
  for strategy, numbers in ((strategies.greedy(), [0, 2]), (strategies.temperature(0.7), [1])):
    first = drawn_apart(folder, [asked(f'Write {i}.') for i in numbers], strategy)
    first = [response.response for response in first]
    prompts = [asked(f'Write {i}.', said, f'And {i}?') for i, said in zip(numbers, first, strict=True)]
    second = [response.response for response in drawn_apart(folder, prompts, strategy)]
    assert [rows[i]['choices'][0]['turns'] for i in numbers] == [
      list(turns) for turns in zip(first, second, strict=True)
    ]


@pytest.mark.slow  # tests/commands/train_test.py starts two processes; draws depend on rows alone, as above
def test_several_processes_write_the_file_that_one_writes(folder, tmp_path):
  prompts = tmp_path / 'prompts.jsonl'
  prompts.write_text(''.join(json.dumps({'prompt': f'The film {i} was'}) + '\n' for i in range(11)))
  written = []
  for count in (1, 2, 4):
    output = tmp_path / f'{count}.jsonl'
    flags = [f'--model={folder}', f'--prompts={prompts}', f'--output={output}', '--samples=2', '--batch_size=8']
    environment = os.environ | {'PYTHON': sys.executable, 'DEVICES_PER_PROCESS': str(4 // count), 'XLA_FLAGS': ''}
    command = [str(LOCAL), str(count), '--module=sample', '--', *flags, '--max_new_tokens=6']
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    written.append(output.read_bytes())
  assert written[0].count(b'\n') == 22
  assert written[1] == written[0]
  assert written[2] == written[0]
