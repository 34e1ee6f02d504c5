#!/usr/bin/env bash
# One machine's CPU, in larger pages of memory. It runs in the checkout: relative paths, of
# --workdir and of data too, count from there.
#
#   launch/cpu.sh [--dry-run] --config=configs/icons.py --workdir=runs/icons [FLAGS...]
#
# A step's memory is new to it, and Linux hands it out in pages of 4 KiB unless glibc asks for
# 2 MiB: OTTER's step asks 720,000 times without, and takes a seventh longer. Nothing else changes.
# PYTHON names another interpreter than python.
set -euo pipefail

usage() { sed -n '2,9s/^# \{0,1\}//p' "$0"; }

# What a dry run prints can be pasted.
show() { printf 'cd %q &&' "$PWD"; printf ' %q' "$@"; echo; }
# shellcheck source=launch/arguments.sh
. "$(dirname "$0")/arguments.sh"
cd "$(dirname "$0")/.."
tunables=glibc.malloc.hugetlb=1${GLIBC_TUNABLES:+:$GLIBC_TUNABLES}
"${run[@]}" env GLIBC_TUNABLES="$tunables" JAX_PLATFORMS=cpu "${PYTHON:-python}" main.py "$@"
