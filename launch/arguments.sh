# shellcheck shell=bash disable=SC2034
# Sourced by the scripts beside it, which say how they are used in `usage` and print what they would
# run in `show`. --dry-run, wherever it stands, is taken out of their arguments and makes `run`,
# which goes in front of the command, `show`.
case "${1:-}" in "" | -h | --help) usage; exit 0 ;; esac
run=() given=()
for argument; do
  if [[ "$argument" == --dry-run ]]; then run=(show); else given+=("$argument"); fi
done
set -- "${given[@]}"
