"""Damaged and hostile headers: what is read is refused by file, or is finite and of the right shape.

100 cases run by default. All 1,000 with

  ALIGNJAX_FUZZ_CASES=1000 python -m pytest tests/models/header_fuzz_test.py
"""

from collections.abc import Sequence
import json
import os
import pathlib
import shutil
import tracemalloc

import numpy as np
import pytest

from alignjax.models import checkpoint_io, folders, gguf
from tests import quick
from tests.models import gguf_files, model_folders

CASES = int(os.environ.get('ALIGNJAX_FUZZ_CASES', '100'))
PART = 25  # cases of one test
KINDS = {'safetensors': 0.45, 'gguf': 0.35, 'index': 0.1, 'config': 0.1}  # of files, with their shares
ABSURD = (
  0,
  1,
  -1,
  2**31 - 1,
  2**31,
  2**32,
  2**40,
  2**63 - 1,
  2**63,
  2**64 - 1,
  10**400,
  0.5,
  1e300,
  None,
  True,
  '7',
  [],
)
NAMES = ('', '/', '../model.norm.weight', '/tmp/escaped', 'a\x00b', '\ud800', 'x' * 10**5, '__metadata__', '\n', '.')
FILES = ('../escaped.safetensors', '/tmp/escaped.safetensors', 'a/../b.safetensors', 'a\x00.safetensors', '..', '', 7)
SLACK = 4 * 2**20  # bytes of Python objects that no declared size accounts for


def damage(
  content: bytes, regions: Sequence[tuple[int, int]], counts: Sequence[int], generator: np.random.Generator
) -> bytes:
  """Flips bits in one of the regions, puts an absurd number there or for a count, cuts the file, or lengthens it."""
  first, last = pick(regions, generator)
  mutant = bytearray(content)
  way = generator.integers(0, 4)
  if way == 0:
    for position in generator.integers(first, last, generator.integers(1, 5)):
      mutant[position] ^= 1 << int(generator.integers(0, 8))
  elif way == 1:
    start = pick(counts, generator) if generator.random() < 0.5 else int(generator.integers(first, last - 8))
    number = pick((2**24, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1), generator)
    mutant[start : start + 8] = number.to_bytes(8, 'little')
  elif way == 2:
    del mutant[int(generator.integers(0, len(mutant))) :]
  else:
    mutant += bytes(int(generator.integers(1, 100)))
  return bytes(mutant)


def pick(choices, generator):
  return choices[int(generator.integers(0, len(choices)))]


def nested(depth: int) -> list:
  value = []
  for _ in range(depth):
    value = [value]
  return value


def replace_somewhere(entries: dict, generator: np.random.Generator) -> None:
  """Puts an absurd value at a random place of nested JSON."""
  key = pick(sorted(entries), generator)
  if isinstance(entries[key], dict) and entries[key] and generator.random() < 0.8:
    replace_somewhere(entries[key], generator)
  elif isinstance(entries[key], list) and entries[key] and generator.random() < 0.8:
    entries[key][int(generator.integers(0, len(entries[key])))] = pick(ABSURD, generator)
  else:
    entries[key] = pick((*ABSURD, {}, nested(50), 'F64', 'BOOL', 'F16', [-1, 4], [2**62, 4]), generator)


def mutate_safetensors(content: bytes, generator: np.random.Generator) -> bytes:
  """Damages bytes, or rewrites the header: sizes, shapes, offsets, names, nesting and count of its entries."""
  length = int.from_bytes(content[:8], 'little')
  if generator.random() < 0.35:
    return damage(content, [(0, 8 + length)], [0], generator)
  header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
  tensors = sorted(set(header) - {'__metadata__'})
  first, second = pick(tensors, generator), pick(tensors, generator)
  way = generator.integers(0, 8)
  if way == 0:
    header[first]['shape'] = [pick(ABSURD, generator) for _ in range(generator.integers(0, 5))]
  elif way == 1:
    header[first]['data_offsets'] = [pick(ABSURD, generator) for _ in range(generator.integers(1, 4))]
  elif way == 2:
    header[first]['data_offsets'] = header[second]['data_offsets']
  elif way == 3:
    header[pick(NAMES, generator)] = header.pop(first)
  elif way == 4:
    header[first], header[second] = header[second], header[first]
  elif way == 5:
    header |= {f'empty.{i}': {'dtype': 'F32', 'shape': [0], 'data_offsets': [0, 0]} for i in range(2000)}
  elif way == 6:
    data = np.frombuffer(data, np.uint32) ^ np.uint32(1 << int(generator.integers(20, 32)))
    data = data.tobytes()
  else:
    replace_somewhere(header, generator)
  text = json.dumps(header)
  if generator.random() < 0.1:
    text = text.replace(':', ':' + '[' * 5000, 1)
  encoded = text.encode('utf-8', 'surrogatepass')
  length = pick(ABSURD[:10], generator) % 2**64 if generator.random() < 0.1 else len(encoded)
  return length.to_bytes(8, 'little') + encoded + data


