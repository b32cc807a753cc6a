#!/usr/bin/env bash
# Runs `alignjax train` on TPU slices of a Kubernetes cluster: fills in launch/jobset.yaml, applies it, shows the log of the
# first pod, and ends with the exit code of the run. The JobSet restarts after preemptions and crashes.
#
#   launch/jobset.sh NAME --tpu=v5e --topology=4x4 --image=IMAGE --claim=DISK -- --model=/mnt/... --workdir=/mnt/...
#   launch/jobset.sh NAME --delete
#
# --tpu: v4, v5e, v5p, v6e or v7x. --claim=NAME: a PersistentVolumeClaim that all pods can write, mounted at /mnt. --slices=N (1),
# --restarts=N (20), --queue=NAME (of Kueue). --dry-run: prints the manifest, also for xpk and gcluster. The image is that of
# launch/Dockerfile.
# Run it again: it shows a run that is still going, and replaces one that has ended, which then resumes. Ctrl-C only stops the
# watching; --delete stops the run, which saves first.
# Environment: LOGS (folder, runs/launch/NAME), POLL_SECONDS (15). Cluster and namespace are those of kubectl.
set -euo pipefail

here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/common.sh
source "$here/common.sh"

name=${1:-}
if [[ ! $name =~ ^[a-z]([a-z0-9-]{0,26}[a-z0-9])?$ ]]; then usage; fi # longer names make pod names too long
shift
tpu='' topology='' image='' slices=1 restarts=20 queue='' claim='' deleting='' arguments=()
while (($#)); do
  case $1 in
    --tpu=*) tpu=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --queue=*) queue=${1#*=} ;;
    --claim=*) claim=${1#*=} ;;
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
if [[ -n $deleting ]]; then
  run kubectl delete jobset "$name" --ignore-not-found
  exit
fi
if [[ ! $topology =~ ^[0-9]+x[0-9]+(x[0-9]+)?$ || ! $slices =~ ^[1-9][0-9]*$ || ! $restarts =~ ^[0-9]+$ ]]; then usage; fi
if [[ -z $image || ${#arguments[@]} == 0 ]]; then usage; fi

# Names of GKE, and the chips of a host: 4, but v5e and v6e have single hosts with up to 8.
case $tpu in
  v4) accelerator='tpu-v4-podslice' ;;
  v5e) accelerator='tpu-v5-lite-podslice' ;;
  v5p) accelerator='tpu-v5p-slice' ;;
  v6e) accelerator='tpu-v6e-slice' ;;
  v7x) accelerator='tpu7x' ;;
  *) usage ;;
esac
chips=$((${topology//x/*}))
chips_per_host=4
if ((chips < 4)) || [[ $tpu == v[56]e && $chips == 8 ]]; then chips_per_host=$chips; fi
if ((chips == 0 || chips % chips_per_host)); then usage; fi

# A string in YAML and JSON.
quote() {
  local text=${1//\\/\\\\}
  if [[ $text == *[[:cntrl:]]* ]]; then
    echo "an argument contains a line break or another control character: ${text@Q}" >&2
    exit 1
  fi
  echo "\"${text//\"/\\\"}\""
}

quoted=()
for argument in "${arguments[@]}"; do quoted+=("$(quote "$argument")"); done
labels='{}' mount='' volume=''
if [[ -n $queue ]]; then labels="{kueue.x-k8s.io/queue-name: $(quote "$queue")}"; fi
if [[ -n $claim ]]; then
  mount='{name: files, mountPath: /mnt}'
  volume="{name: files, persistentVolumeClaim: {claimName: $(quote "$claim")}}"
fi
declare -A values=(
  [NAME]=$name
  [LABELS]=$labels
  [RESTARTS]=$restarts
  [SLICES]=$slices
  [HOSTS]=$((chips / chips_per_host))
  [RESTART_CODES]="[42, $(seq --separator=', ' 127 255)]"
  [ACCELERATOR]=$accelerator
  [TOPOLOGY]=$topology
  [IMAGE]=$(quote "$image")
  [CHIP]=$tpu
  [ARGUMENTS]="[$(IFS=, && echo "${quoted[*]}")]"
  [CHIPS_PER_HOST]=$chips_per_host
  [CLAIM_MOUNT]=$mount
  [CLAIM_VOLUME]=$volume
)
# Line by line, so that a ${...} in a value stays as it is.
manifest=$(
  while IFS= read -r line; do
    if [[ $line =~ ^([^#]*)\$\{([A-Z_]+)\}(.*)$ ]]; then
      if [[ -z ${values[${BASH_REMATCH[2]}]} ]]; then continue; fi
      line=${BASH_REMATCH[1]}${values[${BASH_REMATCH[2]}]}${BASH_REMATCH[3]}
    fi
    echo "$line"
  done < "$here/jobset.yaml"
)
if [[ -n ${DRY_RUN:-} ]]; then
  echo "$manifest"
  exit
fi

status_of() { kubectl get jobset "$name" --ignore-not-found --output=jsonpath='{.status.terminalState}'; }
pods=(--selector="jobset.sigs.k8s.io/jobset-name=$name")
first=--selector="jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"

if [[ -n $(status_of) ]]; then kubectl delete jobset "$name"; fi
echo "$manifest" | kubectl apply --filename=-
shown=''
while true; do
  ended=$(status_of)
  if [[ -n $ended ]]; then break; fi
  pod=$(kubectl get pods "$first" --field-selector=status.phase=Running --output=name) # another one after a restart
  if [[ -n $pod && $pod != "$shown" ]] && kubectl logs "$pod" --follow; then shown=$pod; fi
  pause "$POLL_SECONDS"
done

logs=${LOGS:-runs/launch/$name}
mkdir -p "$logs"
codes=()
lines=$(kubectl get pods "${pods[@]}" --output=jsonpath='{range .items[*]}{.metadata.name} {.status.containerStatuses[0].state.terminated.exitCode}{"\n"}{end}')
while read -r pod code; do
  if [[ -z $pod ]]; then continue; fi
  codes+=("${code:-$CRASHED}")
  kubectl logs "$pod" > "$logs/$pod.log" || true
done <<< "$lines"
code=0
if [[ $ended != Completed ]]; then code=$(exit_code_of "${codes[@]}"); fi
echo "$name: ${ended,,}, exit code $code; logs of all pods are in $logs" >&2
exit "$code"
