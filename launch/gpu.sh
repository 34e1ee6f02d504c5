#!/usr/bin/env bash
# One machine with one or more GPUs, or each of several machines without a scheduler. It runs in the
# checkout: relative paths, of --workdir and of data too, count from there.
#
#   launch/gpu.sh [--dry-run] --config=configs/quickstart.py --workdir=runs/quickstart [FLAGS...]
#   launch/gpu.sh --distributed --coordinator_address=FIRST_HOST:1234 --num_processes=2 \
#     --process_id=0 --config=... --workdir=...   # With --process_id=1 on the second machine.
#
# With several machines the workdir must be on a file system that all of them see.
# Needs: pip install -e ".[gpu]". All visible GPUs are used; CUDA_VISIBLE_DEVICES chooses.
# PYTHON names another interpreter than python.
set -euo pipefail

usage() { sed -n '2,11s/^# \{0,1\}//p' "$0"; }

# What a dry run prints can be pasted.
show() { printf 'cd %q &&' "$PWD"; printf ' %q' "$@"; echo; }
# shellcheck source=launch/arguments.sh
. "$(dirname "$0")/arguments.sh"
cd "$(dirname "$0")/.."
# Preallocation off: a contrastive loss peaks well above the rest of the step.
# The CPU is there for what is made in the host's memory before the GPUs get their parts.
"${run[@]}" env XLA_PYTHON_CLIENT_PREALLOCATE=false JAX_PLATFORMS=cuda,cpu \
  "${PYTHON:-python}" main.py "$@"
