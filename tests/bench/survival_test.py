"""The campaigns of bench/survival count what is lost."""

import json
import pathlib
import random
import subprocess
import sys

from absl import logging
import pytest

from bench.survival import campaign, corruption, damage, faults, kills, signals, worlds
from bench.survival import nan as injections

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize('kind', damage.KINDS)
def test_damage_changes_a_file_or_tells_that_it_does_not(kind, tmp_path):
  draw = random.Random(0)
  for content in (draw.randbytes(1), draw.randbytes(40), draw.randbytes(9000), bytes(9000)):
    (file := tmp_path / 'file').write_bytes(content)
    changed = damage.damage(file, kind, draw)
    assert changed == (not file.exists() or file.read_bytes() != content)
    assert changed or len(content) < 2 * damage.BLOCK or not any(content)


def read(change: str):
  """A reader whose result is the text of a file; `change` describes a fault of it."""

  def read_file(folder: pathlib.Path) -> corruption.Content:
    if change == 'refuses':
      raise ValueError('file: is damaged')
    if change == 'refuses vaguely':
      raise ValueError('something is damaged')
    if change == 'crashes':
      raise KeyError('file')
    if change in ('repairs', 'falls back'):
      logging.warning('file: is damaged')
    if change == 'repairs vaguely':
      logging.warning('something is damaged')
    older = change in ('falls back', 'falls back silently')
    return corruption.Content('wrong' if change == 'believes it' or older else 'sound', older)

  return read_file


@pytest.mark.parametrize(
  ('change', 'outcome'),
  [
    ('ignores it', corruption.RIGHT),
    ('repairs', corruption.AGAIN),
    ('repairs vaguely', corruption.VAGUE),
    ('falls back', corruption.OLDER),
    ('falls back silently', corruption.SILENT),
    ('refuses', corruption.REFUSED),
    ('refuses vaguely', corruption.VAGUE),
    ('believes it', corruption.SILENT),
    ('crashes', corruption.TRACEBACK),
  ],
)
def test_what_a_damaged_file_leads_to(change, outcome, tmp_path):
  subject = corruption.Subject(tmp_path, corruption.files_of, read(change))
  assert corruption.judge(subject, 'sound', tmp_path, tmp_path / 'file')[0] == outcome


def test_a_restart_that_does_not_go_on_from_the_newest_checkpoint_has_lost_some(tmp_path):
  place = kills.Place('LoRA', tmp_path, tmp_path, 1)
  (place.workdir / 'checkpoints' / '5').mkdir(parents=True)
  (place.workdir / 'checkpoints' / '6.orbax-checkpoint-tmp').mkdir()
  assert worlds.committed(place.workdir) == [5]
  assert [name for name, _ in worlds.unfinished(place.workdir)] == ['6.orbax-checkpoint-tmp']
  assert kills.examine(place, 5) == (0, 0)  # killed before its first line
  assert kills.examine(place, 7) == (2, 0)
  (tmp_path / 'log0').write_text('resuming from step 3 in run\nCORRUPT CHECKPOINT: checkpoint 5\n')
  assert kills.examine(place, 5) == (2, 1)


def test_two_runs_are_compared_to_the_last_digit(tmp_path):
  for name, lines in {
    'whole': ['{"step": 1, "loss": 0.5, "eval/loss": 0.25, "time/seconds": 1.0}'],
    'made_up_for': ['{"step": 1, "loss": 0.5, "time/seconds": 9.0}', '{"step": 1, "eval/loss": 0.25}'],
    'other': ['{"step": 1, "loss": 0.50000006, "eval/loss": 0.25}', '{"step": 2, "loss": 0.5}'],
  }.items():
    (tmp_path / name / 'model').mkdir(parents=True)
    (tmp_path / name / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
    (tmp_path / name / 'model' / 'weights').write_text('other' if name == 'other' else 'same')
  assert worlds.compare(tmp_path / 'made_up_for', tmp_path / 'whole') == (3, 0, True)
  assert worlds.compare(tmp_path / 'other', tmp_path / 'whole') == (3, 3, False)


LOST = {'commits_lost': 1, 'fallbacks': 0, 'different': 0, 'hung': 0, 'equal_exports': True, 'longest_wait': 0.0}
STOPPED = {'phase': 'save', 'times': 1, 'code': 42, 'seconds': 1.0, 'saved': 2, 'unsaved': 0, 'left': [], 'log': ''}
INJECTED = {'where': 'loss', 'value': 'nan', 'skipped': True, 'changed': []}
ENDED = {'scenario': 'online_dare(every=3)', 'code': 0, 'reported': True, 'unexpected': 0}
BROKEN = {'fault': 'EIO', 'processes': 1, 'codes': [1], 'seconds': 1.0, 'saved': 0, 'again': [0], 'same': True}
DAMAGED = {'subject': 'checkpoint', 'kind': 'empty', 'file': 'a', 'message': ''}


@pytest.mark.parametrize(
  ('report', 'record', 'lost'),
  [
    (kills.report, LOST | {'scenario': 'LoRA', 'kills': 3, 'in_a_save': 2, 'compared': 9, 'codes': []}, 1),
    (corruption.report, DAMAGED | {'outcome': corruption.SILENT}, 1),
    (corruption.report, DAMAGED | {'outcome': corruption.RIGHT}, 0),
    (injections.report, ENDED | {'injections': [INJECTED]}, 0),
    (injections.report, ENDED | {'injections': [INJECTED | {'changed': ['params']}]}, 1),
    (injections.report, ENDED | {'injections': [INJECTED], 'code': 3}, 1),
    (signals.report, STOPPED, 0),
    (signals.report, STOPPED | {'unsaved': 1}, 1),
    (signals.report, STOPPED | {'resumed': False}, 1),
    (signals.report, STOPPED | {'code': None}, 1),
    (faults.report, BROKEN | {'as_promised': False, 'log': ''}, 1),
  ],
)  # fmt: skip
def test_a_campaign_goes_on_and_counts_what_is_lost(report, record, lost, tmp_path, capsys):
  campaign.Results(tmp_path / 'results.jsonl').add({'finished': False, **record})
  assert report(campaign.Results(tmp_path / 'results.jsonl')) == lost
  assert '| --- |' in capsys.readouterr().out


@pytest.mark.slow  # test_killed_it_resumes_bit_identically in train_test.py kills one run
@pytest.mark.parametrize(
  ('name', 'count'), [('kills', 2), ('corruption', 8), ('nan', 2), ('signals', 2), ('faults', 2)]
)
def test_a_short_campaign_loses_nothing(name, count, tmp_path):
  results = tmp_path / 'results.jsonl'
  command = [sys.executable, '-m', f'bench.survival.{name}', f'--count={count}', f'--results={results}']
  ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
  assert ended.returncode == 0, ended.stdout + ended.stderr
  assert 'Lost: 0' in ended.stdout
  assert all(json.loads(line)['commit'] for line in results.read_text().splitlines())
