"""Where a run keeps its tokens, and how its processes share them."""

import errno
import pathlib
import threading

import jax
import pytest

from alignjax.commands import data, program
from alignjax.data.reading import readers
from alignjax.data.tokens import artefact, encoding, tokenization
from alignjax.run import preparation, token_cache
from alignjax.training import processes
from tests import runs


@pytest.fixture(scope='module')
def tokenizer(tiny_run):
  return tokenization.Tokenizer.load(tiny_run / 'model')


def request_of(tiny_run, tokenizer, *sources):
  return artefact.Request(sources or (str(tiny_run / 'train.jsonl'),), tokenizer, encoding.Limits(24, 24, 384))


def test_the_setting_names_a_folder_or_turns_it_off():
  assert token_cache.configured('', 'run') == (pathlib.Path('run/tokens'), token_cache.SMALLEST)
  assert token_cache.configured('c', 'run') == token_cache.configured('c', '') == (pathlib.Path('c'), 0)
  assert token_cache.configured('off', 'run') == token_cache.configured('', '') == token_cache.NONE


def test_few_rows_are_not_kept_unless_a_folder_is_named(tiny_run, tokenizer, tmp_path):
  request = request_of(tiny_run, tokenizer)
  small = token_cache.read(request, token_cache.configured('', str(tmp_path)), pytest.fail)
  assert not list(tmp_path.iterdir())
  kept = token_cache.read(request, token_cache.configured(str(tmp_path), ''), print)
  assert [path.name for path in tmp_path.glob('*/manifest.json')]
  assert kept.fingerprint == small.fingerprint


def test_other_sources_are_tokenised_at_every_start_and_the_log_says_so(tiny_run, tokenizer, tmp_path, monkeypatch):
  monkeypatch.setitem(readers.SCHEMES, 'mine', readers.jsonl)
  said = []
  request = request_of(tiny_run, tokenizer, f'mine:{tiny_run / "train.jsonl"}')
  found = token_cache.read(request, token_cache.Cache(tmp_path), said.append)
  assert len(found) == 61
  assert said == [
    f'mine:{tiny_run / "train.jsonl"} is not a local data file, so its tokens are not cached: it is tokenised at '
    'every start'
  ]
  assert not list(tmp_path.iterdir())
  token_cache.read(request, token_cache.NONE, pytest.fail)


def test_a_run_opens_what_alignjax_data_tokenize_has_made(tiny_run, tmp_path, monkeypatch):
  arguments = [f'--model={tiny_run / "model"}', f'--token_cache={tmp_path / "tokens"}']
  for name in ('train', 'eval'):
    assert program.execute(data.PROGRAM, ['data', 'tokenize', *arguments, f'--data={tiny_run / name}.jsonl']) == 0
  config = runs.make_config(tiny_run, tmp_path / 'run', token_cache=str(tmp_path / 'tokens'))
  expected = preparation.prepare(runs.make_config(tiny_run, tmp_path / 'run', token_cache='off'), lambda text: None)
  monkeypatch.setattr(tokenization.Tokenizer, 'encode_all', None)
  prepared = preparation.prepare(config, lambda text: None)
  for found, wanted in ((prepared.training, expected.training), (prepared.held_out, expected.held_out)):
    assert found.data.fingerprint == wanted.data.fingerprint
    assert found.data.report == wanted.data.report


# --- several processes, as threads


class Processes:
  """Two processes in threads, which meet where they gather."""

  def __init__(self, monkeypatch):
    self._index, self._barrier, self._values = threading.local(), threading.Barrier(2, timeout=30), [None, None]
    self.gathered = 0
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(jax, 'process_index', lambda: self._index.value)
    monkeypatch.setattr(processes, 'gather', self._gather)
    monkeypatch.setattr(processes, 'gather_text', self._gather)

  def _gather(self, value):
    self._values[self._index.value] = value
    self._barrier.wait()
    result = list(self._values)
    self.gathered += 1
    self._barrier.wait()
    return result

  def run(self, call):
    """What `call(index)` returns or raises in each process."""
    results = [None, None]

    def work(index):
      self._index.value = index
      try:
        results[index] = call(index)
      except Exception as error:
        results[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    return results


@pytest.fixture
def two(monkeypatch):
  return Processes(monkeypatch)


def test_the_first_process_works_and_shows_that_it_is_alive(two, monkeypatch):
  monkeypatch.setattr(processes, 'PULSE', 0.0)

  def work(alive):
    assert jax.process_index() == 0
    for _ in range(3):
      alive()
    return 'done'

  assert two.run(lambda index: processes.from_first(work)) == ['done', 'done']
  assert two.gathered >= 2 * (3 + 2)


def test_an_error_of_the_first_process_is_raised_by_all(two):
  def fail(alive):
    raise FileNotFoundError('rows.jsonl')

  first, second = two.run(lambda index: processes.from_first(fail))
  assert isinstance(first, FileNotFoundError)
  assert isinstance(second, ValueError)
  assert str(first) == str(second) == 'rows.jsonl'


def test_an_error_of_any_process_is_raised_by_all(two):
  def fail_on_second():
    if jax.process_index():
      raise FileNotFoundError('shard')
    return 'fine'

  first, second = two.run(lambda index: processes.on_all(fail_on_second))
  assert isinstance(first, ValueError)
  assert isinstance(second, FileNotFoundError)
  assert str(first) == str(second) == 'shard'
  assert two.run(lambda index: processes.on_all(lambda: index)) == [0, 1]

  def lose():
    if not jax.process_index():
      raise OSError(errno.EIO, 'lost')

  first, second = two.run(lambda index: processes.on_all(lose))
  assert isinstance(second, OSError)
  assert first.errno == second.errno == errno.EIO  # so all of them end with the same exit code


def test_one_process_tokenises_for_both(two, tiny_run, tokenizer, tmp_path, monkeypatch):
  encode_all, callers = tokenization.Tokenizer.encode_all, []

  def counted(self, texts):
    callers.append(jax.process_index())
    return encode_all(self, texts)

  monkeypatch.setattr(tokenization.Tokenizer, 'encode_all', counted)
  request = request_of(tiny_run, tokenizer)
  first, second = two.run(lambda index: token_cache.read(request, token_cache.Cache(tmp_path / 'c'), lambda text: None))
  assert first.fingerprint == second.fingerprint
  assert set(callers) == {0}
  callers.clear()
  monkeypatch.setattr(token_cache, 'VISIBLE', 0.0)
  apart = two.run(lambda index: token_cache.read(request, token_cache.Cache(tmp_path / str(index)), lambda text: None))
  assert set(callers) == {0, 1}  # disks of their own
  assert {each.fingerprint for each in apart} == {first.fingerprint}
  callers.clear()
  off = two.run(lambda index: token_cache.read(request, token_cache.NONE, lambda text: None))
  assert set(callers) == {0, 1}
  assert {each.fingerprint for each in off} == {first.fingerprint}
