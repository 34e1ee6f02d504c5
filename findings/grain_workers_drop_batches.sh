#!/usr/bin/env bash
# grain: 1000 records in batches of 64 are 15 batches with no workers, 8 with 8, none with 16.
#
# Library:   grain 0.2.18.
# Expected:  the number of workers changes the speed. Batches are the same, and drop_remainder drops
#            fewer records than a batch has, as with PyTorch's DataLoader.
# Happens:   each worker takes every n-th record, makes batches of its own and drops its own
#            remainder. 16 workers have 62 or 63 records each, and not one batch of 64: the loop
#            over the data set ends at once, no error. So with grain's DataLoader, and with
#            to_iter_dataset before batch. Without drop_remainder all 16 batches are short. A
#            MapDataset's own batch is made before records are shared out, and does not change.
# Matters:   sets of a few pairs, whose epochs lose a part that depends on the machine's cores;
#            validation and zero-shot evaluation of small sets on a machine with many. Negatives of
#            a batch change too: with 4 workers the first is records 0, 4, 8, ...
# Seen on 2026-11-29, 0, 4, 8 and 16 workers:
#   records in full batches, to_iter_dataset, then batch: [960, 768, 512, 0] of 1000
#   records in full batches, DataLoader: [960, 768, 512, 0] of 1000
#   records in full batches, batch, then to_iter_dataset: [960, 960, 960, 960] of 1000
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile grain==0.2.18

cat >"$work/find.py" <<'EOF'
from absl import app
from grain import MapDataset, MultiprocessingOptions
from grain import python as grain

WORKERS = (0, 4, 8, 16)
FULL = {"batch_size": 64, "drop_remainder": True}


def shared_out(dataset, workers):
    return dataset.mp_prefetch(MultiprocessingOptions(num_workers=workers)) if workers else dataset


def rows_first(workers):
    return shared_out(MapDataset.range(1000).to_iter_dataset().batch(**FULL), workers)


def batches_first(workers):
    return shared_out(MapDataset.range(1000).batch(**FULL).to_iter_dataset(), workers)


def loader(workers):
    return grain.DataLoader(
        data_source=range(1000),
        sampler=grain.SequentialSampler(1000, grain.NoSharding()),
        operations=[grain.Batch(**FULL)],
        worker_count=workers,
    )


def main(_):
    cases = [
        ("to_iter_dataset, then batch", rows_first, [960, 768, 512, 0]),
        ("DataLoader", loader, [960, 768, 512, 0]),
        ("batch, then to_iter_dataset", batches_first, [960, 960, 960, 960]),
    ]
    for name, batches, expected in cases:
        records = [sum(map(len, batches(workers))) for workers in WORKERS]
        print(f"records in full batches, {name}: {records} of 1000")
        assert records == expected
    assert list(next(iter(rows_first(4)))[:3]) == [0, 4, 8]


if __name__ == "__main__":
    app.run(main)
EOF
"$work/venv/bin/python" -W ignore "$work/find.py" 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
