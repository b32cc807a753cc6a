"""Records are written once, and read back bit for bit."""

import contextlib
import errno
import io
import json
import math
import pathlib
import resource
import socket
import struct

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from alignjax.training import metrics


def test_floats_round_trip_bit_exactly(tmp_path):
  generator = np.random.default_rng(0)
  values = generator.integers(0, 2**32, 3000, dtype=np.uint64).astype(np.uint32).view(np.float32)
  values = [float(x) for x in values[np.isfinite(values)]] + [0.0, -0.0, 1e-45, 3.4028234663852886e38]
  writer = metrics.JsonlWriter(tmp_path / 'm.jsonl')
  for step, value in enumerate(values):
    writer.write(step, {'loss': value, 'batch_hash': 4294967295})
  writer.close()
  records = metrics.read_jsonl(tmp_path / 'm.jsonl')
  read = np.array([record['loss'] for record in records], np.float64)
  assert read.tobytes() == np.array(values, np.float64).tobytes()
  assert {record['batch_hash'] for record in records} == {4294967295}


def test_not_finite_is_valid_json_and_reads_back(tmp_path):
  writer = metrics.JsonlWriter(tmp_path / 'm.jsonl')
  writer.write(0, {'a': float('nan'), 'b': float('inf'), 'c': -float('inf')})
  writer.close()
  line = (tmp_path / 'm.jsonl').read_text()
  assert json.loads(line, parse_constant=pytest.fail) == {'step': 0, 'a': 'nan', 'b': 'inf', 'c': '-inf'}
  record = metrics.read_jsonl(tmp_path / 'm.jsonl')[0]
  assert np.isnan(record['a'])
  assert (record['b'], record['c']) == (np.inf, -np.inf)


def test_each_line_is_on_disk_at_once(tmp_path):
  writer = metrics.JsonlWriter(tmp_path / 'm.jsonl')
  writer.write(1, {'loss': 0.5})
  assert [r['step'] for r in metrics.read_jsonl(tmp_path / 'm.jsonl')] == [1]
  writer.close()


def test_resume_removes_what_was_undone_and_a_half_written_line(tmp_path):
  file = tmp_path / 'm.jsonl'
  first = metrics.JsonlWriter(file)
  for step in range(1, 8):
    first.write(step, {'loss': float(step)})
  first.close()
  kept = file.read_text().splitlines()[:5]
  with file.open('a') as stream:
    stream.write('{"step": 8, "lo')
  assert [r['step'] for r in metrics.read_jsonl(file)] == list(range(1, 8))
  second = metrics.JsonlWriter(file, resumed_at=5)
  assert file.read_text().splitlines() == kept
  second.write(6, {'loss': 60.0})
  second.close()
  assert [(r['step'], r['loss']) for r in metrics.read_jsonl(file)] == [(s, s) for s in range(1, 6)] + [(6, 60.0)]
  metrics.JsonlWriter(file).close()  # a fresh start
  assert metrics.read_jsonl(file) == []


def test_damaged_lines_are_set_aside_with_a_warning_and_do_not_stop_a_resume(tmp_path, caplog):
  file = tmp_path / 'metrics.jsonl'
  sound = [json.dumps({'step': step, 'loss': 0.5, 'worst': 'inf', 'flag': True}).encode() for step in range(1, 8)]
  damaged = [
    b'{"step": 2, "loss" 0.5}',
    b'[1, 2]',
    b'{"loss": 0.5}',
    b'{"step": "3", "loss": 0.5}',
    b'{"step": 3, "loss": [0.5]}',
    b'{"step": 3, "loss": "nbn"}',
    b'\xff\xfe\x00',
    b'',
    b'[' * 100_000,
  ]
  lines = [sound[0], *damaged[:4], sound[1], *damaged[4:], *sound[2:]]
  file.write_bytes(b'\n'.join(lines) + b'\n{"step": 8, "lo')
  with caplog.at_level('WARNING', 'absl'):
    assert [record['step'] for record in metrics.read_jsonl(file)] == list(range(1, 8))
    metrics.JsonlWriter(file, resumed_at=5).close()
  assert file.read_bytes() == b''.join(line + b'\n' for line in sound[:5])
  aside = tmp_path / 'metrics.damaged.jsonl'
  assert aside.read_bytes() == b''.join(line + b'\n' for line in damaged)
  where = f'{file}: lines 2, 3, 4, 5, 7, 8, 9, 10 and 1 more: not a record'
  assert caplog.messages == [where, f'{where}; moved to {aside}']
  metrics.JsonlWriter(file, resumed_at=5).close()
  assert len(caplog.messages) == 2


