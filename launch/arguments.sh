# shellcheck shell=bash disable=SC2034
# Sourced by the scripts beside it, which say how they are used in `usage` and print what they would
# run in `show`. `run` goes in front of the command: `exec`, so that a signal to the script is one to
# the command, or `show` for --dry-run, which is taken out of the arguments wherever it stands.
case "${1:-}" in "" | -h | --help) usage; exit 0 ;; esac
run=(exec) given=()
for argument; do
  if [[ "$argument" == --dry-run ]]; then run=(show); else given+=("$argument"); fi
done
set -- "${given[@]}"
