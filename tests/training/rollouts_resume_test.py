"""Rounds on disk: runs that are killed, rounds that are missing, damaged, of another run, or no longer needed."""

import json
import shutil

import numpy as np
import pytest

from alignjax import rewards
from alignjax.training import (
  rollout_drawing,
  rollout_files,
  rollout_keeping,
)
from tests.training import rollout_world as world

KILLS = [
  ('before the batch', 0),
  ('sample', 0),
  ('score', 0),
  ('text', 1),
  ('write', 1),
  ('after the batch', 2),
  ('after the update', 3),
  ('before the batch', 3),
  ('after the checkpoint', 3),
  ('after the checkpoint', 6),
  ('after the update', 7),
  ('after the batch', 10),
]
RESUMED = world.Setting('dpo(beta=0.5)', samples=3, pairing='best_worst', rounds=rollout_drawing.Rounds(8, 4, 2, 8))


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
  made = world.drawer(RESUMED, tmp_path_factory.mktemp('whole'))
  return made, world.Run(RESUMED, made, every=3).go(12)


@pytest.mark.parametrize(('place', 'when'), KILLS)
def test_a_run_that_is_killed_resumes_bit_for_bit(place, when, uninterrupted, tmp_path, monkeypatch):
  made, expected = uninterrupted
  made.folder = tmp_path
  run = world.Run(RESUMED, made, every=3)
  seen = []

  def kill(at, number):
    if at == place and number == when:
      raise world.Killed

  def killing(name, function):
    def call(*args, **kwargs):
      seen.append(name)
      kill(name, seen.count(name) - 1)
      return function(*args, **kwargs)

    return call

  with monkeypatch.context() as patch:
    patch.setattr(made, '_draw', killing('sample', made._draw))
    patch.setattr(rewards.Reward, 'scores', killing('score', rewards.Reward.scores))
    replace = rollout_files.files.replace

    def interrupted(path, content):
      kind = 'text' if path.suffix == '.jsonl' else 'write'
      seen.append(kind)
      if (kind, seen.count(kind) - 1) == (place, when):
        path.with_name(path.name + '.partial').write_bytes(content[:100])
        raise world.Killed
      replace(path, content)

    patch.setattr(rollout_files.files, 'replace', interrupted)
    with pytest.raises(world.Killed):
      run.go(12, kill)
  found = run.go(12)
  assert json.dumps(found, default=float) == json.dumps(expected, default=float)


REFRESHED = world.Setting(
  'dpo(beta=0.5)',
  samples=3,
  pairing='best_worst',
  kl_in_score=0.1,
  rounds=rollout_drawing.Rounds(8, 4, 1, 8, refresh=2),
)


def test_the_policy_becomes_the_reference_and_a_resumed_run_finds_it(tmp_path):
  made = world.drawer(REFRESHED, tmp_path / 'whole')
  expected = world.Run(REFRESHED, made, every=3).go(14)  # seven rounds of two updates
  rounds = rollout_files.read_all(tmp_path / 'whole')
  differ = [np.abs(each.reference_logp - each.policy_logp).max() > 1e-4 for each in rounds]
  assert differ == [False, True, False, True, False, True, False]
  tables = [table_of(each, 'policy_logp') for each in rounds]
  for number in (3, 5):
    for sentence, logp in table_of(rounds[number], 'reference_logp').items():
      assert tables[number - 1].get(sentence, logp) == pytest.approx(logp, abs=1e-5)

  made.folder = tmp_path / 'killed'
  run = world.Run(REFRESHED, made, every=3)

  def kill(place, number):
    # Checkpoint 9 is within round 4. Round 5 has the reference of round 4.
    if (place, number) == ('after the update', 10):
      raise world.Killed

  with pytest.raises(world.Killed):
    run.go(14, kill)
  assert json.dumps(run.go(14), default=float) == json.dumps(expected, default=float)
  made.folder = tmp_path / 'damaged'
  run = world.Run(REFRESHED, made, every=3)
  run.go(9)
  shutil.rmtree(tmp_path / 'damaged' / 'reference_000004')
  with pytest.raises(rollout_files.RolloutError, match=r'reference_000004: the reference cannot be read'):
    run.go(12)


