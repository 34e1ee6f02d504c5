#!/usr/bin/env bash
# webdataset writes a hundred samples and reads one, if their keys have a dot in common.
#
# Library:   webdataset 1.0.2.
# Expected:  TarWriter writes what WebDataset reads, or refuses the key.
# Happens:   the reader ends a key at the first dot of a file's name, the writer puts no limit on
#            keys. Samples with keys such as "2024.0001" become one sample "2024" with fields
#            "0001.jpg", "0001.txt", "0002.jpg", ... No field is called "jpg" any more, and readers
#            that leave incomplete samples out, as trainers do, go on without all of them.
# Matters:   keys made of file names, dates, hosts or versions ("IMG.0001", "example.org_17").
# Seen on 2026-11-28:
#   100 samples written; read: 1 sample of 200 fields, of which 0 have a jpg
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile webdataset==1.0.2 numpy==2.4.6 pillow==13.0.0

"$work/venv/bin/python" - "$work/pairs.tar" <<'EOF'
import sys

import numpy as np
import webdataset

picture = np.zeros((8, 8, 3), np.uint8)


def read_back(key):
    with webdataset.TarWriter(sys.argv[1]) as writer:
        for number in range(100):
            writer.write({"__key__": key(number), "jpg": picture, "txt": f"caption {number}"})
    samples = list(webdataset.WebDataset(sys.argv[1], shardshuffle=False))
    return [[name for name in sample if not name.startswith("__")] for sample in samples]


dotted = read_back(lambda number: f"2024.{number:04}")
usable = sum("jpg" in fields for fields in dotted)
print(f"100 samples written; read: {len(dotted)} sample of {len(dotted[0])} fields,", end=" ")
print(f"of which {usable} have a jpg")
assert len(dotted) == 1 and len(dotted[0]) == 200 and usable == 0
plain = read_back(lambda number: f"2024_{number:04}")
assert len(plain) == 100 and all(sorted(fields) == ["jpg", "txt"] for fields in plain)
EOF
