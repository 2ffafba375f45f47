# Sourced by the scripts of this folder: settings (a flag, else the environment variable, else the default) and helpers.
set -euo pipefail

NAME=${NAME:-edit-rl}        # queued resource and node (a multislice job's nodes are NAME-0, NAME-1, ...)
ZONE=${ZONE:-}               # for example us-east5-a
PROJECT=${PROJECT:-}         # default: gcloud's own setting
TYPE=${TYPE:-v5litepod-16}   # accelerator type: v5litepod-16, v5p-128, v6e-8, ...
RUNTIME=${RUNTIME:-}         # runtime version; default: the one for TYPE
SLICES=${SLICES:-1}          # more than 1: multislice over the data-centre network
SPOT=${SPOT:-0}              # 1: spot capacity, may be taken away at any time
BUCKET=${BUCKET:-}           # gs://bucket/folder; the run's workdir is BUCKET/RUN_ID
RUN_ID=${RUN_ID:-run}        # the same id resumes the same run
DRY_RUN=${DRY_RUN:-0}        # 1: print the commands and run none
COMMAND=()                   # what follows `--`

die() { echo "${0##*/}: $*" >&2; exit 2; }

usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; cat <<'TXT'
settings, as flags or as environment variables (--name NAME or NAME=...):
  --name N      queued resource and node          --zone Z      zone (required)
  --project P   Google Cloud project              --type T      accelerator type, default v5litepod-16
  --runtime V   runtime version, default by type  --slices K    number of slices, default 1
  --spot        spot capacity                     --bucket GS   gs:// folder that holds the runs
  --run-id ID   the same id resumes the same run  --dry-run     print the commands and run none
TXT
}

parse() {
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help) usage; exit 0 ;;
      --spot) SPOT=1 ;;
      --dry-run) DRY_RUN=1 ;;
      --) shift; COMMAND=("$@"); break ;;
      --name | --zone | --project | --type | --runtime | --slices | --bucket | --run-id)
        [ $# -ge 2 ] || die "$1 needs a value"
        local key=${1#--}
        key=${key//-/_}
        printf -v "${key^^}" '%s' "$2"
        shift ;;
      *) die "unknown flag $1 (see --help)" ;;
    esac
    shift
  done
  [ -n "$ZONE" ] || die "--zone is missing (see --help)"
  [[ $RUN_ID =~ ^[A-Za-z0-9._-]+$ ]] || die "--run-id may hold letters, digits, dot, dash and underscore: $RUN_ID"
  [[ $SLICES =~ ^[1-9][0-9]*$ ]] || die "--slices is a positive number: $SLICES"
  where=(--zone="$ZONE")
  if [ -n "$PROJECT" ]; then where+=(--project="$PROJECT"); fi
  if [ -z "$RUNTIME" ]; then
    case $TYPE in
      v5litepod-*) RUNTIME=v2-alpha-tpuv5-lite ;;
      v5p-*) RUNTIME=v2-alpha-tpuv5 ;;
      v6e-*) RUNTIME=v2-alpha-tpuv6e ;;
      *) RUNTIME=tpu-ubuntu2204-base ;;
    esac
  fi
}

# Run a command, or print it under --dry-run in a form that can be pasted.
run() {
  if [ "$DRY_RUN" = 1 ]; then printf '%q ' "$@"; echo; else "$@"; fi
}

nodes() {
  if [ "$SLICES" -eq 1 ]; then echo "$NAME"; else for ((i = 0; i < SLICES; i++)); do echo "$NAME-$i"; done; fi
}

# One shell command on every host of every slice at once: a TPU program that starts on some hosts only waits for the rest.
on_all_hosts() {
  local pids=() node pid failed=0
  for node in $(nodes); do
    run gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" --worker=all --command="$1" &
    pids+=($!)
    if [ "$DRY_RUN" = 1 ]; then wait "$!"; fi
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  return "$failed"
}

state() { gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" --format='value(state.state)'; }
