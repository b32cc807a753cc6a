# shellcheck shell=bash
# What tpu_vm.sh and tpu_queued.sh share: all but how slices are created, described and deleted. Sourced, never run.
#
# They define: READY (the state in which slices can be used), GONE (states that end in a new creation), and the functions
# create, describe, delete.

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Reads the command line. Sets name, accelerator, runtime, slices, tier, deleting, arguments, and what follows from them.
# shellcheck disable=SC2034  # tier is read by tpu_vm.sh and tpu_queued.sh
parse() {
  name=${1:-}
  accelerator='' runtime='' slices=1 tier=() deleting='' arguments=()
  if [[ ! $name =~ ^[a-z][a-z0-9-]*$ ]]; then usage; fi
  shift
  while (($#)); do
    case $1 in
      --accelerator=*) accelerator=${1#*=} ;;
      --runtime=*) runtime=${1#*=} ;;
      --slices=*) slices=${1#*=} ;;
      --spot | --reserved | --guaranteed) tier=("$1") ;;
      --delete) deleting=1 ;;
      --dry-run) DRY_RUN=1 ;;
      --)
        arguments=("${@:2}")
        break
        ;;
      *) usage ;;
    esac
    shift
  done
  if [[ ! $slices =~ ^[1-9][0-9]*$ ]]; then usage; fi
  if [[ -n $deleting && ${#arguments[@]} == 0 ]]; then # nothing to run
    delete
    exit
  fi
  if [[ -z $accelerator || -z $runtime || ${#arguments[@]} == 0 ]]; then usage; fi

  nodes=("$name")
  if ((slices > 1)); then
    nodes=()
    for ((i = 0; i < slices; i++)); do nodes+=("$name-$i"); done
  fi
  commit=$(git -C "$root" rev-parse --verify --quiet --short=12 "${COMMIT:-HEAD}^{commit}") || usage
  folder=alignjax-$commit
  logs=${LOGS:-runs/launch/$name}
  if [[ -z ${DRY_RUN:-} ]]; then mkdir -p "$logs"; fi
}

# Ends with the code on which babysit.sh starts again.
give_up() {
  echo "$name: $1" >&2
  exit "$CRASHED"
}

# Sets `state`: that of the slices, '' if there are none.
look() {
  if state=$(describe 2> "$logs/error"); then return; fi
  if ! grep -q NOT_FOUND "$logs/error"; then
    cat "$logs/error" >&2
    give_up 'cannot read the state of the slices'
  fi
  state=''
}

# Returns when the slices are ready. Slices that were preempted or have failed are deleted and created again.
wait_until_ready() {
  if [[ -n ${DRY_RUN:-} ]]; then
    create
    describe
    return
  fi
  local created='' shown=none
  while true; do
    look
    if [[ $state != "$shown" ]]; then echo "$name: ${state:-there is none}" >&2; fi
    shown=$state
    if [[ $state == "$READY" ]]; then return; fi
    if [[ -n $created && (-z $state || " $GONE " == *" $state "*) ]]; then give_up "the new slices are ${state:-gone}"; fi
    if [[ -z $state ]]; then
      create || give_up 'cannot create the slices'
      created=1
    elif [[ " $GONE " == *" $state "* ]]; then
      delete || give_up 'cannot delete the slices'
      continue
    fi
    pause "$POLL_SECONDS"
  done
}

# Runs a command on some workers of a slice. Further arguments are flags of gcloud.
on() { run gcloud compute tpus tpu-vm ssh "$1" --worker="$2" --command="$3" --quiet "${@:4}"; }

# Runs a function for every slice, all at the same time. Called with the function and its arguments; the slice comes last.
for_every_slice() {
  local node pid pids=() failed=''
  for node in "${nodes[@]}"; do
    if [[ -n ${DRY_RUN:-} ]]; then
      "$@" "$node"
    else
      "$@" "$node" &
      pids+=("$!")
    fi
  done
  for pid in "${pids[@]}"; do
    join "$pid"
    if ((status)); then failed=1; fi
  done
  [[ -z $failed ]]
}

# Copies the commit to all workers of a slice, and installs it. What is not committed is not copied.
install() {
  run gcloud compute tpus tpu-vm scp "$logs/$folder.tar.gz" "$1:" --worker=all --quiet &&
    on "$1" all "tar --skip-old-files -xzf $folder.tar.gz && bash $folder/launch/tpu_worker.sh install"
}

tell() { on "$2" all "bash $folder/launch/tpu_worker.sh $1"; }

# Fetches the log of each worker, which ends with its exit code.
fetch() {
  run mkdir -p "$logs/$attempt/$1" &&
    on "$1" all "bash $folder/launch/tpu_worker.sh log" --output-directory="$logs/$attempt/$1"
}

# Shows the log of the first worker until its process ends.
follow() {
  local lines=+1 failures=0
  while true; do
    on "${nodes[0]}" 0 "bash $folder/launch/tpu_worker.sh follow $lines" &
    join "$!"
    if ((status == 0)); then return; fi
    look
    if [[ $state != "$READY" ]]; then give_up "the slices are ${state:-gone}"; fi
    failures=$((failures + 1))
    if ((failures == 5)); then give_up 'cannot reach the first worker'; fi
    lines=10
    pause "$POLL_SECONDS"
  done
}

stopped=''
# Called with the exit code of a run that has stopped as asked.
# shellcheck disable=SC2329  # called by a trap
stop() {
  stopped=$1
  signals=$((signals + 1))
  for_every_slice tell stop || true
}

# From the command line to the exit code of the run.
main() {
  parse "$@"
  wait_until_ready
  run git -C "$root" archive --format=tar.gz --prefix="$folder/" --output="$(realpath -m "$logs")/$folder.tar.gz" "$commit"
  for_every_slice install || give_up 'cannot install alignjax'
  trap 'stop "$PREEMPTED"' TERM # not HUP: the run outlives the terminal
  trap 'stop "$INTERRUPTED"' INT
  local text
  printf -v text '%q ' "${arguments[@]}"
  for_every_slice tell "start $slices $accelerator ${text% }" || give_up 'cannot start the run'
  follow
  attempt=$(date -u +%Y%m%dT%H%M%S)
  for_every_slice fetch || give_up 'cannot fetch the logs'
  if [[ -n ${DRY_RUN:-} ]]; then
    if [[ -n $deleting ]]; then delete; fi
    exit
  fi

  local file code codes=()
  for file in "$logs/$attempt"/*/*.log; do
    code=$(tail -n 1 "$file" | sed -n 's/^exit code //p')
    codes+=("${code:-$CRASHED}")
  done
  code=$(exit_code_of "${codes[@]}")
  if [[ -n $stopped && $code == "$PREEMPTED" ]]; then code=$stopped; fi
  echo "$name: exit code $code; logs of all workers are in $logs/$attempt" >&2
  if [[ -n $deleting && " 0 1 3 " == *" $code "* ]]; then delete; fi # other runs go on, or have a model to write
  exit "$code"
}
