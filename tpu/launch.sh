#!/usr/bin/env bash
# Start one command on every host at once, detached; what it prints goes to ~/runs/RUN_ID.log on each host.
#   tpu/launch.sh --zone us-east5-a --bucket gs://me/runs --run-id rm7b -- scripts/train_rm.py --config configs/rm_7b.py
# `--workdir BUCKET/RUN_ID` is added, so the same command with the same RUN_ID resumes the run. A job of that id that
# still runs is first asked to save and stop (SIGTERM).

. "$(dirname "$0")/common.sh"
parse "$@"
[ ${#COMMAND[@]} -gt 0 ] || die "no command: put it after --"
[[ $BUCKET == gs://* ]] || die "--bucket gs://... is missing: every host writes there, and a new slice resumes from it"

job="~/edit-rl-env/bin/python $(printf '%q ' "${COMMAND[@]}" --workdir "$BUCKET/$RUN_ID"); echo exit \$? > ~/runs/$RUN_ID.status"
# The pid file holds the job's process group. The lock is removed only when nobody holds the chips. The coordinator's
# port since jax 0.8.1 (8482) is closed by the default firewall between slices; 8476 is open.
on_all_hosts "set -e
cd edit_rl_jax; r=~/runs/$RUN_ID
if [ -e \$r.pid ]; then
  kill -TERM -- -\$(cat \$r.pid) 2>/dev/null || true
  for i in \$(seq 120); do kill -0 -- -\$(cat \$r.pid) 2>/dev/null || break; sleep 1; done
  kill -KILL -- -\$(cat \$r.pid) 2>/dev/null || true
fi
sudo lsof -t /dev/accel* /dev/vfio/[0-9]* >/dev/null 2>&1 || sudo rm -f /tmp/libtpu_lockfile || true
export RUN_ID=$RUN_ID JAX_COORDINATOR_PORT=8476
echo running > \$r.status
setsid nohup bash -c $(printf '%q' "$job") >> \$r.log 2>&1 < /dev/null &
echo \$! > \$r.pid"
