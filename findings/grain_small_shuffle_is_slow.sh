#!/usr/bin/env bash
# grain takes a thousand times as long to shuffle ten records as to shuffle a million.
#
# Library:   grain 0.2.18.
# Expected:  to find a record's place in a shuffled data set costs the same for every size.
# Happens:   the permutation is always one of 65,536 numbers or more, and those outside of the data
#            set are passed over one by one: on average 6,553 tries for each of ten records, 65 for
#            each of a thousand. An epoch takes about as long (20 to 50 ms) for ten, a hundred and a
#            thousand records.
# Matters:   few-shot sets, small sources in a mixture, overfitting one batch to find a bug: the
#            loader is the slowest part, and no profile of Python code shows where.
# Seen on 2026-11-28, microseconds a record:
#   10 records 5012, 100 records 263, 1000 records 20, 1000000 records 5
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile grain==0.2.18

"$work/venv/bin/python" - <<'EOF'
import time

import grain


def microseconds(count):
    records = grain.MapDataset.range(count).seed(3).shuffle()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for number in range(10):
            records[number]
        times.append(time.perf_counter() - start)
    return min(times) / 10 * 1e6


sizes = (10, 100, 1000, 1_000_000)
found = {size: microseconds(size) for size in sizes}
print(", ".join(f"{size} records {found[size]:.0f}" for size in sizes))
assert found[10] > 50 * found[1_000_000] and found[100] > 5 * found[1_000_000]
EOF
