#!/usr/bin/env bash
# Keep a run alive until it ends: wait for the slice, set it up, launch the job, and when the slice FAILED or was
# SUSPENDED (preempted), delete it, ask for a new one and launch again under the same RUN_ID, which resumes it.
#   tpu/watch.sh --zone us-east5-a --type v5p-128 --spot --bucket gs://me/runs --run-id rm72b -- \
#       scripts/train_rm.py --config configs/rm_72b.py
# Environment: PERIOD (seconds between looks, 60), MAX_RESTARTS (50). --dry-run acts once, as for the state in STATE
# (default SUSPENDED). A job has ended when its workdir holds the file `finished`, which is written last: a job that was
# asked to save and stop exits with status 0 too. Exit status 0 when it has ended, 1 when the restarts are used up.

here=$(dirname "$0")
. "$here/common.sh"
parse "$@"
[ ${#COMMAND[@]} -gt 0 ] || die "no command: put it after --"
[[ $BUCKET == gs://* ]] || die "--bucket gs://... is missing: every host writes there, and a new slice resumes from it"
PERIOD=${PERIOD:-60} MAX_RESTARTS=${MAX_RESTARTS:-50} restarts=0
export NAME ZONE PROJECT TYPE RUNTIME SLICES SPOT BUCKET RUN_ID DRY_RUN

say() { echo "$(date -u +%H:%M:%S) $*" >&2; }
start() {
  "$here/setup.sh" && "$here/launch.sh" -- "${COMMAND[@]}" || say "could not start the job; trying again"
}
again() {
  restarts=$((restarts + 1))
  [ "$restarts" -le "$MAX_RESTARTS" ] || { say "gave up after $MAX_RESTARTS restarts"; exit 1; }
}
# One line a host: running, exit N, or none. A host that cannot be reached adds none of them.
job_status() { on_all_hosts "cat ~/runs/$RUN_ID.status 2>/dev/null || echo none" 2>/dev/null || echo unreachable; }
finished() { gcloud storage ls "$BUCKET/$RUN_ID/finished" >/dev/null 2>&1; }

while true; do
  if [ "$DRY_RUN" = 1 ]; then now=${STATE:-SUSPENDED}; else now=$(state 2>/dev/null || echo MISSING); fi
  case $now in
    ACTIVE)
      if [ "$DRY_RUN" = 1 ]; then status=none; else status=$(job_status); fi
      if grep -q '^exit [1-9]' <<<"$status"; then say "the job failed on a host"; again; start
      elif grep -q unreachable <<<"$status"; then say "a host does not answer"
      elif grep -q '^none' <<<"$status"; then say "slice ready"; start
      elif grep -q '^running' <<<"$status"; then :
      elif finished; then say "the job ended well"; exit 0
      else say "the job was interrupted"; again; start
      fi ;;
    FAILED | SUSPENDING | SUSPENDED | MISSING)
      say "slice $now"
      if [ "$DRY_RUN" = 0 ] && finished; then say "the job had ended well"; exit 0; fi
      if [ "$now" != MISSING ]; then
        again
        run gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet || true
      fi
      "$here/create_queued_resource.sh" || say "could not ask for a slice; trying again"
      if [ "$DRY_RUN" = 1 ]; then start; fi ;;
    *) say "slice $now" ;;
  esac
  [ "$DRY_RUN" = 0 ] || exit 0
  sleep "$PERIOD"
done
