# shellcheck shell=bash
# What several launchers share. Sourced, never run.

PREEMPTED=42
INTERRUPTED=130
CRASHED=134
POLL_SECONDS=${POLL_SECONDS:-15}

# Prints the first comment of the script, and exits with 1.
usage() {
  sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "$0" >&2
  exit 1
}

# Runs a command. With DRY_RUN set, prints it, quoted for the shell.
run() {
  local text
  if [[ -z ${DRY_RUN:-} ]]; then
    "$@"
  else
    printf -v text '%q ' "$@"
    echo "${text% }"
  fi
}

# Sleeps, but no longer once a trap has set `stopped`. A trapped signal ends `wait`, but not a `sleep` in the foreground.
pause() {
  sleep "$1" &
  if [[ -z ${stopped:-} ]]; then wait "$!" || true; fi
  kill "$!" 2> /dev/null || true
}

# Waits for a background process. Sets `status` to its exit code. Traps count in `signals` what interrupts `wait`.
signals=0
# shellcheck disable=SC2034  # status is read by the caller
join() {
  local before
  while true; do
    before=$signals
    status=0
    wait "$1" || status=$?
    if ((signals == before)); then return; fi
  done
}

# The exit code of a run, given those of its processes: a cause counts more than the crashes that follow from it, and a
# failure more than a stop.
exit_code_of() {
  local code
  for code in 1 3 43; do
    if [[ " $* " == *" $code "* ]]; then echo "$code" && return; fi
  done
  for code in "$@"; do
    if [[ ! " 0 $PREEMPTED $INTERRUPTED " == *" $code "* ]]; then echo "$code" && return; fi
  done
  for code in "$INTERRUPTED" "$PREEMPTED" 0; do
    if [[ " $* " == *" $code "* ]]; then echo "$code" && return; fi
  done
  echo "$CRASHED" # no process has left an exit code
}
