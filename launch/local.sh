#!/usr/bin/env bash
# Runs one program as N processes on this machine, each with its own devices or a few virtual CPU devices.
#
#   launch/local.sh 2 -- --model=models/smollm2 --data=train.jsonl --workdir=runs/first
#   launch/local.sh 2 --module=doctor -- --model=models/smollm2 --data=train.jsonl
#   launch/local.sh 2 --dry-run -- ...    # prints the command of each process
#
# --module is a program of the command alignjax (default train), or a module that takes the same flags.
# Environment: DEVICES_PER_PROCESS (virtual CPU devices of each process; unset: the real devices), PYTHON,
# GRACE_SECONDS (time to save and exit after SIGTERM or Ctrl-C, 60 by default), RESTARTS=n (starts again after 42, 134 and
# 137, and gives up after n restarts without a new checkpoint; see launch/babysit.sh).
# SIGTERM and Ctrl-C reach every process, which saves a checkpoint and exits. Processes that are still there after
# GRACE_SECONDS are killed. Exit code: that of the first process that fails (the others are then stopped), 137 if one was
# killed, 42 (after Ctrl-C 130) if the run was stopped on request and has saved, 0 if it is done.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"
if [[ -n ${RESTARTS:-} ]]; then exec "$root/launch/babysit.sh" "$0" "$@"; fi
GRACE_SECONDS=${GRACE_SECONDS:-60}
FAILURE_SECONDS=15 # after a failure the others can only wait for one another, so they get no more than this

if ! [[ ${1:-} =~ ^[1-9][0-9]*$ && $GRACE_SECONDS =~ ^[0-9]+$ ]]; then usage; fi
processes=$1
shift
module=train
while [[ ${1:-} == --* && $1 != -- ]]; do
  case $1 in
    --module=*) module=${1#--module=} ;;
    --dry-run) DRY_RUN=1 ;;
    *) break ;; # a flag of the program
  esac
  shift
done
program=(alignjax "${module#alignjax.commands.}")
if [[ ${program[1]} == *.* ]]; then program=("$module"); fi
if [[ ${1:-} == -- ]]; then shift; fi

python=${PYTHON:-}
if [[ -z $python ]]; then
  python=python3
  if [[ -x $root/.venv/bin/python ]]; then python=$root/.venv/bin/python; fi
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

arguments=(--cluster=flags)
if [[ -n ${DEVICES_PER_PROCESS:-} ]]; then arguments+=("--local_devices=$DEVICES_PER_PROCESS"); fi
if ((processes > 1)); then
  port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
  arguments+=("--coordinator=localhost:$port" "--num_processes=$processes")
fi

command_of() { process=("$python" -u -m "${program[@]}" "${arguments[@]}" "--process_id=$1" "${@:2}"); }
if [[ -n ${DRY_RUN:-} ]]; then
  for ((i = 0; i < processes; i++)); do
    command_of "$i" "$@"
    run "${process[@]}"
  done
  exit
fi

pids=()
loggers=()
logs=()

signal_all() {
  local pid
  for pid in "${pids[@]}"; do
    if [[ -n $pid ]]; then kill -s "$1" "$pid" 2> /dev/null || true; fi
  done
}

# shellcheck disable=SC2329  # called by a trap
finish() {
  local log
  trap - EXIT
  signal_all KILL
  for log in "${logs[@]}"; do exec {log}>&-; done
  wait "${loggers[@]}" 2> /dev/null || true
}

# Asks every process to stop, and sets the deadline unless there is one. Called with the exit code of the launcher.
# shellcheck disable=SC2329
stop() {
  stopped=$1
  signal_all TERM
  if ((deadline == 0)); then deadline=$((SECONDS + GRACE_SECONDS)); fi
}

stopped=$PREEMPTED
deadline=0
trap finish EXIT
trap 'stop "$PREEMPTED"' TERM HUP
trap 'stop "$INTERRUPTED"' INT

for ((i = 0; i < processes; i++)); do
  exec {log}> >(trap '' TERM INT HUP && exec sed -u "s/^/[$i] /")
  loggers+=("$!")
  logs+=("$log")
  command_of "$i" "$@"
  "${process[@]}" >&"$log" 2>&1 &
  pids+=("$!")
done

# A loop, not `wait`: a trapped signal interrupts `wait`, which then cannot say which process has ended.
code=0
running=$processes
while ((running > 0)); do
  sleep 0.2 || true
  for i in "${!pids[@]}"; do
    pid=${pids[i]}
    if [[ -z $pid ]] || kill -0 "$pid" 2> /dev/null; then continue; fi
    status=0
    wait "$pid" || status=$?
    pids[i]=''
    running=$((running - 1))
    if ((status != 0 && (code == 0 || code == PREEMPTED))); then
      if ((status != PREEMPTED)); then
        echo "process $i has failed with exit code $status" >&2
        signal_all TERM
        limit=$((SECONDS + (GRACE_SECONDS < FAILURE_SECONDS ? GRACE_SECONDS : FAILURE_SECONDS)))
        if ((deadline == 0 || limit < deadline)); then deadline=$limit; fi
      fi
      code=$status
    fi
  done
  if ((deadline > 0 && SECONDS >= deadline)); then
    echo "not stopped in time: killing the processes that are left" >&2
    signal_all KILL
    deadline=$((SECONDS + FAILURE_SECONDS))
  fi
done
if ((code == PREEMPTED)); then code=$stopped; fi
exit "$code"
