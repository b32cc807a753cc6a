"""The time and memory to read and write each model family, and its differences from Hugging Face transformers.

  python -m bench.families
  python -m bench.families --family=gpt2 --family=phi3
  python -m bench.families --only_differences

For each family, a random model of about 135M parameters, with the shape of SmolLM2 and the parts of the family, is
written as float32 safetensors, read back and written again, each in a separate process. `peak` is the largest increase
in memory of such a process. On a CPU it includes the parameters themselves, whose size is `model`; reading and writing
need the difference. Mapped pages of files do not count, because the operating system can reclaim them. The measurement
requires Linux. Differences are the largest over the float32 fixtures of the family in tests/golden; --only_differences
prints those of each fixture.
"""

from collections.abc import Sequence
import dataclasses
import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, NamedTuple

from absl import app, flags, logging
import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from alignjax.models import checkpoint_io, families, transformer
from alignjax.stats import head
from bench import shapes

ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = ROOT / 'tests' / 'golden'
GPT2_SMALL = {
  'vocab_size': 50_257,
  'width': 768,
  'layers': 12,
  'heads': 12,
  'kv_heads': 12,
  'mlp_width': 3072,
  'max_positions': 1024,
}
SHAPES = {  # in addition to the constant fields of the family
  'gemma2': {'score_width': 64, 'sliding_window': 4096, 'score_cap': 50.0, 'logit_cap': 30.0},
  'gemma3_text': {'score_width': 64, 'sliding_window': 512, 'local_rope_theta': 1e4},
  'gpt2': GPT2_SMALL,
  'granite': {'score_multiplier': 0.125},
  'gpt_neox': GPT2_SMALL
  | {
    'tied_embeddings': False,
    'parallel_residual': True,
    'rotary_fraction': 0.25,
    'qkv_bias': True,
    'output_bias': True,
  },
  'mistral': {'sliding_window': 4096},
  'mixtral': {'experts': 4, 'experts_per_token': 2, 'mlp_width': 384},
  'olmo3': {'local_rope_theta': 1e5, 'rope_theta': 1e5, 'sliding_window': 4096},
  'qwen3_moe': {'experts': 4, 'experts_per_token': 2, 'mlp_width': 384},
  'smollm3': {'unrotated_every': 4},
}

_FAMILIES = flags.DEFINE_multi_string('family', sorted(families.FAMILIES), 'Families to measure, by model_type.')
_ONLY_DIFFERENCES = flags.DEFINE_boolean('only_differences', False, 'Print the differences of each fixture alone.')


class Cost(NamedTuple):
  """The cost of reading or writing a model."""

  seconds: float
  peak: float  # largest increase in memory, in bytes


class Difference(NamedTuple):
  """The largest absolute differences from transformers."""

  logits: float
  hidden: float


class PeakMemory(threading.Thread):
  """Records the peak anonymous memory of this process while the block runs."""

  def __init__(self):
    super().__init__(daemon=True)
    self.first = self.peak = _anonymous_bytes()
    self.done = threading.Event()

  def run(self) -> None:
    while not self.done.wait(0.005):
      self.peak = max(self.peak, _anonymous_bytes())

  def __enter__(self) -> 'PeakMemory':
    self.start()
    return self

  def __exit__(self, *_: Any) -> None:
    self.peak = max(self.peak, _anonymous_bytes())
    self.done.set()
    self.join()


def _anonymous_bytes() -> int:
  status = pathlib.Path('/proc/self/status').read_text()
  return 1024 * int(re.search(r'RssAnon:\s+(\d+) kB', status).group(1))


def shape(model_type: str) -> transformer.TransformerConfig:
  """The configuration of a model of one family with about 135M parameters."""
  fields = families.by_type(model_type).fields | SHAPES.get(model_type, {})
  return dataclasses.replace(shapes.SMOLLM2_135M, model_type=model_type, **fields)


def random_params(config: transformer.TransformerConfig) -> Any:
  """Random parameters."""
  leaf_shapes, structure = checkpoint_io.parameter_shapes(config)
  generator = np.random.default_rng(0)
  return jax.tree.unflatten(
    structure, [0.02 * generator.standard_normal(size, np.float32) for size in leaf_shapes.values()]
  )


