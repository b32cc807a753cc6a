#!/usr/bin/env bash
# Runs `alignjax train` on TPU slices from a queue: creates them, waits, installs a commit, starts all workers, shows the
# log of the first one, and ends with the exit code of the run.
#
#   launch/tpu_queued.sh NAME --accelerator=v5litepod-16 --runtime=v2-alpha-tpuv5-lite --spot -- --model=... --workdir=...
#   launch/tpu_queued.sh NAME --delete      # deletes the slices
#
# --slices=N (1); --spot, --reserved or --guaranteed; --delete before `--`: deletes the slices after exit code
# 0, 1 or 3; --dry-run: prints the commands. Runtimes: https://cloud.google.com/tpu/docs/runtimes
# Run it again: it joins a run that is still going, replaces slices that were preempted, and resumes. SIGTERM and Ctrl-C stop
# the run on all workers.
# Environment: COMMIT (HEAD), LOGS (folder, runs/launch/NAME), POLL_SECONDS (15). Project and zone are those of gcloud.
set -euo pipefail

# shellcheck source=launch/tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

# shellcheck disable=SC2034  # read in tpu.sh
READY=ACTIVE
# shellcheck disable=SC2034
GONE='SUSPENDING SUSPENDED FAILED'

create() {
  local ids=(--node-id="$name")
  if ((slices > 1)); then ids=(--node-count="$slices" --node-prefix="$name"); fi
  run gcloud compute tpus queued-resources create "$name" --accelerator-type="$accelerator" \
    --runtime-version="$runtime" "${ids[@]}" "${tier[@]}" --quiet
}

describe() { run gcloud compute tpus queued-resources describe "$name" --format='value(state.state)'; }

delete() { run gcloud compute tpus queued-resources delete "$name" --force --quiet; }

main "$@"
