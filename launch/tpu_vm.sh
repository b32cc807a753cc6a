#!/usr/bin/env bash
# Runs `alignjax train` on one TPU slice that is available at once: creates it, installs a commit, starts all workers, shows
# the log of the first one, and ends with the exit code of the run. For slices from a queue, see launch/tpu_queued.sh.
#
#   launch/tpu_vm.sh NAME --accelerator=v6e-8 --runtime=v2-alpha-tpuv6e -- --model=... --workdir=...
#   launch/tpu_vm.sh NAME --delete      # deletes the slice
#
# --spot or --reserved; --delete before `--`: deletes the slice after exit code 0, 1 or 3;
# --dry-run: prints the commands. Runtimes: https://cloud.google.com/tpu/docs/runtimes
# Run it again: it joins a run that is still going, replaces a slice that was preempted, and resumes. SIGTERM and Ctrl-C stop
# the run on all workers.
# Environment: COMMIT (HEAD), LOGS (folder, runs/launch/NAME), POLL_SECONDS (15). Project and zone are those of gcloud.
set -euo pipefail

# shellcheck source=launch/tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

# shellcheck disable=SC2034  # read in tpu.sh
READY=READY
# shellcheck disable=SC2034
GONE='PREEMPTED TERMINATED STOPPED UNKNOWN'

create() {
  if ((slices > 1)) || [[ ${tier[*]} == --guaranteed ]]; then usage; fi
  run gcloud compute tpus tpu-vm create "$name" --accelerator-type="$accelerator" --version="$runtime" "${tier[@]}" --quiet
}

describe() { run gcloud compute tpus tpu-vm describe "$name" --format='value(state)'; }

delete() { run gcloud compute tpus tpu-vm delete "$name" --quiet; }

main "$@"