def mutate_gguf(content: bytes, generator: np.random.Generator) -> bytes:
  """Damages the header, most of all its counts, its first entries and its list of tensors."""
  tensors = content.index(b'token_embd.weight')
  counts = [8, 16, 24, tensors - 8]  # of tensors, of entries, and lengths of their first names
  for array in (b'tokenizer.ggml.tokens', b'tokenizer.ggml.token_type'):
    counts.append(content.index(array) + len(array) + 8)
  regions = [(0, 24), (0, 700), (tensors - 8, tensors + 900), (tensors - 8, tensors + 900), (0, tensors)]
  return damage(content, regions, counts, generator)


def mutate_json(content: bytes, generator: np.random.Generator) -> bytes:
  """Damages the text, or puts an absurd value somewhere."""
  if generator.random() < 0.3:
    return damage(content, [(0, len(content))], [0], generator)
  entries = json.loads(content)
  weights = entries.get('weight_map')
  if weights is None:
    replace_somewhere(entries, generator)
  elif generator.random() < 0.5:
    weights[pick(sorted(weights), generator)] = pick(FILES, generator)
  else:
    weights[pick(NAMES, generator)] = weights.pop(pick(sorted(weights), generator))
  return json.dumps(entries).encode()


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  return {str(path): path.read_bytes() if path.is_file() else b'' for path in folder.rglob('*')}


@pytest.fixture(scope='module')
def intact(tmp_path_factory):
  """The files of three models: in one file, in several, and as GGUF."""
  root = tmp_path_factory.mktemp('intact')
  model_folders.write(root / 'whole', layers=1)
  parts = model_folders.write(root / 'parts', layers=1)
  names = sorted(model_folders.stored(parts))
  model_folders.shard(parts, {name: f'part-{index % 2}.safetensors' for index, name in enumerate(names)})
  (root / 'gguf').mkdir()
  gguf_files.write(root / 'gguf' / 'a.gguf')
  gguf.convert(root / 'gguf' / 'a.gguf', root / 'converted')  # imports the reader before memory is measured
  return root


def check_folder(folder: pathlib.Path) -> None:
  """Reads the model, and says whether it is one."""
  config = checkpoint_io.load_config(folder)
  leaves = model_folders.flat(checkpoint_io.load_params(folder, config))
  shapes, _ = checkpoint_io.parameter_shapes(config)
  assert {leaf: value.shape for leaf, value in leaves.items()} == shapes
  assert all(np.isfinite(value).all() for value in leaves.values())


def run(kind: str, intact: pathlib.Path, folder: pathlib.Path, generator: np.random.Generator) -> str | None:
  """Reads one mutant. Returns the message with which it is refused, or None."""
  source = {'gguf': 'gguf', 'index': 'parts'}.get(kind, 'whole')
  shutil.copytree(intact / source, folder / 'model', dirs_exist_ok=True)
  file = {'gguf': 'a.gguf', 'index': folders.INDEX, 'config': folders.CONFIG, 'safetensors': folders.WEIGHTS}[kind]
  path = folder / 'model' / file
  content = path.read_bytes()
  if kind == 'gguf':
    mutant = mutate_gguf(content, generator)
  else:
    mutant = (mutate_safetensors if kind == 'safetensors' else mutate_json)(content, generator)
  path.write_bytes(mutant)
  before = contents(folder)
  tracemalloc.reset_peak()
  held, _ = tracemalloc.get_traced_memory()
  refusal = None
  try:
    if kind == 'gguf':
      gguf.convert(path, folder / 'out')
    else:
      check_folder(folder / 'model')
  except ValueError as error:
    refusal = str(error)
    assert str(folder / 'model') in refusal, 'the file must be named'
  _, peak = tracemalloc.get_traced_memory()
  assert peak - held < 20 * len(mutant) + SLACK, 'memory must be bounded by what there is in the file'
  after = contents(folder)
  assert {name: after.get(name) for name in before} == before, 'nothing may be written but the target'
  if kind == 'gguf' and refusal is None:
    assert {pathlib.Path(name).relative_to(folder).parts[0] for name in after} == {'model', 'out'}
    check_folder(folder / 'out')
  else:
    assert after.keys() == before.keys()
  return refusal


@pytest.mark.parametrize('part', quick.first(2, range(-(-CASES // PART))))
def test_a_damaged_file_is_refused_by_name_or_holds_a_model(part, intact, tmp_path):
  generator = np.random.default_rng(part)
  refused = {kind: [] for kind in KINDS}
  escaped = [pathlib.Path('/tmp/escaped'), pathlib.Path('/tmp/escaped.safetensors')]
  tracemalloc.start()
  try:
    for case in range(min(PART, CASES - part * PART)):
      kind = str(generator.choice(list(KINDS), p=list(KINDS.values())))
      refused[kind].append(run(kind, intact, tmp_path / str(case), generator) is not None)
      shutil.rmtree(tmp_path / str(case))
  finally:
    tracemalloc.stop()
  assert not any(path.exists() for path in escaped)
  assert sum(map(sum, refused.values())) > PART // 3, 'most mutants must be refused, else nothing has been tried'
  print({kind: f'{sum(cases)} of {len(cases)} refused' for kind, cases in refused.items()})
