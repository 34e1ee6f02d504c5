#!/usr/bin/env bash
# A SLURM job, one process a GPU; every process finds its peers through SLURM's variables.
#
#   launch/slurm.sh [--dry-run] [SBATCH OPTIONS...] -- --config=configs/X.py --workdir=DIR [FLAGS...]
#   launch/slurm.sh --nodes=2 --gpus-per-node=8 --time=8:00:00 -- --config=... --workdir=...
#
# The workdir must be on a file system that all nodes share. The same command again resumes.
set -euo pipefail

usage() { sed -n '2,7s/^# \{0,1\}//p' "$0"; }

run=()
case "${1:-}" in
  "" | -h | --help) usage; exit 0 ;;
  --dry-run) run=(echo); shift ;;
esac
options=()
while [[ $# -gt 0 && "$1" != -- ]]; do options+=("$1"); shift; done
if [[ $# -lt 2 ]]; then usage >&2; exit 2; fi
shift
cd "$(dirname "$0")/.."
command=$(printf '%q ' srun "${PYTHON:-python}" main.py --distributed "$@")
"${run[@]}" sbatch --job-name=otter_jax --ntasks-per-gpu=1 "${options[@]}" --wrap="$command"
