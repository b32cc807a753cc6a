"""Tests of `experiments.convert`: transcripts become rows that the library reads, or are counted."""

import gzip
import json
import pathlib
import subprocess
import sys

import pytest

from alignjax.data import report as report_lib
from alignjax.data import sources
from experiments import convert

START = '\n\nHuman: Hi there\n\nAssistant: Hello.\n\nHuman: Why?'


def transcripts(chosen, rejected):
  return {'chosen': chosen, 'rejected': rejected}


GOOD = transcripts(START + '\n\nAssistant: Because\n\nof you.  ', START + '\n\nAssistant: No.')


def write(path, *rows):
  content = b''.join(row if isinstance(row, bytes) else json.dumps(row).encode() + b'\n' for row in rows)
  path.write_bytes(gzip.compress(content) if path.name.endswith('.gz') else content)
  return str(path)


@pytest.mark.parametrize('source', ['hh.jsonl', 'hh.jsonl.gz'])
@pytest.mark.parametrize('output', ['train.jsonl', 'train.jsonl.gz'])
def test_transcripts_become_rows_that_the_library_reads(tmp_path, source, output):
  output = str(tmp_path / output)
  report = convert.convert(write(tmp_path / source, GOOD, GOOD), output, 'hh')
  pairs = list(sources.read_pairs(output, report_lib.DropReport()))
  assert len(pairs) == report.kept == report.read == 2
  assert pairs[0].prompt == [
    {'role': 'user', 'content': 'Hi there'},
    {'role': 'assistant', 'content': 'Hello.'},
    {'role': 'user', 'content': 'Why?'},
  ]
  assert pairs[0].responses == ('Because\n\nof you.', 'No.')


def test_same_input_gives_the_same_bytes(tmp_path):
  source = write(tmp_path / 'hh.jsonl', GOOD)
  first, second = tmp_path / 'a.jsonl.gz', tmp_path / 'b.jsonl.gz'
  convert.convert(source, str(first), 'hh')
  convert.convert(source, str(second), 'hh')
  assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
  ('chosen', 'rejected', 'reason'),
  [
    (START + '\n\nAssistant: a', START + '\n\nAssistant: a', 'identical_text'),
    (START + '\n\nAssistant: a', START + '\n\nAssistant:  a\n', 'identical_text'),
    (START + '\n\nAssistant: a', START + ' x\n\nAssistant: b', 'prompts_differ'),
    (START + '\n\nAssistant: a', START + '\n\nAssistant: b\n\nHuman: c\n\nAssistant: d', 'prompts_differ'),
    (START + '\n\nAssistant: ', START + '\n\nAssistant: b', 'empty_reply'),
    (START + '\n\nAssistant: a', START + '\n\nAssistant:', 'empty_reply'),
    ('\n\nHuman: \n\nAssistant: a', '\n\nHuman: \n\nAssistant: b', 'empty_turn'),
    (START + '\n\nHuman: a', START + '\n\nHuman: b', 'roles_do_not_alternate'),
    ('\n\nAssistant: a', '\n\nAssistant: b', 'roles_do_not_alternate'),
    ('\n\nHuman: a', '\n\nHuman: b', 'no_reply'),
  ],
)
def test_useless_transcripts_are_dropped_and_counted(tmp_path, chosen, rejected, reason):
  source = write(tmp_path / 'hh.jsonl', GOOD, transcripts(chosen, rejected), GOOD)
  report = convert.convert(source, str(tmp_path / 'train.jsonl'), 'hh')
  assert (report.read, report.kept) == (3, 2)
  assert list(report.dropped) == [reason]
  assert report.dropped[reason].examples[0].startswith(f'{source}:2: ')
  assert len((tmp_path / 'train.jsonl').read_text().splitlines()) == 2


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    (b'{', r':2: not JSON|:2: the last line'),
    ({'chosen': START}, r":2: field 'rejected' is missing"),
    (transcripts(3, START), r":2: field 'chosen': must be a string"),
    (transcripts(START + '\n\nAssistant: \ud800', START), r":2: field 'chosen': character \d+ is half"),
    (transcripts('Hello', 'World'), r":2: field 'chosen': must start with"),
    (transcripts('x' + START, START), r":2: field 'chosen': must start with"),
  ],
)
def test_malformed_rows_are_refused_or_skipped(tmp_path, row, message):
  source, output = write(tmp_path / 'hh.jsonl', GOOD, row), tmp_path / 'train.jsonl'
  with pytest.raises(sources.DataError, match=message):
    convert.convert(source, str(output), 'hh')
  assert [path.name for path in tmp_path.iterdir()] == ['hh.jsonl']  # nothing half written is left
  report = convert.convert(source, str(output), 'hh', on_error='skip')
  assert (report.read, report.kept) == (2, 1)
  assert len(output.read_text().splitlines()) == 1


def test_output_needs_a_known_name(tmp_path):
  with pytest.raises(ValueError, match=r'train\.csv: the output must have a name'):
    convert.convert(write(tmp_path / 'hh.jsonl', GOOD), str(tmp_path / 'train.csv'), 'hh')


def test_command_prints_the_report_and_fails_in_one_line(tmp_path):
  bad = transcripts('Hello', 'World')
  source, output = write(tmp_path / 'hh.jsonl', GOOD, bad), str(tmp_path / 'train.jsonl')
  command = [sys.executable, '-m', 'experiments.convert', f'--input={source}', f'--output={output}', '--format=hh']
  root = pathlib.Path(__file__).parents[2]
  failed = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
  assert failed.returncode == 1
  assert failed.stderr.strip().splitlines()[-1].startswith(f'convert: {source}:2: ')
  assert 'Traceback' not in failed.stderr
  done = subprocess.run([*command, '--on_error=skip'], capture_output=True, text=True, check=True, cwd=root)
  assert '2 rows read, 1 kept, 1 dropped' in done.stdout
  assert 'not_a_transcript' in done.stdout
