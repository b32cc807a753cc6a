"""What the studies share: arms that are kept, and options."""

import dataclasses
import json

from experiments.toy import studies


@dataclasses.dataclass(frozen=True)
class Setting:
  seeds: int = 3
  betas: tuple[float, ...] = (0.1,)


def test_an_arm_is_computed_once_for_a_setting(tmp_path):
  calls = []

  def compute():
    calls.append(1)
    return [[0, {'gold': 0.1}]]

  for setting, name, expected in (
    (Setting(), 'a, 0.1', 1),
    (Setting(), 'a, 0.1', 1),
    (Setting(seeds=2), 'a, 0.1', 2),
    (Setting(seeds=2), 'b', 3),
    (Setting(seeds=2), 'a, 0.1', 3),
    (Setting(), 'a, 0.1', 4),
  ):
    assert studies.Session(tmp_path / 'run', setting).arm(name, compute) == [[0, {'gold': 0.1}]]
    assert len(calls) == expected


def test_the_summary_counts_the_time_of_arms_that_were_kept(tmp_path):
  studies.Session(tmp_path, Setting()).arm('a', lambda: 1)
  path = tmp_path / 'arms.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'processor_seconds': 1e6}))
  session = studies.Session(tmp_path, Setting())
  session.arm('a', lambda: 2)
  summary = session.finish({'curves': []})
  assert summary['costs']['processor_seconds'] > 1e6
  assert json.loads((tmp_path / 'summary.json').read_text())['setting'] == {'seeds': 3, 'betas': [0.1]}


def test_options_choose_the_setting():
  chosen = studies.options('x')(seeds=2)
  assert chosen.workdir == 'runs/toy/x'
  assert studies.sized(chosen, Setting(), Setting(betas=())) == Setting(seeds=2)
  assert studies.sized(dataclasses.replace(chosen, quick=True), Setting(), Setting(betas=())) == Setting(2, ())
