"""Peak memory of merging two models of 135M parameters, relative to the size of one, and a sample from the result.

  python -m bench.merge_memory
  python -m bench.merge_memory --model=base --method='dare(density=0.5)'

SmolLM2-135M-Instruct is converted, unless --model names another folder. Two randomly perturbed copies are merged by
each method, in a separate process; methods that need a base use the original. `peak` is the peak resident set size of
that process. It includes Python and JAX, whose share is the line `import`.
"""

from collections.abc import Sequence
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from absl import app, flags, logging
import numpy as np

from alignjax.models import folders
from alignjax.run import folder_tensors, merge_folders, smollm2
from alignjax.sampling import strategies, text

ROOT = pathlib.Path(__file__).parents[1]
# A child process inherits the peak memory of its parent, so a small process launches the measured one.
LAUNCHER = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
METHODS = ('linear()', 'slerp()', 'ties(density=0.5)', 'dare(density=0.5)', 'model_stock()')

_MODEL = flags.DEFINE_string('model', None, 'Folder of the base model; SmolLM2-135M-Instruct by default.')
_METHODS = flags.DEFINE_multi_string('method', list(METHODS), 'Merge methods, as expressions.')
_SPREAD = flags.DEFINE_float('spread', 1e-3, 'Standard deviation of the perturbations.')


class Cost(NamedTuple):
  """The cost of a process."""

  seconds: float
  peak: int  # peak resident set size, in bytes


def measure(arguments: Sequence[str]) -> Cost:
  """Runs Python with these arguments and measures its time and peak memory."""
  began = time.monotonic()
  command = [sys.executable, '-I', '-S', '-c', LAUNCHER, sys.executable, *arguments]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  if done.returncode != 0:
    raise RuntimeError(f'exit code {done.returncode}:\n{done.stderr}')
  unit = 1 if sys.platform == 'darwin' else 1024
  return Cost(time.monotonic() - began, int(done.stdout) * unit)


def perturb(source: pathlib.Path, target: pathlib.Path, seed: int, spread: float) -> None:
  """Writes a copy of a model with noise added to every weight."""
  places = folder_tensors.places(source)
  generator = np.random.default_rng(seed)

  def blocks(name: str):
    for block in places[name].blocks():
      yield block.astype(np.float32) + spread * generator.standard_normal(block.shape, np.float32)

  planned = [folder_tensors.Planned(name, place.shape, place.dtype) for name, place in places.items()]
  with folders.replacing(target) as partial:
    folders.write_json(partial / folders.CONFIG, folders.read_json(source / folders.CONFIG))
    folders.copy_assets(source, partial)
    folder_tensors.write(partial, planned, blocks, {})


def run(base: pathlib.Path, folder: pathlib.Path, methods: Sequence[str], spread: float) -> None:
  """Perturbs, merges and measures in an empty folder, and prints the table."""
  models = [folder / 'first', folder / 'second']
  for seed, model in enumerate(models):
    perturb(base, model, seed, spread)
  size = sum(path.stat().st_size for path in models[0].glob('*.safetensors'))
  print(f'one model: {size / 2**20:.0f} MiB')
  print(f'{"method":24} {"seconds":>8} {"peak MiB":>9} {"of one model":>13}')

  def tell(label: str, cost: Cost) -> None:
    print(f'{label:24} {cost.seconds:8.1f} {cost.peak / 2**20:9.0f} {cost.peak / size:13.2f}', flush=True)

  tell('import', measure(['-c', 'import jax; from alignjax.commands import merge; jax.numpy.zeros(1)']))
  for i, method in enumerate(methods):
    out = folder / f'merged_{i}'
    command = ['-m', 'alignjax', 'merge', f'--method={method}', f'--models={models[0]},{models[1]}', f'--out={out}']
    if merge_folders.parse_method(method).needs_base:
      command.append(f'--base={base}')
    tell(method, measure(command))
  prompt = [{'role': 'user', 'content': 'What is the capital of France?'}]
  text_sampler, params = text.load(out, text.Options(max_new_tokens=24, strategy=strategies.greedy()))
  (response,) = text_sampler(params, [prompt])
  print(f'{methods[-1]} answers: {response.response!r}')


def main(argv: Sequence[str]) -> None:
  if argv[1:]:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  logging.set_verbosity(logging.WARNING)
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    base = smollm2.convert(folder / 'base') if _MODEL.value is None else pathlib.Path(_MODEL.value).resolve()
    run(base, folder, _METHODS.value, _SPREAD.value)


if __name__ == '__main__':
  app.run(main)
