#!/usr/bin/env bash
# Everything about one GPU in at most ten minutes: products, the step with each kernel, objective and remat policy, its
# memory, what determinism costs, and sampling. Prints Markdown. Arguments are passed on to every measurement:
#
#   bench/gpu.sh                     in an environment with alignjax[gpu]
#   bench/gpu.sh --tiny --rounds=1   a tiny model, to see on any machine whether the script works
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python}
deadline=$((SECONDS + 570))

run() { # a measurement; one that fails or takes too long is reported, and the others go on
  local left=$((deadline - SECONDS))
  ((left > 10)) || { echo "| left out for time: $* |"; return; }
  timeout "$((left < 120 ? left : 120))" "$python" -m bench.accelerator "$@" 2> "$errors" ||
    echo "| failed: $* ($(grep -v '^ *$' "$errors" | tail -n 1 | cut -c 1-160)) |"
}

errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
command -v nvidia-smi > /dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
run --what=products "$@"
for attention in xla cudnn; do
  for remat in dots full; do
    run --attention=$attention --remat=$remat "$@"
  done
done
XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_deterministic_ops=true" run --label='deterministic' "$@"
for objective in 'tdpo(beta=0.1)' 'ra_dpo(risk=cvar(0.97))' 'ra_dpo(risk=cvar(0.97), off_path=0.9)' 'alpha_dpo()'; do
  run --objective="$objective" "$@"
done
echo
run --what=sampling "$@"
