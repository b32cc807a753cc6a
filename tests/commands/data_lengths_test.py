"""Lengths: figures against lengths that are known, and a picture that shows them."""

from matplotlib import image
import numpy as np
import pytest

from alignjax.commands import data_lengths
from alignjax.data.tokens import dataset
from tests import quick


def tokenized(prompts, *responses):
  """Pairs of the given lengths, [n] each."""
  rows = zip(prompts, zip(*responses, strict=True), strict=True)
  return dataset.pack(
    dataset.TokenExample([1] * prompt, [[2] * length for length in lengths]) for prompt, lengths in rows
  )


def test_lengths_are_by_name():
  found = data_lengths.lengths(tokenized([4, 5], [1, 2], [3, 1]))
  assert {name: values.tolist() for name, values in found.items()} == {
    'prompt': [4, 5],
    'chosen': [1, 2],
    'rejected': [3, 1],
  }
  assert list(data_lengths.lengths(tokenized([4], [1], [3], [2]))) == [
    'prompt',
    'response 1',
    'response 2',
    'response 3',
  ]
  assert list(data_lengths.lengths(tokenized([4], [1]))) == ['prompt', 'response 1']


def test_the_table_has_quantiles_and_means():
  found = data_lengths.lengths(tokenized(range(1, 101), [7] * 100, [5] * 60 + [7] * 10 + [1000] * 30))
  lines = [' '.join(line.split()) for line in data_lengths.table(found)]
  assert lines == [
    'tokens min 5% 25% 50% 75% 95% max mean',
    'prompt 1 5 25 50 75 95 100 50.5',
    'chosen 7 7 7 7 7 7 7 7.0',
    'rejected 5 5 5 5 1,000 1,000 1,000 303.7',
    'chosen - rejected -993 -993 -993 2 2 2 2 -296.7',
    'chosen is longer in 60.0% of the pairs, shorter in 30.0%',
  ]


def test_the_histogram_counts_every_length_once():
  found = {'prompt': np.array([2, 3, 4, 7, 8, 1000]), 'chosen': np.array([2, 2, 2, 3, 15, 16])}
  lines = data_lengths.histogram(found)
  assert lines[0].split() == ['tokens', 'prompt', 'chosen']
  rows = {tuple(map(int, line.replace('#', '').replace(',', '').replace('-', '').split())) for line in lines[1:]}
  assert rows == {
    (2, 3, 2, 4), (4, 7, 2, 0), (8, 15, 1, 1), (16, 31, 0, 1), (32, 63, 0, 0),
    (64, 127, 0, 0), (128, 255, 0, 0), (256, 511, 0, 0), (512, 1023, 1, 0),
  }  # fmt: skip
  assert lines[1].count('#') == 12 + 24  # bars of one scale
  assert lines[2].count('#') == 12


@pytest.mark.parametrize('responses', quick.first(1, [2, 1, 3]))
def test_the_picture_is_drawn(tmp_path, responses):
  generator = np.random.default_rng(0)
  columns = [generator.geometric(0.02, 400) for _ in range(responses)]
  found = data_lengths.lengths(tokenized([512] * 40 + list(generator.integers(1, 512, 360)), *columns))
  data_lengths.draw(tmp_path / 'l.png', 'title', found, 512)
  pixels = image.imread(tmp_path / 'l.png')[..., :3]
  colors = {name: tuple(int(color[i : i + 2], 16) for i in (1, 3, 5)) for name, color in data_lengths.COLORS.items()}
  area = {name: np.mean(np.all(np.abs(pixels * 255 - color) < 2, axis=-1)) for name, color in colors.items()}
  drawn = {'prompt', 'chosen', 'rejected'} if responses == 2 else {'prompt', 'response'}
  assert {name for name, part in area.items() if part > 0.01} == drawn


def test_the_picture_of_one_pair(tmp_path):
  """All lengths are equal, and so is each difference to 0."""
  data_lengths.draw(tmp_path / 'l.png', 'title', data_lengths.lengths(tokenized([1], [1], [1])), 512)
  assert (tmp_path / 'l.png').exists()
