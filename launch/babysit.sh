#!/usr/bin/env bash
# Runs a launcher, and runs it again after a preemption, a crash or a kill. The same command resumes the run.
#
#   launch/babysit.sh launch/local.sh 2 -- --model=models/smollm2 --data=train.jsonl --workdir=runs/first
#   launch/babysit.sh --dry-run COMMAND...    # prints the command
#
# Environment: RESTARTS (restarts without a new checkpoint before it gives up, 5), RESTART_ON (exit codes, '42 134 137'),
# BACKOFF_SECONDS (before a restart, 10; doubled each time that there is no new checkpoint, up to 600).
# SIGTERM and Ctrl-C are passed on, and end the loop. Ends with the exit code of the last run.
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
RESTARTS=${RESTARTS:-5}
export -n RESTARTS # launch/local.sh has a loop of its own
RESTART_ON=${RESTART_ON:-42 134 137}
BACKOFF_SECONDS=${BACKOFF_SECONDS:-10}
MAX_BACKOFF_SECONDS=600

if [[ ${1:-} == --dry-run ]]; then
  DRY_RUN=1
  shift
fi
if (($# == 0)) || [[ $1 == -* || ! $RESTARTS =~ ^[0-9]+$ || ! $BACKOFF_SECONDS =~ ^[0-9]+$ ]]; then usage; fi
if [[ -n ${DRY_RUN:-} ]]; then
  run "$@"
  exit
fi

child=''
stopped=''
# Called with the exit code of a run that has stopped as asked.
# shellcheck disable=SC2329  # called by a trap
stop() {
  stopped=$1
  signals=$((signals + 1))
  if [[ -n $child ]]; then kill "$child" 2> /dev/null || true; fi
}
trap 'stop "$PREEMPTED"' TERM
trap 'stop "$INTERRUPTED"' INT

# A run that resumes prints the step of the checkpoint that it has read. That shows progress wherever the files are.
steps=$(mktemp)
trap 'rm -f "$steps"' EXIT
find_steps() { sed -u -n -e p -e "s/.*resuming from step \([0-9][0-9]*\) in .*/\1/w $steps"; }

# Runs the command. Sets `code`.
attempt() {
  local output reader
  exec {output}> >(trap '' TERM INT HUP && find_steps)
  reader=$!
  "$@" >&"$output" &
  child=$!
  exec {output}>&-
  join "$child"
  code=$status
  child=''
  for _ in {1..20}; do # what the command has left behind may keep the pipe open
    if ! kill -0 "$reader" 2> /dev/null; then break; fi
    sleep 0.05
  done
}

newest=-1
wasted=0
while true; do
  attempt "$@"
  if [[ -n $stopped ]]; then exit $((code == PREEMPTED ? stopped : code)); fi
  if [[ ! " $RESTART_ON " == *" $code "* ]]; then exit "$code"; fi

  step=$(tail -n 1 "$steps")
  if ((${step:--1} > newest)); then
    newest=$step
    wasted=0
  fi
  if ((wasted == 0)); then delay=$BACKOFF_SECONDS; fi
  if ((wasted == RESTARTS)); then
    where='there is none'
    if ((newest >= 0)); then where="the newest is of step $newest"; fi
    echo "babysit: giving up after $wasted restarts without a new checkpoint ($where); exit code $code" >&2
    exit "$code"
  fi
  echo "babysit: exit code $code; starting again in $delay s" >&2
  pause "$delay"
  if [[ -n $stopped ]]; then exit "$code"; fi
  wasted=$((wasted + 1))
  delay=$((2 * delay < MAX_BACKOFF_SECONDS ? 2 * delay : MAX_BACKOFF_SECONDS))
done
