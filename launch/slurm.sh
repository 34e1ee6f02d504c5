#!/usr/bin/env bash
# A SLURM job, one process a GPU; every process finds its peers through SLURM's variables. GPUS is
# how many a node has (default: 1); tasks are not bound to GPUs, each takes the one of its number.
# It runs in the checkout: relative paths, of --workdir and of data too, count from there.
#
#   launch/slurm.sh [--dry-run] [SBATCH OPTIONS...] -- --config=configs/X.py --workdir=DIR [FLAGS...]
#   GPUS=8 launch/slurm.sh --nodes=2 --time=8:00:00 -- --config=... --workdir=...
#
# The workdir must be on a file system that all nodes share. The job saves and is queued again where
# it is preempted, and two minutes before its time is up. The same command again resumes.
set -euo pipefail

usage() { sed -n '2,10s/^# \{0,1\}//p' "$0"; }

# What a dry run prints can be pasted.
show() { printf 'cd %q &&' "$PWD"; printf ' %q' "$@"; echo; }
# shellcheck source=launch/arguments.sh
. "$(dirname "$0")/arguments.sh"
options=()
while [[ $# -gt 0 && "$1" != -- ]]; do options+=("$1"); shift; done
if [[ $# -lt 2 ]]; then usage >&2; exit 2; fi
shift
cd "$(dirname "$0")/.."
command=$(printf '%q ' srun "${PYTHON:-python}" main.py --distributed "$@")
# SLURM sends USR1 to the batch shell alone, which passes it on as the TERM that a run saves on. To
# srun itself TERM would be the order to kill. A job that is cancelled is not queued again.
job="again=
trap 'again=yes; scancel --signal=TERM \$SLURM_JOB_ID' USR1
$command &
child=\$! status=0
while kill -0 \$child 2>/dev/null; do wait \$child; status=\$?; done
if [ \"\$again\" ]; then scontrol requeue \$SLURM_JOB_ID; fi
exit \$status"
"${run[@]}" sbatch --job-name=otter_jax --requeue --open-mode=append --signal=B:USR1@120 \
  --ntasks-per-node="${GPUS:-1}" --gpus-per-node="${GPUS:-1}" "${options[@]}" --wrap="$job"
