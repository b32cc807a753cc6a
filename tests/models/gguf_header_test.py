"""Every length, count and place in a GGUF header is compared with the file before anything follows it."""

import gguf as gguf_format
import pytest

from alignjax.models import gguf_header
from tests.models import gguf_files

TYPES = gguf_format.GGML_QUANT_SIZES
EMBEDDING = b'token_embd.weight'


@pytest.fixture(scope='module')
def intact(tmp_path_factory):
  return gguf_files.write(tmp_path_factory.mktemp('gguf') / 'a.gguf').read_bytes()


def _check(content, folder):
  path = folder / 'a.gguf'
  path.write_bytes(content)
  gguf_header.check(path, TYPES)


def _with(content, start, number, size=8):
  return content[:start] + number.to_bytes(size, 'little') + content[start + size :]


def _after(content, key, skipped=0):
  return content.index(key) + len(key) + skipped


def test_an_intact_file_passes_and_one_that_is_cut_does_not(intact, tmp_path):
  _check(intact, tmp_path)
  for size in (0, 3, 6, 23, 25, 500, _after(intact, EMBEDDING, 10), len(intact) - 1):
    with pytest.raises(ValueError, match=r'malformed header|bytes at offset \d+, but the tensor data has only'):
      _check(intact[:size], tmp_path)


@pytest.mark.parametrize('number', [2**40, 2**62, 2**64 - 1])
def test_absurd_counts_are_refused_at_once(intact, tmp_path, number):
  starts = {
    'tensors': 8,
    'entries': 16,
    'length of the first key': 24,
    'items that are numbers': _after(intact, b'tokenizer.ggml.token_type', 8),
    'items that are strings': _after(intact, b'tokenizer.ggml.tokens', 8),
    'length of a string': _after(intact, b'tokenizer.ggml.pre', 4),
    'length of the name of a tensor': intact.index(EMBEDDING) - 8,
    'a side of a tensor': _after(intact, EMBEDDING, 4),
    'place of a tensor': _after(intact, EMBEDDING, 24),
  }
  accepted = []
  for name, start in starts.items():
    try:
      _check(_with(intact, start, number), tmp_path)
    except ValueError:
      continue
    accepted.append(name)
  assert accepted == []


@pytest.mark.parametrize(
  ('key', 'skipped', 'number', 'size', 'message'),
  [
    (b'GGUF', 0, 1, 4, 'unsupported version 1; known: 2, 3'),
    (b'GGUF', 0, 0x03000000, 4, 'version 50331648'),  # big-endian
    (b'tokenizer.ggml.pre', 0, 77, 4, 'value type 77 is not supported'),
    (b'tokenizer.ggml.tokens', 4, 9, 4, 'arrays of value type 9'),
    (EMBEDDING, 0, 5, 4, 'token_embd.weight: has 5 dimensions, but at most 4'),
    (EMBEDDING, 20, 999, 4, 'token_embd.weight: unknown tensor type 999'),
    (b'blk.0.attn_norm.weight', 16, 0, 8, 'tensors .* and .* overlap'),
  ],
)
def test_what_is_not_known_or_overlaps_is_named(intact, tmp_path, key, skipped, number, size, message):
  with pytest.raises(ValueError, match=message):
    _check(_with(intact, _after(intact, key, skipped), number, size), tmp_path)


def test_a_list_of_items_longer_than_any_vocabulary_is_refused_though_the_file_has_them(tmp_path, intact, monkeypatch):
  monkeypatch.setattr(gguf_header, 'ITEMS', 500)
  with pytest.raises(ValueError, match='arrays with at least 768 items'):
    _check(intact, tmp_path)


def test_other_files_are_told_apart(tmp_path):
  with pytest.raises(ValueError, match='not a GGUF file'):
    _check(b'not a model', tmp_path)
