#!/usr/bin/env bash
# Put the committed state of this checkout on every host and install it with its TPU libraries.
#   tpu/setup.sh --zone us-east5-a
# Every host gets the same versions of jax and libtpu: a mismatch stalls the start. Safe to repeat.

. "$(dirname "$0")/common.sh"
parse "$@"

archive=$(mktemp -d)/edit_rl_jax.tar.gz
trap 'rm -rf "$(dirname "$archive")"' EXIT
run git -C "$(dirname "$0")/.." archive --format=tar.gz --output="$archive" HEAD
for node in $(nodes); do
  run gcloud compute tpus tpu-vm scp "$archive" "$node:edit_rl_jax.tar.gz" "${where[@]}" --worker=all
done
# The images carry Python 3.10; uv brings 3.11.
on_all_hosts 'set -e
rm -rf edit_rl_jax && mkdir -p edit_rl_jax runs && tar -xzf edit_rl_jax.tar.gz -C edit_rl_jax
python3 -m pip install --quiet --user uv
[ -d edit-rl-env ] || python3 -m uv venv --quiet --python 3.11 edit-rl-env
python3 -m uv pip install --quiet --python edit-rl-env/bin/python --editable "edit_rl_jax[tpu]"
edit-rl-env/bin/python -c "import jax, libtpu, edit_rl_jax; print(\"ready: jax\", jax.__version__)"'
