"""Identifies the contents of a model folder."""

from collections.abc import Callable
import hashlib
import pathlib

from alignjax import files
from alignjax.models import manifest, peft

_SMALL = ('config.json', 'tokenizer.json', 'tokenizer_config.json', peft.CONFIG)


def of(folder: str, whole: bool = False, alive: Callable[[], None] = lambda: None) -> str:
  """Hashes a model or an adapter: its small files in full, and its weights.

  Args:
    folder: the folder of the model or adapter.
    whole: hash all weights; otherwise only file sizes and 32 samples of 64 KiB per file, which is fast enough for
      every start of a run.
    alive: called between files.
  """
  digest = hashlib.sha256()
  small = [pathlib.Path(folder) / name for name in _SMALL]
  for file in [files.check_regular(file) for file in small if file.exists()]:
    digest.update(f'{file.name}:{file.stat().st_size}:'.encode() + file.read_bytes())
  for file in sorted(pathlib.Path(folder).glob('*.safetensors')):
    alive()
    size = files.check_regular(file).stat().st_size
    digest.update(f'{file.name}:{size}:'.encode())
    if whole:
      digest.update(bytes.fromhex(manifest.sha256(file)))
      continue
    with file.open('rb') as stream:
      for sample in range(32):
        stream.seek(size * sample // 32)
        digest.update(stream.read(2**16))
  return digest.hexdigest()
