"""XLA flags for fast bfloat16 products on CPUs that have instructions for them.

Without these flags XLA emulates bfloat16 products on a CPU, and float32 is faster. They are experimental, so a child
process tries them first: XLA aborts the process if it does not know the flags or cannot use them.

With these flags, jaxlib 0.12.0.1 computes w + c * (a @ b) wrongly in one program, in float32 too. So programs that
merge adapters into kernels must not use them.
"""

import os
import pathlib
import subprocess
import sys

FLAGS = (
  '--xla_cpu_use_onednn=true',
  '--xla_cpu_experimental_onednn_fusion_type=LIBRARY_FUSION_TYPE_DOT',
  '--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_REDUCE',
  # Rounds to bfloat16 at every cast. Otherwise each compiled function skips different roundings, and the loss of a
  # policy that equals its reference is not exactly log 2.
  '--xla_allow_excess_precision=false',
)
INSTRUCTIONS = {'avx512_bf16', 'amx_bf16'}
_TRIAL = """
import jax, jax.numpy as jnp
x = jnp.ones((128, 128), jnp.bfloat16)
assert float(jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32))(x)[0, 0]) == 128
"""


def enable_fast_bfloat16() -> bool:
  """Sets the flags for this process if they help. Call it before JAX computes anything.

  Returns:
    Whether bfloat16 is faster than float32 on this CPU.
  """
  if not INSTRUCTIONS & _cpu_features():
    return False
  flags = ' '.join([*os.environ.get('XLA_FLAGS', '').split(), *FLAGS])
  environment = os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
  trial = subprocess.run([sys.executable, '-c', _TRIAL], env=environment, capture_output=True, check=False)
  if trial.returncode:
    return False
  os.environ['XLA_FLAGS'] = flags
  return True


def _cpu_features(cpuinfo: pathlib.Path = pathlib.Path('/proc/cpuinfo')) -> set[str]:
  """The features that every core reports; empty if the system does not list them."""
  if not cpuinfo.exists():
    return set()
  lines = cpuinfo.read_text(encoding='utf-8', errors='replace').splitlines()
  return next((set(line.partition(':')[2].split()) for line in lines if line.startswith('flags')), set())
