"""The program for data: what each of its commands prints, writes and refuses."""

import gzip
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

from alignjax.commands import data, program
from alignjax.data.reading import catalogue, drops, sources
from tests import assets
from tests.data import variants

GOOD = {'prompt': 'Once', 'chosen': ' upon a time', 'rejected': ' a'}
SAME = GOOD | {'rejected': ' upon a time'}
CHAT = [
  {'prompt': [{'role': 'user', 'content': 'Tell me.'}], 'chosen': f'A good day {i}', 'rejected': 'A book'}
  for i in range(8)
]


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> str:
  return str(assets.write_tiny_model(tmp_path_factory.mktemp('data') / 'model', layers=1))


@pytest.fixture
def write(tmp_path):
  def write(*rows, name='rows.jsonl') -> str:
    path = tmp_path / name
    path.write_text(''.join(row if isinstance(row, str) else json.dumps(row) + '\n' for row in rows))
    return str(path)

  return write


def run(*arguments: str) -> int:
  """The program with a command line, in this process."""
  return program.execute(data.PROGRAM, ['data', *arguments])


def read(expression):
  pairs = sources.read_examples(expression, drops.DropReport())
  return [pair._replace(path='', line=0) for pair in pairs]


# --- validate


def test_validate_says_what_became_of_the_rows(write, capsys):
  assert run('validate', f'--data={write(GOOD, GOOD, SAME)}') == 0
  output = capsys.readouterr().out
  assert output.startswith('3 rows read, 2 kept, 1 dropped\n')
  assert 'identical_text' in output
  assert ' rows/s, ' in output


def test_validate_stops_at_a_malformed_row_or_counts_it(write, capsys):
  path = write(GOOD, GOOD | {'chosen': 3})
  assert run('validate', f'--data={path}') == 1
  assert f"error: {path}:2: field 'chosen'" in capsys.readouterr().err
  assert run('validate', f'--data={path}', '--on_error=skip') == 0
  assert '2 rows read, 1 kept, 1 dropped\n  dropped         1  wrong_type' in capsys.readouterr().out


def test_validate_fails_where_nothing_is_left(write, capsys):
  assert run('validate', f'--data={write(SAME)}') == 1
  outputs = capsys.readouterr()
  assert '1 rows read, 0 kept' in outputs.out
  assert 'no row is left to train on' in outputs.err


def test_several_sources_forms_and_ignored_fields(write, capsys):
  more = write({'responses': ['a', 'b'], 'prompt': 'c', 'id': 3, 'who': 4}, name='more.jsonl')
  sources_of = ['--data=' + write(GOOD), f'--data=ranked:{more}']
  assert run('validate', *sources_of, '--ignore_fields=id,who') == 0
  assert capsys.readouterr().out.startswith('2 rows read, 2 kept')
  assert run('validate', *sources_of, '--ignore_fields=id') == 1
  assert "'who': unknown" in capsys.readouterr().err


# --- inspect


def test_inspect_shows_counts_lengths_and_the_first_pair(model, write, tmp_path, capsys):
  path = write(*CHAT, CHAT[0] | {'chosen': 'word ' * 60})
  folder = tmp_path / 'out'
  assert run('inspect', f'--model={model}', f'--data={path}', '--max_response=40', f'--out={folder}') == 0
  output = capsys.readouterr().out
  assert '9 rows read, 8 kept, 1 dropped\n  dropped         1  response_too_long' in output
  prompt = output[output.index('\nprompt, ') :]
  assert prompt.index('^<|im_start|>/1') < prompt.index('\nchosen, ') < prompt.index('\nrejected, ')
  assert prompt.count('<<|im_end|>/2>') == 2  # one a response, none in the prompt, where it is not trained
  assert '\ntokens                 min' in output
  assert '\x1b' not in output  # not a terminal
  assert output.endswith(f'\nwrote {folder / "lengths.png"}\n')
  assert (folder / 'lengths.png').read_bytes().startswith(b'\x89PNG\r\n')


def test_inspect_shows_the_row_that_is_asked_for(model, write, monkeypatch, capsys):
  monkeypatch.setenv('COLUMNS', '500')  # no line breaks
  path = write(*CHAT, CHAT[0] | {'chosen': 'word ' * 60}, CHAT[3] | {'chosen': 'Z'})
  arguments = ('inspect', f'--model={model}', f'--data={path}', '--max_response=40')
  assert run(*arguments, '--row=10') == 0
  output = capsys.readouterr().out
  assert f'\nexample, {path}:10: label ' in output
  assert '[Z/' in output
  for row in (9, 11):  # dropped, and past the end
    assert run(*arguments, f'--row={row}') == 1
    assert f'--row={row}: no example is from row {row} of {path}' in capsys.readouterr().err


def test_inspect_in_colour(model, write, capsys):
  path = write(CHAT[0])
  assert run('inspect', f'--model={model}', f'--data={path}', '--color=always') == 0
  output = capsys.readouterr().out
  assert '\x1b[1;37;41m<|im_end|>/2' in output
  assert '<<|im_end|>' not in output
  assert run('inspect', f'--model={model}', f'--data={path}', '--color=never') == 0
  assert '\x1b' not in capsys.readouterr().out


