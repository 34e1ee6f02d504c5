#!/usr/bin/env bash
# A Cloud TPU slice: installs on first use, then runs the same command on every worker.
#
#   TPU=my-tpu ZONE=us-central2-b launch/tpu_pod.sh [--dry-run] --config=configs/X.py \
#     --workdir=/mnt/shared/DIR [FLAGS...]
#
# Needs: gcloud, and this checkout as ~/otter_jax on every worker (gcloud ... tpu-vm scp --worker=all).
# The workdir must be reachable from all workers. The same command again resumes.
set -euo pipefail

usage() { sed -n '2,8s/^# \{0,1\}//p' "$0"; }

# What a dry run prints can be pasted.
show() { printf '%q ' "$@"; echo; }
# shellcheck source=launch/arguments.sh
. "$(dirname "$0")/arguments.sh"
: "${TPU:?set TPU to the name of the slice}" "${ZONE:?set ZONE to its zone}"
arguments=$(printf '%q ' "$@")
# shellcheck disable=SC2016  # HOME is the worker's.
setup='test -e ~/otter_venv/ready || { python3 -m venv ~/otter_venv && ~/otter_venv/bin/pip install -e "$HOME/otter_jax[tpu,quickstart,declip]" && touch ~/otter_venv/ready; }'
"${run[@]}" gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="$setup && cd ~/otter_jax && ~/otter_venv/bin/python main.py --distributed $arguments"