def table_of(drawn, name):
  """The log-probability of each (prompt, response) in a round."""
  texts = [
    [world.text_of('', tokens[:n]) for tokens, n in zip(*row, strict=True)]
    for row in zip(drawn.response, drawn.response_length, strict=True)
  ]
  sums = getattr(drawn, name).sum(axis=2)
  return {(i, text): sums[p, n] for p, i in enumerate(drawn.ids) for n, text in enumerate(texts[p])}


@pytest.fixture(name='within')
def stopped_within_a_round(uninterrupted, tmp_path):
  """A run that has stopped at step 6, within the second of its rounds of 4 updates."""
  made = uninterrupted[0]
  made.folder = tmp_path
  run = world.Run(RESUMED, made, every=3)
  run.go(6)
  return run, rollout_files.path(tmp_path, 1)


def test_a_missing_round_is_an_error_that_names_it(within):
  run, file = within
  file.unlink()
  with pytest.raises(
    rollout_files.RolloutError, match=r'round_000001\.npz: there is no such file\. The param.* step 4'
  ):
    run.go(12)


def test_a_damaged_round_is_an_error_that_names_it(within):
  run, file = within
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)
  with pytest.raises(rollout_files.RolloutError, match=r'round_000001\.npz: the rollouts cannot be read'):
    run.go(12)
  file.write_bytes(content[:200])
  with pytest.raises(rollout_files.RolloutError, match=r'round_000001\.npz: the rollouts cannot be read'):
    run.go(12)


def test_rollouts_of_another_run_or_a_later_step_are_refused(within):
  run, _ = within
  run.made.draw(world.start(RESUMED), world.FROZEN, 1)  # the policy of step 0
  with pytest.raises(
    rollout_files.RolloutError, match=r'not the rollouts of the checkpoint of step 6.*drawn at step 0'
  ):
    run.go(12)


@pytest.mark.parametrize('newest', [1, 2])
def test_old_rounds_are_deleted_but_none_that_a_checkpoint_needs(newest, uninterrupted, tmp_path):
  """Rounds of 4 updates. A checkpoint of step 6 is within round 1, one of step 8 between two rounds."""
  made, checkpoints = uninterrupted[0], tmp_path / 'checkpoints'
  made.folder = tmp_path / 'rollouts'
  keeping = rollout_keeping.Keeping(newest, 4, checkpoints)
  now, batches = world.start(RESUMED), world.source_of(RESUMED, made, keeping)

  def left():
    found = [file.stem for file in made.folder.glob('*.jsonl')]
    assert sorted(found) == [file.stem for file in rollout_files.numbered(made.folder).values()]
    return list(rollout_files.numbered(made.folder))

  def take(updates):
    for _ in range(updates):
      batches.next(now)

  take(5)
  assert left() == [0, 1][-newest:]
  take(1)
  batches.get_state()  # step 6: its checkpoint is being written
  take(3)
  assert left() == [1, 2]
  for done in (6, 8):
    (checkpoints / str(done)).mkdir(parents=True)
  take(8)
  assert left() == [1, 2, 3, 4]
  batches.get_state()  # step 17
  take(2)
  batches.get_state()  # step 19
  (checkpoints / '6').rmdir()
  take(2)
  assert left() == [4, 5]
  (checkpoints / '17').mkdir()
  take(4)
  assert left() == [4, 5, 6]
  rollout_files.read_all(made.folder)


def test_a_folder_of_rounds_is_complete_or_refused(within):
  run, file = within
  run.go(12)
  assert [each.number for each in rollout_files.read_all(file.parent)] == [0, 1, 2]
  lines = [json.loads(line) for line in file.with_suffix('.jsonl').read_text().splitlines()]
  assert len(lines) == 24
  assert set(lines[0]) == {'prompt', 'response', 'tokens', 'finished', 'score', 'parts'}
  file.unlink()
  with pytest.raises(rollout_files.RolloutError, match=r'round_000001\.npz: this round is missing'):
    rollout_files.read_all(file.parent)
  with pytest.raises(rollout_files.RolloutError, match='there are no rollouts'):
    rollout_files.read_all(file.parent / 'nothing')
