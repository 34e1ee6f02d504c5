#!/usr/bin/env bash
# grain's MapDataset.shuffle(seed): epoch 1 of seed 7 is epoch 0 of seed 8, record for record.
#
# Library:   grain 0.2.18.
# Expected:  runs with seeds 7, 8 and 9 see their records in independent orders.
# Happens:   with shuffle(seed=s) the order of an epoch is drawn from s plus the epoch's number, so
#            that runs with neighbouring seeds see the same orders, one epoch apart. Not so with
#            .seed(s).shuffle(), which mixes both.
# Matters:   mean and deviation over seeds 0, 1, 2, as studies report them, are then of runs that
#            share all but one of their epochs: the deviation over orders is understated.
# Seen on 2026-11-28:
#   shuffle(seed=7), epochs 1 to 3, equal epoch 0 of seeds 8 to 10: [True, True, True]
#   .seed(7).shuffle(), the same: [False, False, False]
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile grain==0.2.18

"$work/venv/bin/python" - <<'EOF'
import grain

COUNT = 1000


def by_argument(seed):
    return grain.MapDataset.range(COUNT).shuffle(seed=seed).repeat(4)


def by_seed(seed):
    return grain.MapDataset.range(COUNT).seed(seed).shuffle().repeat(4)


def epoch(records, number):
    return [records[i] for i in range(number * COUNT, (number + 1) * COUNT)]


def repeats(shuffled):
    return [epoch(shuffled(7), n) == epoch(shuffled(7 + n), 0) for n in (1, 2, 3)]


argument, seed = repeats(by_argument), repeats(by_seed)
print("shuffle(seed=7), epochs 1 to 3, equal epoch 0 of seeds 8 to 10:", argument)
print(".seed(7).shuffle(), the same:", seed)
assert argument == [True] * 3 and seed == [False] * 3
EOF