def measure(role: str, source: pathlib.Path, target: pathlib.Path) -> Cost:
  """Measures reading a folder ('import') or writing it after reading ('export') in this process."""
  config = checkpoint_io.load_config(source)
  jax.block_until_ready(jax.device_put(np.zeros(1)))  # starts the backend
  with PeakMemory() as memory:
    began = time.monotonic()
    params = jax.block_until_ready(checkpoint_io.load_params(source, config))
    seconds = time.monotonic() - began
    if role == 'export':
      began = time.monotonic()
      checkpoint_io.save(target, config, params)
      seconds = time.monotonic() - began
  return Cost(seconds, memory.peak - memory.first)


def in_process(role: str, source: pathlib.Path, target: pathlib.Path) -> Cost:
  """Runs `measure` in a separate process."""
  command = [sys.executable, '-m', 'bench.families', role, str(source), str(target)]
  done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
  return Cost(*json.loads(done.stdout))


def difference(model_type: str) -> Difference:
  """The largest differences over the golden fixtures of a family."""
  configs = {folder: checkpoint_io.load_config(folder) for folder in fixtures()}
  found = [of_fixture(folder, config) for folder, config in configs.items() if config.model_type == model_type]
  if not found:
    raise ValueError(f'{GOLDEN}: has no fixture for the family {model_type!r}')
  return Difference(*map(max, zip(*found, strict=True)))


def fixtures() -> list[pathlib.Path]:
  """The folders of the golden checkpoints."""
  return sorted(path.parent for path in GOLDEN.glob('*/golden.safetensors'))


def of_fixture(folder: pathlib.Path, config: transformer.TransformerConfig) -> Difference:
  """The largest differences over one golden checkpoint."""
  files = (folder / 'golden.safetensors', folder / 'hidden.safetensors')
  golden = {name: value for path in files for name, value in safetensors_numpy.load_file(path).items()}
  return _difference(config, checkpoint_io.load_params(folder, config), golden)


def _difference(config: transformer.TransformerConfig, params: Any, golden: dict[str, np.ndarray]) -> Difference:
  model = transformer.build(config)
  fields = ('prompt', 'prompt_length', 'response', 'response_length')
  hidden = jax.jit(model.hidden)(params, *(golden[name] for name in fields))
  logits = head.logits(head.HiddenStates(hidden, model.head(params)))
  valid = np.arange(golden['response'].shape[-1]) < golden['response_length'][..., None]
  pairs = ((logits, golden['logits']), (hidden, golden['hidden']))
  return Difference(*(float(np.abs(np.asarray(ours) - theirs)[valid].max()) for ours, theirs in pairs))


def row(model_type: str, folder: pathlib.Path) -> str:
  """One line of the table."""
  config = shape(model_type)
  parameters = sum(map(math.prod, checkpoint_io.parameter_shapes(config)[0].values()))
  logging.info('%s: writing %.0fM parameters', model_type, parameters / 1e6)
  checkpoint_io.save(folder / 'source', config, random_params(config))
  costs = []
  for role in ('import', 'export'):
    logging.info('%s: %s', model_type, role)
    costs.append(in_process(role, folder / 'source', folder / 'target'))
  logging.info('%s: differences', model_type)
  error, mib = difference(model_type), 2**20
  cells = [
    f'`{model_type}`',
    f'{parameters / 1e6:.0f}M',
    f'{error.logits:.1e}',
    f'{error.hidden:.1e}',
    *(f'{cost.seconds:.1f} s' for cost in costs),
    f'{4 * parameters / mib:.0f} MiB',
    *(f'{cost.peak / mib:.0f} MiB' for cost in costs),
  ]
  return f'| {" | ".join(cells)} |'


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    role, source, target = argv[1:]
    print(json.dumps(measure(role, pathlib.Path(source), pathlib.Path(target))))
    return
  if _ONLY_DIFFERENCES.value:
    print('| fixture | family | max Δ logits | max Δ hidden |\n|---|---|---|---|', flush=True)
    for folder in fixtures():
      config = checkpoint_io.load_config(folder)
      error = of_fixture(folder, config)
      print(f'| {folder.name} | `{config.model_type}` | {error.logits:.1e} | {error.hidden:.1e} |', flush=True)
    return
  print('| family | parameters | max Δ logits | max Δ hidden | import | export | model | peak import | peak export |')
  print('|---|---|---|---|---|---|---|---|---|', flush=True)
  for model_type in _FAMILIES.value:
    with tempfile.TemporaryDirectory() as folder:
      print(row(model_type, pathlib.Path(folder)), flush=True)


if __name__ == '__main__':
  logging.set_verbosity(logging.INFO)
  app.run(main)
