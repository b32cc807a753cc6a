"""What a CPU needs for bfloat16: instructions for its products, and one flag of XLA."""

import os
import pathlib

import jax

# Rounds to bfloat16 at every cast. Otherwise each compiled function skips different roundings, and the loss of a policy
# that equals its reference is not exactly log 2.
FLAG = '--xla_allow_excess_precision=false'
INSTRUCTIONS = {'avx512_bf16', 'amx_bf16'}


def enable_bfloat16() -> bool:
  """Sets the flag for this process. Call it before JAX computes anything.

  The experimental oneDNN flags of XLA are not set: jaxlib 0.12.0.1 computes w + c * (a @ b) wrongly with them.

  Returns:
    Whether bfloat16 is faster than float32: on accelerators, and on CPUs with instructions for its products.
  """
  os.environ['XLA_FLAGS'] = ' '.join([*os.environ.get('XLA_FLAGS', '').split(), FLAG])
  return bool(INSTRUCTIONS & cpu_features()) or jax.default_backend() != 'cpu'


def cpu_features(cpuinfo: pathlib.Path = pathlib.Path('/proc/cpuinfo')) -> set[str]:
  """The features that every core reports; empty if the system does not list them."""
  if not cpuinfo.exists():
    return set()
  lines = cpuinfo.read_text(encoding='utf-8', errors='replace').splitlines()
  return next((set(line.partition(':')[2].split()) for line in lines if line.startswith('flags')), set())