def test_inspect_takes_the_limits_of_training(model, write, capsys):
  assert run('inspect', f'--model={model}', f'--data={write(*CHAT)}', '--max_prompt=5') == 0
  output = capsys.readouterr().out
  assert '8  prompt_truncated ' in output
  assert '\nprompt, 5 tokens\n' in output


def test_inspect_without_matplotlib(model, write, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  arguments = ('inspect', f'--model={model}', f'--data={write(*CHAT)}')
  assert run(*arguments, f'--out={tmp_path / "out"}') == 1
  outputs = capsys.readouterr()
  assert "pip install 'alignjax[demo]', or leave out --out" in outputs.err
  assert outputs.out == ''  # it is said before the work
  assert run(*arguments) == 0


# --- tokenize


def test_tokens_are_made_once(model, write, tmp_path, capsys):
  path = write(*CHAT, CHAT[0] | {'chosen': 'word ' * 60})
  arguments = ('tokenize', f'--model={model}', f'--data={path}', '--max_response=40', f'--token_cache={tmp_path / "c"}')
  assert run(*arguments) == 0
  first = capsys.readouterr().out
  assert first.startswith(f'tokenising {path} into {tmp_path / "c"}')
  assert '9 rows read, 8 kept, 1 dropped' in first
  assert run(*arguments) == 0
  assert capsys.readouterr().out == first[first.index('9 rows read') :]


def test_tokens_that_cannot_be_kept(model, write, tmp_path, capsys):
  cache = f'--token_cache={tmp_path / "c"}'
  assert run('tokenize', f'--model={model}', '--data=tfds:name', cache) == 1
  assert 'tfds:name is not a local data file, so it cannot be tokenised beforehand' in capsys.readouterr().err
  dated = tmp_path / 'dated'
  variants.byte_level(dated, template="{{ strftime_now('%Y') }}" + variants.TURNS)
  assets.write_tiny_model(dated.with_name('config'), layers=1)
  shutil.copy(dated.with_name('config') / 'config.json', dated)
  assert run('tokenize', f'--model={dated}', f'--data={write(*CHAT)}', cache) == 1
  assert 'the chat template prints the date' in capsys.readouterr().err
  assert not (tmp_path / 'c').exists()


@pytest.mark.slow  # artefact_test.py interrupts, and lets two wait for each other, in one process
def test_killed_processes_leave_nothing_that_is_used_and_of_two_one_waits(model, write, tmp_path):
  path, cache = write(*CHAT * 500), tmp_path / 'c'
  arguments = ['-m', 'alignjax', 'data', 'tokenize', f'--model={model}', f'--data={path}', f'--token_cache={cache}']
  root = pathlib.Path(__file__).parents[2]

  def start() -> subprocess.Popen:
    environment = os.environ | {'PYTHONPATH': str(root)}
    return subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, cwd=root, env=environment)

  for kill in range(4):
    process = start()
    while not list(cache.glob('.*.partial')):
      assert process.poll() is None
      time.sleep(0.01)
    time.sleep(0.3 * kill)
    process.kill()
    process.communicate()
    assert not list(cache.glob('[!.]*'))
  outputs = [process.communicate(timeout=120)[0] for process in [start(), start()]]
  assert sum('tokenising' in output for output in outputs) == 1
  assert all('4000 rows read, 4000 kept' in output for output in outputs)
  assert len(list(cache.iterdir())) == 1


# --- convert


@pytest.mark.parametrize('name', ['out.jsonl', 'out.jsonl.gz'])
@pytest.mark.parametrize(
  ('form', 'row', 'read_as'),
  [
    ('preference', GOOD | {'label': 0.1, 'weight': 0.3, 'score': [1, 0.1], 'behaviour_logp': [-1.5, 0]}, ''),
    ('preference', CHAT[0] | {'margin': 0.7}, ''),
    ('hh', {side: f'\n\nHuman: “Q”?\n\nAssistant: {side}' for side in ('chosen', 'rejected')}, ''),
    ('unpaired', {'prompt': 'a', 'completion': 'b', 'label': False}, 'unpaired:'),
    ('ranked', {'prompt': 'a', 'responses': ['b', 'c', 'd']}, 'ranked:'),
    ('scored', {'prompt': 'a', 'responses': ['b', 'c', 'd'], 'scores': [1, 3, 2]}, 'scored:'),
  ],
)
def test_convert_writes_equal_pairs(write, tmp_path, capsys, name, form, row, read_as):
  path, out = write(row, row), tmp_path / name
  assert run('convert', f'--data={form}:{path}', f'--out={out}') == 0
  assert capsys.readouterr().out.endswith(f'wrote {out}; read it with --data={read_as}{out}\n')
  assert read(f'{read_as}{out}') == read(f'{form}:{path}')
  assert len(read(f'{read_as}{out}')) == 2


