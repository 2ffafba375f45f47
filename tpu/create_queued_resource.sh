#!/usr/bin/env bash
# Ask for a TPU slice (or several) as a queued resource, and return at once.
#   tpu/create_queued_resource.sh --zone us-east5-a --type v5p-128 --spot
# Its state: gcloud compute tpus queued-resources list --zone ZONE. watch.sh waits for it, prepares it and keeps it alive.

. "$(dirname "$0")/common.sh"
parse "$@"

args=(--accelerator-type="$TYPE" --runtime-version="$RUNTIME" --async)
if [ "$SLICES" -eq 1 ]; then args+=(--node-id="$NAME"); else args+=(--node-count="$SLICES" --node-prefix="$NAME"); fi
if [ "$SPOT" = 1 ]; then args+=(--spot); fi
run gcloud compute tpus queued-resources create "$NAME" "${where[@]}" "${args[@]}"