@contextlib.contextmanager
def files_of_at_most(size: int):
  """Writes beyond this many bytes fail in this process, as on a full disk."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_record_that_does_not_fit_is_an_error_and_is_completed_when_there_is_room(tmp_path):
  file = tmp_path / 'm.jsonl'
  writer = metrics.JsonlWriter(file)
  writer.write(1, {'loss': 0.5})
  with files_of_at_most(file.stat().st_size + 10):
    for step in (2, 3):
      with pytest.raises(metrics.MetricsError, match=rf'm\.jsonl: cannot be written from step {step} on: .*too large'):
        writer.write(step, {'loss': 0.25})
    assert [record['step'] for record in metrics.read_jsonl(file)] == [1]
  writer.close()
  assert [(record['step'], record['loss']) for record in metrics.read_jsonl(file)] == [(1, 0.5), (2, 0.25), (3, 0.25)]


def test_a_full_disk_turns_tensorboard_off_with_one_warning(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(metrics.time, 'time', lambda: 1700000000.0)  # names the file
  name = f'events.out.tfevents.1700000000.{socket.gethostname()}'
  (tmp_path / name).symlink_to('/dev/full')
  with caplog.at_level('WARNING', 'absl'):
    writer = metrics.TensorBoardWriter(tmp_path, resumed_at=5)
    for step in range(6, 60):
      writer.write(step, {'loss': 0.5})
    writer.close()
  (message,) = caplog.messages
  assert message.startswith(f'{tmp_path}: cannot be written: the disk is full. TensorBoard is off from step 6 on')


def test_a_folder_that_cannot_be_made_turns_tensorboard_off(tmp_path, caplog):
  (tmp_path / 'file').write_text('')
  with caplog.at_level('WARNING', 'absl'):
    writer = metrics.TensorBoardWriter(tmp_path / 'file' / 'tensorboard')
    writer.write(1, {'loss': 0.5})
    writer.close()
  assert [message.count('TensorBoard is off from step 0 on') for message in caplog.messages] == [1]


def test_a_console_that_fails_is_silent_after_one_warning(caplog):
  class Full(io.StringIO):
    def write(self, text: str) -> int:
      raise OSError(errno.ENOSPC, 'No space left on device')

  with caplog.at_level('WARNING', 'absl'):
    writer = metrics.ConsoleWriter(3, every=1, stream=Full())
    for step in (1, 2, 3):
      writer.write(step, {'loss': 0.5})
    writer.close()
  assert [message.startswith('standard output cannot be written: the disk is full') for message in caplog.messages] == [
    True
  ]


def test_only_process_0_writes(tmp_path, monkeypatch):
  monkeypatch.setattr('jax.process_index', lambda: 1)
  stream = io.StringIO()
  writers = [
    metrics.JsonlWriter(tmp_path / 'a' / 'm.jsonl'),
    metrics.TensorBoardWriter(tmp_path / 'b'),
    metrics.ConsoleWriter(10, stream=stream),
  ]
  for writer in writers:
    writer.write(1, {'loss': 1.0})
    writer.close()
  assert list(tmp_path.iterdir()) == []
  assert stream.getvalue() == ''


def read_events(file: pathlib.Path) -> list[event_pb2.Event]:
  """A TFRecord file: length, its checksum, bytes, their checksum."""
  data, position, events = file.read_bytes(), 0, []
  while position < len(data):
    (length,) = struct.unpack_from('<Q', data, position)
    events.append(event_pb2.Event.FromString(data[position + 12 : position + 12 + length]))
    position += 16 + length
  return events


def test_tensorboard_reads_back(tmp_path):
  writer = metrics.TensorBoardWriter(tmp_path)
  for step in (1, 2, 3):
    writer.write(step, {'loss': 0.5**step, 'eval/loss': 2.0, 'time/seconds': math.nan, 'batch_hash': 7})
  writer.close()
  (file,) = tmp_path.iterdir()
  scalars = [(event.step, v.tag, v.simple_value) for event in read_events(file) for v in event.summary.value]
  assert scalars == [(s, tag, v) for s in (1, 2, 3) for tag, v in (('train/loss', 0.5**s), ('eval/loss', 2.0))]


def test_tensorboard_hides_what_was_undone(tmp_path):
  metrics.TensorBoardWriter(tmp_path, resumed_at=5).close()
  (file,) = tmp_path.iterdir()
  starts = [event.step for event in read_events(file) if event.session_log.status == event_pb2.SessionLog.START]
  assert starts == [6]


def test_console_prints_plain_lines_when_nobody_looks_on():
  stream = io.StringIO()
  writer = metrics.ConsoleWriter(20, every=5, stream=stream)
  writer.write(0, {'eval/loss': 0.7})
  for step in range(1, 21):
    values = {'loss': 0.5, 'reward_accuracy': 0.75, 'reward_margin': 0.1, 'gradient_norm': 2.0}
    # One step in five waits for something else; the time left is that of the others.
    times = {'time/seconds': 500.0 if step % 5 == 0 else 240.0, 'time/tokens_per_second': 12345.6}
    writer.write(step, values | times | ({'eval/loss': 0.25} if step == 10 else {}))
  writer.close()
  lines = stream.getvalue().splitlines()
  assert [line.split('  ')[0] for line in lines] == [
    'held out, step 0/20',
    'step 1/20',
    'step 5/20',
    'step 10/20',
    'held out, step 10/20',
    'step 15/20',
    'step 20/20',
  ]
  expected = 'step 10/20  loss 0.5000  accuracy 0.750  margin +0.1000  grad norm 2  tok/s 12,346  left 0:40:00'
  assert lines[3] == expected
  assert lines[4] == 'held out, step 10/20  loss 0.2500'


def test_console_shows_a_bar_to_a_person():
  class Terminal(io.StringIO):
    def isatty(self) -> bool:
      return True

  stream = Terminal()
  writer = metrics.ConsoleWriter(3, stream=stream)
  for step in (1, 2, 3):
    writer.write(step, {'loss': 0.125, 'eval/loss': 0.5})
  writer.close()
  assert '3/3' in stream.getvalue()
  assert 'loss 0.1250' in stream.getvalue()
  assert 'held out, step 2/3  loss 0.5000' in stream.getvalue()


def test_console_interval_must_be_positive():
  with pytest.raises(ValueError, match='every=0'):
    metrics.ConsoleWriter(3, every=0)
