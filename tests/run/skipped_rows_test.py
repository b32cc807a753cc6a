"""A run whose data has one bad row: it ends well and names the row, which can then be repaired."""

import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest

from alignjax import exit_codes
from alignjax.commands import program, train
from alignjax.data.reading import generic_forms
from alignjax.run import command_line, settings, training
from alignjax.training import metrics
from tests import assets, runs

BAD = 11  # the line of the bad row
SPOILT = 7.0  # a weight that is read as an infinite one


@pytest.fixture(autouse=True)
def spoilt(monkeypatch):
  weight_of = generic_forms.weight_of
  monkeypatch.setattr(generic_forms, 'weight_of', lambda fields: np.inf if (w := weight_of(fields)) == SPOILT else w)


def write(file: pathlib.Path, bad: float) -> None:
  """Writes 16 pairs; `bad` is the weight of one of them."""
  runs.write_pairs(file, 16, seed=0)
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  text = [json.dumps(row | {'weight': bad if line == BAD else 1.0}) for line, row in enumerate(rows, 1)]
  file.write_text('\n'.join(text) + '\n')


@pytest.fixture(scope='module')
def config(tmp_path_factory) -> settings.Config:
  folder = tmp_path_factory.mktemp('skipped')
  assets.write_tiny_model(folder / 'model', layers=1, vocab_size=384)
  write(folder / 'train.jsonl', SPOILT)
  overrides = {'eval_data': (), 'steps': 2, 'save_every': 1}
  return runs.make_config(folder, folder / 'w', **overrides)


def attempt(config: settings.Config) -> int:
  return program.attempt(train.PROGRAM, command_line.Invocation(config))


def skipped(config: settings.Config) -> list[int]:
  return [record['skipped'] for record in metrics.read_jsonl(pathlib.Path(config.workdir) / 'metrics.jsonl')]


@pytest.mark.slow  # training/skipping_test.py finds the row, exit_codes_test.py and metrics name it
def test_one_bad_row_is_skipped_named_repaired_and_accepted(config, capsys, caplog):
  """The tests of one run, in order, because each goes on from the one before."""
  file = pathlib.Path(config.data[0])
  with caplog.at_level('WARNING', 'absl'):
    assert attempt(config) == exit_codes.DONE
  assert 'skipped 1 of 2 batches, because their loss or gradient was not finite' in capsys.readouterr().out
  assert skipped(config)[-1] == 1
  (line,) = [message for message in caplog.messages if 'The batch is skipped' in message]
  fault = line.partition('At fault on their own: ')[2]
  assert fault.startswith(f'{file}:{BAD} (')
  assert 'weight inf' in fault

  # Repaired data is refused, until its fingerprint is accepted.
  write(file, 1.0)
  longer = dataclasses.replace(config, steps=4)
  assert attempt(longer) == exit_codes.REFUSED
  error = capsys.readouterr().err
  assert 'data_fingerprint: was' in error
  (fingerprint,) = re.findall(r'--accept_data=(\w+) resumes the run', error)
  wrong = dataclasses.replace(longer, accept_data='0' * 16)
  with pytest.raises(ValueError, match=f'the training data has the fingerprint {fingerprint!r}'):
    training.train(wrong)
  other = dataclasses.replace(longer, accept_data=fingerprint, seed=1)  # accepts the data, and nothing else
  with pytest.raises(ValueError, match=r'belongs to another run\. seed: was 0, is now 1\. Restore'):
    training.train(other)
  caplog.clear()
  with caplog.at_level('WARNING', 'absl'):
    assert attempt(dataclasses.replace(longer, accept_data=fingerprint)) == exit_codes.DONE
  (line,) = [message for message in caplog.messages if 'data_fingerprint' in message]
  assert 'From step 3 on, this run takes the new data' in line
  assert skipped(config)[2:] == [1, 1]

  # The checkpoints from then on belong to the new data.
  assert attempt(longer) == exit_codes.DONE
  assert 'this run is finished' in capsys.readouterr().out


@pytest.mark.slow  # skipping_test.py stops at a limit, and exit_codes_test.py has the code
def test_the_limit_of_1_stops_at_the_first_bad_batch(config, capsys, tmp_path):
  data = tmp_path / 'train.jsonl'
  write(data, SPOILT)
  assert attempt(dataclasses.replace(config, data=(str(data),), workdir=str(tmp_path / 'w'), nonfinite_limit=1)) == (
    exit_codes.NOT_FINITE
  )
  error = capsys.readouterr().err
  assert re.search(r'error: step [12]: loss is nan', error)
  assert f'At fault on their own: {data}:{BAD} (' in error