def test_converting_twice_gives_the_same_bytes(write, tmp_path):
  for name in ('one.jsonl.gz', 'two.jsonl.gz'):
    assert run('convert', f'--data={write(*CHAT)}', f'--out={tmp_path / name}') == 0
  one, two = ((tmp_path / name).read_bytes() for name in ('one.jsonl.gz', 'two.jsonl.gz'))
  assert one == two
  assert one[4:8] == bytes(4)  # where the time would be
  assert len(gzip.decompress(one).splitlines()) == len(CHAT)


def test_convert_replaces_a_file_only_when_told_and_only_by_a_whole_one(write, tmp_path, capsys):
  out = tmp_path / 'out.jsonl'
  out.write_text('mine')
  assert run('convert', f'--data={write(GOOD)}', f'--out={out}') == 1
  assert 'the file exists; choose another --out, or give --overwrite' in capsys.readouterr().err
  assert run('convert', f'--data={write(GOOD, "broken")}', f'--out={out}', '--overwrite') == 1
  assert out.read_text() == 'mine'
  assert run('convert', f'--data={write(GOOD)}', f'--out={out}', '--overwrite') == 0
  assert json.loads(out.read_text()) == GOOD
  assert sorted(path.name for path in tmp_path.iterdir()) == ['out.jsonl', 'rows.jsonl']


@pytest.mark.parametrize(
  ('rows', 'out', 'message'),
  [
    ([GOOD], 'out.json', 'the name must end with .jsonl or .jsonl.gz'),
    ([SAME], 'out.jsonl', 'no row is left to write'),
  ],
)
def test_convert_refuses(write, tmp_path, capsys, rows, out, message):
  assert run('convert', f'--data={write(*rows)}', f'--out={tmp_path / out}') == 1
  assert message in capsys.readouterr().err
  assert [path.name for path in tmp_path.iterdir()] == ['rows.jsonl']


# --- build


def test_build_prepares_what_the_catalogue_reads(write, tmp_path, capsys, monkeypatch):
  write(GOOD, SAME, name='train.jsonl')
  build = ('build', 'jsonl_preferences', f'--manual_dir={tmp_path}')
  assert run(*build, f'--data_dir={tmp_path / "here"}') == 0
  place = tmp_path / 'here' / 'jsonl_preferences' / 'text' / '1.0.0'
  output = capsys.readouterr().out
  assert output.startswith('train: wrote 1 examples; 2 rows read, 1 kept, 1 dropped\n')
  assert output.endswith(f'wrote {place}; read it with --data=tfds:{place}:train\n')
  assert list(catalogue.read(f'{place}:train')) == [(1, GOOD)]
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'there'))
  assert run(*build) == 0
  assert capsys.readouterr().out.endswith('read it with --data=tfds:jsonl_preferences/text:train\n')
  assert list(catalogue.read('jsonl_preferences/text:train')) == [(1, GOOD)]


def test_build_counts_malformed_rows_when_told(write, tmp_path, capsys):
  write(GOOD, {'prompt': 'x'}, name='train.jsonl')
  build = ('build', 'jsonl_preferences', f'--manual_dir={tmp_path}', f'--data_dir={tmp_path / "here"}')
  assert run(*build) == 1
  assert f'{tmp_path}/train.jsonl:2: ' in capsys.readouterr().err
  assert run(*build, '--on_error=skip') == 0
  assert 'missing_field' in capsys.readouterr().out


# --- what is refused


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--verbosity=1'], 'alignjax data needs a program, one of validate, inspect, tokenize, convert, build'),
    (['chek'], "alignjax data has no program 'chek'. It has validate, "),
    (['validat'], "alignjax data has no program 'validat'; did you mean validate?"),
    (['validate'], '--data is missing: Data to read, [form:]location'),
    (
      ['validate', 'rows.jsonl', '--data=x.jsonl'],
      "unexpected argument 'rows.jsonl': give settings as --<name>=<value>",
    ),
    (['validate', '--data=missing.jsonl'], 'missing.jsonl'),
    (
      ['validate', '--data=x.jsonl', '--model=m'],
      '--model is not a flag of data validate: it takes --import, --data, --ignore_fields',
    ),
    (['convert', '--data=x.jsonl'], '--out is missing: File to write'),
    (['inspect', '--data=x.jsonl'], '--model is missing: Model: a folder in Hugging Face format'),
    (['inspect', '--data=x.jsonl', '--model=nowhere'], 'nowhere'),
    (['build'], 'give the name of a dataset after `build`: hh_rlhf/harmless-base'),
    (['build', 'hh_rlhf'], 'give --manual_dir. Download train.jsonl.gz'),
    (['build', 'unheard_of', '--manual_dir=x'], 'unheard_of: no such builder'),
    (['build', 'hh_rlhf', '--data=x.jsonl'], '--data is not a flag of data build: it takes --import, --dataset'),
  ],
)
def test_errors_of_the_user_are_one_message_and_exit_code_1(capsys, arguments, message):
  assert run(*arguments) == 1
  error = capsys.readouterr().err
  assert message in error
  assert 'Traceback' not in error
