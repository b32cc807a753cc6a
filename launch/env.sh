#!/usr/bin/env bash
# Sets the environment for one kind of chip.
#
#   launch/env.sh v6e python -m alignjax train ...   # runs a command in that environment
#   launch/env.sh --print v6e                        # prints VARIABLE=value, one per line
#   source launch/env.sh v6e                         # sets it in this shell
#
# Chips: v4, v5e, v5p, v6e, v7x (TPU), gpu, cpu. An accelerator type such as v5litepod-16 or v6e-64 is accepted too.
# Variables that are already set stay as they are; XLA_FLAGS and LIBTPU_INIT_ARGS are extended, and your flags win.
# Environment: SLICES (TPU slices in the run, 1), DETERMINISTIC=1 (GPU: the same bits in every run, but slower).

# TPU compiler flags of a chip. Only those that libtpu does not set by itself: the latency hiding scheduler, asynchronous
# collectives and collective fusion are on by default. Offloading collectives to the SparseCore stays off, since it has
# changed losses on v6e and v7x.
tpu_flags() {
  # Vector memory that a fusion may use, in KiB. The larger budgets allow larger tiles in matrix products; they are the
  # values with which MaxText (v6e) and AXLearn (v5p, v6e, v7x) train dense transformers.
  case $1 in
    v5p) echo --xla_tpu_scoped_vmem_limit_kib=65472 ;;
    v6e) echo --xla_tpu_scoped_vmem_limit_kib=98304 ;;
    v7x) echo --xla_tpu_scoped_vmem_limit_kib=65536 ;;
  esac
  # Between slices, the sum of the gradients of one layer runs while those of the next are computed (MaxText, AXLearn).
  if ((${SLICES:-1} > 1)); then
    echo --xla_tpu_enable_data_parallel_all_reduce_opt=true
    echo --xla_tpu_data_parallel_opt_different_sized_ops=true
  fi
}

gpu_flags() {
  # Overlaps collectives with computation; off by default on GPUs. The only flag in NVIDIA's JAX images.
  echo --xla_gpu_enable_latency_hiding_scheduler=true
  # Scatters and reductions add in a fixed order, so that a resumed run repeats the losses bit for bit.
  if [[ -n ${DETERMINISTIC:-} ]]; then echo --xla_gpu_deterministic_ops=true; fi
}

chip_of() {
  case $1 in
    v4 | v4-*) echo v4 ;;
    v5e | v5litepod-*) echo v5e ;;
    v5p | v5p-*) echo v5p ;;
    v6e | v6e-*) echo v6e ;;
    v7x | tpu7x*) echo v7x ;;
    gpu | cpu) echo "$1" ;;
    *) return 1 ;;
  esac
}

# The environment of a chip, one VARIABLE=value per line.
settings() {
  # Programs compiled by an earlier start are not compiled again. Whoever can write there can run code as you.
  echo "JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/alignjax/xla}"
  case $1 in
    v*) echo "LIBTPU_INIT_ARGS=$(tpu_flags "$1" | tr '\n' ' ')${LIBTPU_INIT_ARGS:-}" ;;
    gpu)
      echo "XLA_FLAGS=$(gpu_flags | tr '\n' ' ')${XLA_FLAGS:-}"
      # JAX takes 75 % of the memory by default; NVIDIA's guide for JAX leaves 10 % to its libraries.
      echo "XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
      # NCCL is silent by default, and a failed collective then shows no cause.
      echo "NCCL_DEBUG=${NCCL_DEBUG:-WARN}"
      ;;
  esac
}

apply() {
  local line
  while read -r line; do export "${line?}"; done < <(settings "$1")
  (umask 077 && mkdir -p "$JAX_COMPILATION_CACHE_DIR")
}

if [[ ${BASH_SOURCE[0]} != "$0" ]]; then
  if ! chip_of "${1:-}" > /dev/null; then
    echo "launch/env.sh: unknown chip '${1:-}'" >&2
    return 1
  fi
  apply "$(chip_of "$1")"
  return
fi

set -euo pipefail
printing=''
if [[ ${1:-} == --print ]]; then
  printing=1
  shift
fi
if ! chip=$(chip_of "${1:-}") || [[ -z $printing && $# -lt 2 ]]; then
  sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
  exit 1
fi
if [[ -n $printing ]]; then
  settings "$chip"
  exit
fi
apply "$chip"
shift
exec "$@"
