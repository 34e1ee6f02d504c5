#!/usr/bin/env bash
# grain: a held-out tenth, cut from a shuffled data set, is trained on from the second epoch.
#
# Library:   grain 0.2.18.
# Expected:  mixed = MapDataset.source(...).shuffle(seed=0); mixed[:900] trains and mixed[900:] is
#            held out, as with a shuffled list. mixed[:16] are 16 shots.
# Happens:   the order is drawn again for each epoch, and a slice takes places, not records. As soon
#            as the slice is repeated, its second epoch is another 900 of the 1000 records: after
#            three epochs all of the held-out records have been trained on, and 16 shots over
#            50 epochs are 558 records. So with .seed(0).shuffle(). Nothing moves where each part is
#            sliced first and shuffled afterwards.
# Matters:   validation and few-shot results are too good, by records that have been trained on. The
#            first epoch, and the parts looked at by themselves, are as they should be.
# Seen on 2026-11-29:
#   held out, trained on in epoch 1, 2, 3: 0, 90, 100 of 100
#   16 shots, 50 epochs: 558 records; sliced, then shuffled: 16
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile grain==0.2.18

"$work/venv/bin/python" - <<'EOF'
import grain

records = grain.MapDataset.range(1000)


def seen(part, epochs):
    repeated = part.repeat(epochs)
    return {int(repeated[i]) for i in range(len(repeated))}


leaks = []
for shuffled in (records.shuffle(seed=0), records.seed(0).shuffle()):
    train, held_out = shuffled[:900], shuffled[900:]
    validates = {int(held_out[i]) for i in range(len(held_out))}
    assert len(train) == 900 and len(validates) == 100
    leaks.append([len(seen(train, epochs) & validates) for epochs in (1, 2, 3)])
print("held out, trained on in epoch 1, 2, 3: {}, {}, {} of 100".format(*leaks[0]))
assert all(none == 0 and two > 80 and three > 95 for none, two, three in leaks)

moving = len(seen(records.shuffle(seed=0)[:16], 50))
fixed = len(seen(records[:16].shuffle(seed=0), 50))
print(f"16 shots, 50 epochs: {moving} records; sliced, then shuffled: {fixed}")
assert moving > 500 and fixed == 16
EOF
