#!/usr/bin/env bash
# The part of tpu_vm.sh and tpu_queued.sh that runs on each worker.
#
#   launch/tpu_worker.sh install
#   launch/tpu_worker.sh start SLICES ACCELERATOR ARGUMENTS...  # in the background, unless a run is going
#   launch/tpu_worker.sh follow LINES                           # shows the log until the run has ended
#   launch/tpu_worker.sh stop                                   # asks the run to save and end
#   launch/tpu_worker.sh log                                    # waits for the end; prints the log and the exit code
#
# Environment: RUN_FOLDER (~/alignjax-run), GRACE_SECONDS (after which `log` kills a run that does not end, 60).
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
if [[ ! ${1:-} =~ ^(install|start|supervise|follow|stop|log)$ ]]; then usage; fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${RUN_FOLDER:-$HOME/alignjax-run}

# The process that `start` has left behind. After a restart of the machine, another process may have its number.
pid=$(cat "$folder/pid" 2> /dev/null || true)
running() { [[ $pid =~ ^[1-9][0-9]+$ ]] && grep -qs tpu_worker "/proc/$pid/cmdline"; }

case $1 in
  install)
    if [[ -e .venv/ready ]]; then exit; fi
    version=$(sed -n 's/^UV_VERSION := //p' Makefile)
    python3 -m pip install --quiet --user "uv==$version"
    uv=$(python3 -m site --user-base)/bin/uv
    "$uv" venv --quiet --clear --python=3.12 .venv # downloads Python if the image has another one
    "$uv" pip install --quiet --python=.venv/bin/python --require-hashes --no-deps -r requirements-tpu.lock
    "$uv" pip install --quiet --python=.venv/bin/python --no-deps --editable .
    touch .venv/ready
    ;;
  start)
    if running; then
      echo "joining the run that is going"
      exit
    fi
    mkdir -p "$folder"
    rm -f "$folder/exit"
    setsid "$BASH" launch/tpu_worker.sh supervise "${@:2}" > "$folder/log" 2>&1 < /dev/null &
    echo "$!" > "$folder/pid"
    ;;
  supervise) # outlives the connection
    child=''
    trap 'signals=$((signals + 1)); kill ${child:+"$child"} 2> /dev/null || true' TERM
    SLICES=$2 launch/env.sh "$3" "${PYTHON:-.venv/bin/python}" -u -m alignjax train "${@:4}" &
    child=$!
    join "$child"
    echo "$status" > "$folder/exit"
    ;;
  follow)
    while running; do sleep 0.2; done &
    tail -n "${2:-+1}" -f -s 0.2 --pid="$!" "$folder/log"
    ;;
  stop) if running; then kill "$pid"; fi ;;
  log)
    deadline=$((SECONDS + ${GRACE_SECONDS:-60}))
    while running && ((SECONDS < deadline)); do sleep 0.2; done
    if running; then
      kill -KILL -- "-$pid" # and its children: `start` has made it the leader of a group
      echo 137 > "$folder/exit"
    fi
    cat "$folder/log"
    echo "exit code $(cat "$folder/exit" 2> /dev/null || echo "$CRASHED")"
    ;;
esac
