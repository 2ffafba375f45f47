#!/usr/bin/env bash
# What runs on each host of a slice: `bash host.sh ACTION RUN_ID ...`. pod.py copies it there and calls it on all hosts at
# once. It answers in one line a host, `@HOST WORD SECONDS TEXT`, which pod.py reads; SECONDS are those of the host's clock.
set -euo pipefail
action=$1 run=$HOME/runs/$2
shift 2
dev=${DEV:-/dev} lock=${LIBTPU_LOCK:-/tmp/libtpu_lockfile}
mkdir -p "$HOME/runs"

say() { echo "@$(hostname) $1 $(date +%s) ${*:2}"; }
bad() { say bad "$@"; exit 1; }
alive() { [ -e "$run.pid" ] && pgrep -g "$(cat "$run.pid")" -r D,R,S,T >/dev/null; } # no zombies
last_words() { grep -v '^[[:space:]]*$' "$1" 2>/dev/null | tail -n 1 | cut -c 1-300 || true; }
devices() { find "$dev" "$dev/vfio" -maxdepth 1 \( -name 'accel[0-9]*' -o -path '*/vfio/[0-9]*' \) 2>/dev/null | sort -u; }
holders() { devices | xargs -r sudo -n lsof -t 2>/dev/null | sort -u | xargs -r ps -o pid=,args= -p | sed 's/^ *//;q' || true; }

stop() { # SIGTERM lets a job save; it gets two minutes for that
  alive || return 0
  kill -TERM -- "-$(cat "$run.pid")" || true
  for ((i = 0; i < 10 * ${GRACE:-120}; i++)); do alive || return 0; sleep 0.1; done
  kill -KILL -- "-$(cat "$run.pid")" || true
}

case $action in
  setup) # the images carry Python 3.10; uv brings 3.11. All hosts get the same jax and libtpu: a mismatch stalls the start
    {
      cd "$HOME"
      rm -rf edit_rl_jax && mkdir edit_rl_jax && tar -xzf "$1" -C edit_rl_jax &&
        python3 -m pip install --quiet --user uv &&
        { [ -d edit-rl-env ] || python3 -m uv venv --quiet --python 3.11 edit-rl-env; } &&
        python3 -m uv pip install --quiet --python edit-rl-env/bin/python --editable "edit_rl_jax[tpu]"
    } >"$run.setup" 2>&1 || bad "set-up failed: $(last_words "$run.setup")"
    ;;
  probe) # opens every chip: what holds one, or lacks one, is found before the job waits for it on all other hosts
    count=0
    for chip in $(devices); do
      error=$(python3 -c 'import os, sys; os.close(os.open(sys.argv[1], os.O_RDWR))' "$chip" 2>&1 | tail -n 1) || true
      [ -z "$error" ] || bad "$error, held by process $(holders)"
      count=$((count + 1))
    done
    [ "$count" -gt 0 ] || bad "no TPU device in $dev"
    holder=$(holders)
    [ -z "$holder" ] || bad "the TPU is held by process $holder"
    sudo -n rm -f "$lock" || rm -f "$lock" # nobody holds the chips: the lock of a killed process is stale
    say ok "$count"
    ;;
  launch) # detached; the coordinator's port since jax 0.8.1, 8482, is closed between slices by the default firewall
    stop
    export RUN_ID=${run##*/} JAX_COORDINATOR_PORT=8476
    echo "running $(date +%s)" >"$run.status"
    setsid nohup bash "$0" job "$RUN_ID" "$@" >>"$run.log" 2>&1 </dev/null &
    echo $! >"$run.pid"
    say running
    ;;
  job)
    trap : TERM # the signal is for the job, which saves; its exit status is still written
    cd "$HOME/edit_rl_jax"
    code=0 variables=()
    while [[ ${1:-} =~ ^[A-Za-z_][A-Za-z0-9_]*= ]]; do variables+=("$1"); shift; done
    env "${variables[@]}" "$HOME/edit-rl-env/bin/python" "$@" || code=$?
    echo "exit-$code $(date +%s) $(last_words "$run.log")" >"$run.status"
    ;;
  status)
    if [ ! -e "$run.status" ]; then say none
    elif grep -q ^running "$run.status" && ! alive; then say dead "the job vanished: killed, or the host was restarted"
    else echo "@$(hostname) $(cat "$run.status")"
    fi
    ;;
  quit) stop && rm -f "$run.status" ;;
  stop) # by hand: the watcher leaves it stopped
    if alive; then stop; echo "stopped $(date +%s)" >"$run.status"; fi
    say stopped
    ;;
  *) bad "no action $action" ;;
esac
