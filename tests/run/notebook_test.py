"""The notebook's functions, and the names that `import alignjax` offers."""

import subprocess
import sys

import jax
import numpy as np
import pytest

import alignjax
from alignjax.data.reading import rows
from alignjax.run import notebook
from tests import assets

ROWS = [
  {'prompt': 'The film was', 'chosen': ' wonderful', 'rejected': ' dull'},
  {'prompt': 'The story is', 'chosen': ' warm and great', 'rejected': ' awful'},
  {'prompt': [{'role': 'user', 'content': 'The frame?'}], 'chosen': 'I love it', 'rejected': 'It is ugly.'},
]


@pytest.fixture(name='loaded', scope='module')
def load(tmp_path_factory):
  return alignjax.load(assets.write_tiny_model(tmp_path_factory.mktemp('model'), layers=1))


@pytest.fixture(name='examples', scope='module')
def read(loaded):
  return alignjax.read(ROWS, loaded)


def test_every_name_is_there_and_none_is_imported_before_it_is_used():
  for name in alignjax.__all__:
    assert getattr(alignjax, name) is not None
    assert name in dir(alignjax)
  assert alignjax.fit is notebook.fit
  with pytest.raises(AttributeError, match="no attribute 'fitt'"):
    _ = alignjax.fitt
  code = 'import sys, alignjax; print({"jax", "numpy"} & set(sys.modules))'
  assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == 'set()\n'


def test_rows_in_memory_are_read_like_those_of_a_file(loaded, examples, tmp_path, capsys):
  file = tmp_path / 'rows.csv'
  file.write_text('prompt,chosen,rejected\nThe film was, wonderful, dull\nThe story is, warm and great, awful\n')
  of_file = alignjax.read(str(file), loaded)
  assert '2 rows read, 2 kept' in capsys.readouterr().out
  for row in range(2):
    assert [list(ids) for ids in of_file[row].responses] == [list(ids) for ids in examples[row].responses]
    assert list(of_file[row].prompt) == list(examples[row].prompt)
  assert examples.origin(1) == '<memory>:2'
  with pytest.raises(rows.DataError, match=r"<memory>:2: .*'rejected'"):
    alignjax.read([ROWS[0], {'prompt': 'a', 'chosen': 'b'}], loaded)
  with pytest.raises(rows.DataError, match='<memory>'):
    alignjax.read([], loaded)


def test_one_batch_holds_the_first_examples_without_waste(examples):
  batch = alignjax.one_batch(examples, 2)
  assert batch.response.shape[:2] == (2, 2)
  assert batch.prompt.shape[1] == int(batch.prompt_length.max())
  assert batch.response.shape[2] == int(batch.response_length.max())
  for row in range(2):
    assert batch.prompt[row, : batch.prompt_length[row]].tolist() == list(examples[row].prompt)
  with pytest.raises(ValueError, match='size=4: must be from 1 to 3'):
    alignjax.one_batch(examples, 4)


@pytest.mark.slow  # notebooks_test.py trains with `fit`
def test_fit_starts_from_the_loss_that_the_table_gives_and_keeps_the_model(loaded, examples):
  before = jax.tree.map(np.array, loaded.params)
  objective = alignjax.objectives.dpo()
  batch = alignjax.one_batch(examples)
  expected = objective.apply(alignjax.table(loaded, objective, batch), batch)
  tuned, history = alignjax.fit(loaded, objective, examples, steps=3, optimizer='adamw(1e-2)', batch_size=3)
  assert [row['step'] for row in history] == [1, 2, 3]
  np.testing.assert_allclose(history[0]['loss'], np.mean(expected.loss), rtol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, loaded.params, before)
  # The loss of the last step but for one more update: the reference is the model before training.
  after = objective.apply(alignjax.table(tuned, objective, batch, loaded), batch)
  assert np.mean(after.loss) < history[-1]['loss'] < history[0]['loss']


def test_an_objective_that_the_data_do_not_fit_is_refused(loaded, examples):
  with pytest.raises(ValueError, match='odpo reads `score`'):
    alignjax.fit(loaded, 'odpo()', examples, steps=1)


def test_an_optimizer_that_merges_is_refused(loaded, examples):
  with pytest.raises(ValueError, match='merging and averaging need `alignjax train`'):
    alignjax.fit(loaded, 'dpo()', examples, steps=1, optimizer='chain(adamw(1e-2), moving_average())')
