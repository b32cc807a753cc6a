"""Tokens on disk: equal to those in memory, never stale, never damaged, made once."""

import concurrent.futures
import dataclasses
import datetime
import json
import os
import pathlib
import shutil
import threading

import jax
import numpy as np
import pytest

from alignjax import storage
from alignjax.data.batches import batching
from alignjax.data.reading import drops, fingerprints, generic_forms, readers, rows, sources
from alignjax.data.tokens import artefact, encoding, tokenization
from tests import damage
from tests.data import variants

LIMITS = encoding.Limits(24, 16, 384)
WORDS = ('the', 'film', 'was', 'good', 'and', 'never', 'dull')
MAKING = artefact.Making(lambda text: None)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp('artefact')
  variants.byte_level(folder / 'model')
  draw = np.random.default_rng(0)

  def text(most):
    return ' '.join(draw.choice(WORDS, draw.integers(1, most)))

  def write(name, **fields):
    lines = [
      {'prompt': text(9), 'chosen': ' ' + text(7), 'rejected': ' ' + text(7)}
      | {field: make() for field, make in fields.items()}
      for _ in range(30)
    ]
    (folder / name).write_text(''.join(json.dumps(line) + '\n' for line in lines))

  write('plain.jsonl')
  write('more.jsonl', label=lambda: round(draw.random(), 3), weight=lambda: 2)
  write('scored.jsonl', score=lambda: draw.normal(size=2).tolist(), behaviour_logp=lambda: [-1.5, -2.5])
  singles = [{'prompt': 'Once', 'completion': f' {text(5)}', 'label': i % 2} for i in range(9)]
  (folder / 'singles.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in singles))
  return folder


@pytest.fixture(scope='module')
def tokenizer(folder):
  return tokenization.Tokenizer.load(folder / 'model')


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
  monkeypatch.setattr(encoding, 'CHUNK', 8)


def request_of(folder, tokenizer, *names, **overrides):
  expressions = tuple(str(folder / name) for name in names or ('plain.jsonl',))
  return artefact.Request(**{'sources': expressions, 'tokenizer': tokenizer, 'limits': LIMITS} | overrides)


def in_memory(request):
  report = drops.DropReport()
  examples = sources.read_examples(
    request.sources, report, on_error=request.on_error, ignore_fields=request.ignore_fields
  )
  return encoding.tokenize(examples, request.tokenizer, request.limits, report, on_error=request.on_error)


def obtain(root, request, making=MAKING):
  return artefact.obtain(root, request, making)[1]


def contents(root):
  return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*') if path.is_file()}


def bytes_of(batches):
  return [leaf.tobytes() for batch in batches for leaf in jax.tree.leaves((batch.data, batch.ids))]


def assert_same(found, expected):
  assert found.report == expected.report
  assert str(found.report) == str(expected.report)
  for name in (*artefact._DTYPES, 'lengths'):
    left, right = getattr(found, name), getattr(expected, name)
    assert (left is None) == (right is None), name
    if left is not None:
      assert left.dtype == right.dtype, name
      np.testing.assert_array_equal(left, right, err_msg=name)
  assert found.fingerprint == expected.fingerprint
  assert [found.origin(i) for i in range(len(found))] == [expected.origin(i) for i in range(len(expected))]
  spec = batching.BatchSpec(4, epochs=2)
  batches = [batching.make_batches(each, spec) for each in (found, expected)]
  assert batches[0].plan.buckets == batches[1].plan.buckets
  assert bytes_of(batches[0]) == bytes_of(batches[1])


# --- equal to tokens in memory


@pytest.mark.parametrize('names', [('plain.jsonl',), ('more.jsonl', 'plain.jsonl'), ('scored.jsonl',)])
def test_tokens_on_disk_are_those_in_memory(tmp_path, folder, tokenizer, names):
  request = request_of(folder, tokenizer, *names)
  for _ in range(2):  # made, then found
    assert_same(obtain(tmp_path, request), in_memory(request))


def test_single_responses_and_dropped_rows(tmp_path, folder, tokenizer):
  request = request_of(folder, tokenizer, sources=(f'unpaired:{folder / "singles.jsonl"}',))
  assert_same(obtain(tmp_path, request), in_memory(request))
  short = request_of(folder, tokenizer, 'plain.jsonl', 'more.jsonl', limits=encoding.Limits(8, 12, 384))
  found = obtain(tmp_path, short)
  assert found.report.dropped['response_too_long'].count > 3
  assert_same(found, in_memory(short))


def test_the_kept_fingerprint_is_that_of_the_arrays(tmp_path, folder, tokenizer):
  found = obtain(tmp_path, request_of(folder, tokenizer))
  kept = vars(found).pop('fingerprint')
  assert found.fingerprint == kept


def test_a_row_is_not_read_before_it_is_used(tmp_path, folder, tokenizer):
  found = obtain(tmp_path, request_of(folder, tokenizer))
  for name in artefact._DTYPES:
    column = getattr(found, name)
    assert column is None or isinstance(column.base, np.memmap), name
  assert type(found.label) is np.ndarray


class Threads(concurrent.futures.ThreadPoolExecutor):
  """Workers that start at once."""

  def __init__(self, workers, context, initializer, arguments):
    super().__init__(workers, initializer=initializer, initargs=arguments)


def test_the_number_of_workers_changes_nothing(tmp_path, folder, tokenizer, monkeypatch):
  monkeypatch.setattr(concurrent.futures, 'ProcessPoolExecutor', Threads)
  monkeypatch.setattr(encoding.signal, 'signal', lambda *args: None)
  monkeypatch.delenv('TOKENIZERS_PARALLELISM', raising=False)
  request = request_of(folder, tokenizer, 'plain.jsonl', 'more.jsonl', limits=encoding.Limits(8, 12, 384))
  making = artefact.Making(lambda text: None, workers=2)
  assert_same(obtain(tmp_path / 'two', request, making), in_memory(request))
  obtain(tmp_path / 'one', request)
  assert contents(tmp_path / 'one') == contents(tmp_path / 'two')
  bad = tmp_path / 'bad.jsonl'
  lines = (folder / 'plain.jsonl').read_text().splitlines()
  lines[3] = json.dumps({'prompt': [{'role': 'oracle', 'content': 'x'}], 'chosen': 'a', 'rejected': 'b'})
  lines[11] = '{}'
  bad.write_text('\n'.join(lines))
  with pytest.raises(rows.DataError) as caught:
    obtain(tmp_path / 'two', request_of(tmp_path, tokenizer, 'bad.jsonl'), making)
  assert caught.value.origin == f'{bad}:4'


def test_workers_have_the_arguments_of_the_chat_template(tmp_path, folder, monkeypatch):
  monkeypatch.setattr(concurrent.futures, 'ProcessPoolExecutor', Threads)
  monkeypatch.setattr(encoding.signal, 'signal', lambda *args: None)
  monkeypatch.setenv('TOKENIZERS_PARALLELISM', 'false')
  model = variants.byte_level(tmp_path / 'model', template='{{ style }}' + variants.TURNS + variants.GENERATION)
  tokenizer = tokenization.Tokenizer.load(model).with_template_arguments({'style': 'terse'})
  request = request_of(folder, tokenizer)
  assert_same(obtain(tmp_path, request, artefact.Making(lambda text: None, workers=2)), in_memory(request))


@pytest.mark.slow  # the tests above use threads as workers
def test_workers_that_are_processes(tmp_path, folder, tokenizer):
  request = request_of(folder, tokenizer, 'plain.jsonl', 'more.jsonl')
  assert_same(obtain(tmp_path, request, artefact.Making(print, workers=2)), in_memory(request))


# --- what determines the tokens


def test_a_file_may_move(tmp_path, folder, tokenizer):
  request = request_of(folder, tokenizer, 'more.jsonl', 'plain.jsonl', limits=encoding.Limits(8, 12, 384))
  name, _ = artefact.obtain(tmp_path / 'cache', request, MAKING)
  moved = tmp_path / 'elsewhere'
  moved.mkdir()
  for path in ('plain.jsonl', 'more.jsonl'):
    shutil.copy(folder / path, moved)
  again = request_of(moved, tokenizer, 'more.jsonl', 'plain.jsonl', limits=request.limits)
  found_name, found = artefact.obtain(tmp_path / 'cache', again, artefact.Making(pytest.fail))
  assert found_name == name
  assert_same(found, in_memory(again))
  assert str(moved) in str(found.report)


def test_a_changed_byte_is_never_missed(tmp_path, folder, tokenizer):
  """Not even if the size and the time of the file are those of before."""
  path = tmp_path / 'plain.jsonl'
  shutil.copy(folder / 'plain.jsonl', path)
  request, before = request_of(tmp_path, tokenizer), path.stat()
  first = artefact.identity(request)
  path.write_bytes(path.read_bytes().replace(b'good', b'dull', 1))
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
  assert path.stat().st_size == before.st_size
  assert artefact.identity(request) != first


PARTS = {'columns': 'preference[chosen=rejected]:{}', 'rows': '{}[:99]', 'split': '{}[rest:5%]'}


@pytest.mark.parametrize(
  'change',
  [
    'limit',
    'truncate',
    'vocabulary',
    'skip',
    'ignored',
    'unknown',
    'form',
    'columns',
    'rows',
    'split',
    'ending',
    'order',
    'template',
    'arguments',
    'date',
    'code',
  ],
)
def test_whatever_determines_the_tokens_is_in_the_name(tmp_path, folder, tokenizer, change, monkeypatch):
  limits = {
    'limit': encoding.Limits(24, 15, 384),
    'truncate': encoding.Limits(24, 16, 384, truncate_response=True),
    'vocabulary': encoding.Limits(24, 16, 400),
  }
  request = request_of(folder, tokenizer, 'plain.jsonl', 'more.jsonl')
  options = {'limits': limits.get(change, LIMITS)}
  if change == 'skip':
    options['on_error'] = 'skip'
  elif change == 'ignored':
    options['ignore_fields'] = ('x',)
  elif change == 'unknown':
    options['unknown_columns'] = 'note'
  elif change in PARTS:
    options['sources'] = (PARTS[change].format(folder / 'plain.jsonl'), str(folder / 'more.jsonl'))
  elif change == 'form':
    options['sources'] = (f'hh:{folder / "plain.jsonl"}', str(folder / 'more.jsonl'))
  elif change == 'ending':
    shutil.copy(folder / 'plain.jsonl', tmp_path / 'plain.json')
    options['sources'] = (str(tmp_path / 'plain.json'), str(folder / 'more.jsonl'))
  elif change == 'order':
    options['sources'] = request.sources[::-1]
  elif change == 'template':
    template = variants.TURNS + variants.GENERATION + ' '
    options['tokenizer'] = tokenization.Tokenizer.load(variants.byte_level(tmp_path / 'model', template=template))
  elif change == 'arguments':
    template = '{{ style }}' + variants.TURNS
    plain = tokenization.Tokenizer.load(variants.byte_level(tmp_path / 'model', template=template))
    request = request_of(folder, plain, 'plain.jsonl', 'more.jsonl')
    options['tokenizer'] = plain.with_template_arguments({'style': 'x'})
  elif change == 'date':
    template = "{{ strftime_now('%Y') }}" + variants.TURNS
    model = variants.byte_level(tmp_path / 'model', template=template)
    old, new = (
      tokenization.Tokenizer.load(model, lambda year=year: datetime.datetime(year, 1, 1)) for year in (2020, 2021)
    )
    request, options['tokenizer'] = request_of(folder, old, 'plain.jsonl', 'more.jsonl'), new
  first = artefact.identity(request)
  if change == 'code':
    monkeypatch.setattr(artefact, '_code', lambda: 'other')
  assert artefact.identity(dataclasses.replace(request, **options)) != first
  assert artefact.identity(request) == first or change == 'code'


def test_data_that_cannot_be_identified_without_reading_it_has_an_obstacle(folder, tokenizer, monkeypatch):
  assert artefact.obstacle(request_of(folder, tokenizer)) == ''
  for source in ('hf:owner/name', 'tfds:name', str(folder / 'nowhere.jsonl'), str(folder / 'model')):
    assert 'is not a local data file' in artefact.obstacle(request_of(folder, tokenizer, sources=(source,)))
  own = sources.Form(lambda fields, ignored: None, generic_forms.PREFERENCE)
  monkeypatch.setitem(sources.FORMS, 'mine', own)
  request = request_of(folder, tokenizer, sources=(f'mine:{folder / "plain.jsonl"}',))
  assert 'read by code outside alignjax' in artefact.obstacle(request)
  monkeypatch.setitem(readers.ENDINGS, '.jsonl', lambda path: None)
  assert 'read by code outside alignjax' in artefact.obstacle(request_of(folder, tokenizer))


# --- damage, interruptions and company


FILES = ('manifest.json', 'prompt_tokens.npy', 'lengths.npy', 'label.npy')


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('kind', damage.KINDS)
def test_a_damaged_artefact_is_named_and_made_again(tmp_path, folder, tokenizer, name, kind, caplog):
  request = request_of(folder, tokenizer, 'scored.jsonl')
  artefact_name, _ = artefact.obtain(tmp_path, request, MAKING)
  before = contents(tmp_path)
  damage.KINDS[kind](tmp_path / artefact_name / name)
  assert len(obtain(tmp_path, request)) == 30
  assert f'{tmp_path / artefact_name / name}: ' in caplog.text
  assert 'tokenised again' in caplog.text
  assert contents(tmp_path) == before


def test_an_interruption_anywhere_leaves_nothing(tmp_path, folder, tokenizer, monkeypatch):
  encode_all, finish = tokenization.Tokenizer.encode_all, storage.write_manifest
  request = request_of(folder, tokenizer)

  def stop(*args):
    raise KeyboardInterrupt

  for owner, name, original in (
    (tokenization.Tokenizer, 'encode_all', encode_all),
    (storage, 'write_manifest', finish),
  ):
    calls = []

    def second(*args, original=original, calls=calls):
      calls.append(args)
      return stop() if len(calls) == 2 or original is finish else original(*args)

    with monkeypatch.context() as patch:
      patch.setattr(owner, name, second)
      with pytest.raises(KeyboardInterrupt):
        obtain(tmp_path, request)
    assert not list(tmp_path.iterdir())
  assert_same(obtain(tmp_path, request), in_memory(request))


def test_what_killed_processes_have_left_is_removed(tmp_path, folder, tokenizer):
  request = request_of(folder, tokenizer)
  own = storage.name_of(artefact.identity(request))
  for name in (own, 'another'):
    (tmp_path / f'.{name}.1-2{storage.PARTIAL}').mkdir()
    (tmp_path / f'.{name}.lock').touch()
  obtain(tmp_path, request)
  assert [path.name for path in tmp_path.iterdir()] == [own]


def test_of_two_that_start_together_one_tokenises_and_the_other_waits(tmp_path, folder, tokenizer, monkeypatch):
  encode_all, entered, go, said = tokenization.Tokenizer.encode_all, threading.Event(), threading.Event(), []
  calls = []

  def slow(self, texts):
    calls.append(1)
    entered.set()
    assert go.wait(30)
    return encode_all(self, texts)

  def tell(text):
    said.append(text)
    if text == artefact.WAITING:
      go.set()

  monkeypatch.setattr(tokenization.Tokenizer, 'encode_all', slow)
  request, results = request_of(folder, tokenizer), []
  first = threading.Thread(target=lambda: results.append(obtain(tmp_path, request)))
  first.start()
  assert entered.wait(30)
  results.append(obtain(tmp_path, request, artefact.Making(tell)))
  first.join()
  assert said == [artefact.WAITING]
  assert len(calls) == 4  # 30 rows in parts of 8, once
  assert results[0].fingerprint == results[1].fingerprint


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, folder, tokenizer, monkeypatch):
  path = tmp_path / 'plain.jsonl'
  shutil.copy(folder / 'plain.jsonl', path)
  fingerprint = fingerprints.fingerprint

  def then_changed(*args):
    result = fingerprint(*args)
    with path.open('a') as stream:
      stream.write('\n')
    return result

  monkeypatch.setattr(fingerprints, 'fingerprint', then_changed)
  with pytest.raises(ValueError, match=r'plain\.jsonl: changed while it was read; start again'):
    obtain(tmp_path / 'cache', request_of(tmp_path, tokenizer))
  assert not list((tmp_path / 'cache').iterdir())


# --- errors


@pytest.mark.parametrize('case', ['malformed', 'nothing left', 'vocabulary'])
def test_errors_are_those_of_tokens_in_memory(tmp_path, folder, tokenizer, case):
  path = tmp_path / 'rows.jsonl'
  lines = (folder / 'plain.jsonl').read_text().splitlines()
  lines[20] = '{"prompt": 3}' if case == 'malformed' else lines[20]
  path.write_text('\n'.join(lines))
  limits = {
    'nothing left': encoding.Limits(24, 2, 384),
    'vocabulary': encoding.Limits(24, 16, 300),
  }
  request = request_of(tmp_path, tokenizer, 'rows.jsonl', limits=limits.get(case, LIMITS))
  with pytest.raises(ValueError, match='rows') as expected:
    in_memory(request)
  with pytest.raises(type(expected.value)) as found:
    obtain(tmp_path / 'cache', request)
  assert str(found.value) == str(expected.value)
  assert not list((tmp_path / 'cache').iterdir())
