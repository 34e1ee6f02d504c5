#!/usr/bin/env bash
# tensorflow-datasets without OpenCV reads a palette picture as grey of its palette's numbers.
#
# Library:   tensorflow-datasets 4.9.10 (pillow 13.0.0, opencv-python-headless 5.0.0.93).
# Expected:  OpenCV is recommended "because it is faster": without it pictures are the same.
# Happens:   Pillow decodes them then, and what it holds goes on as it is. Of PNGs and GIFs with a
#            palette that is which colour of the palette a pixel has, repeated for three channels as
#            if it were grey: a red picture is black if red is the palette's first. Black and white
#            ones are of 0 and 1. And with OpenCV or without, 16 bits are cut to the lower 8:
#            brightness goes from black to white 256 times.
# Matters:   icons, clip art, logos, screenshots and figures, which are the palette pictures of
#            sets of image-text pairs; read by as_data_source, which is how JAX reads TFDS without
#            TensorFlow. Right shape, right type, and the caption says "red".
# Seen on 2026-11-29, a picture of one red, and the first pixels of a grey ramp of 16 bits:
#   without: red.png [0, 0, 0], red.gif [0, 0, 0], white.png [1, 1, 1], ramp.png [0, 232, 208, 184]
#   with OpenCV: red.png [200, 30, 40], red.gif [200, 30, 40], white.png [255, 255, 255],
#     ramp.png [0, 232, 208, 184]
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  tensorflow-datasets==4.9.10 pillow==13.0.0 numpy==2.4.6

cat >"$work/find.py" <<'EOF'
import sys
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

work, name, expected_red, expected_white = Path(sys.argv[1]), *sys.argv[2:]
red = Image.new("P", (4, 4))
red.putpalette([200, 30, 40, 0, 0, 255])
red.save(work / "red.png")
red.save(work / "red.gif")
Image.new("1", (4, 4), 1).save(work / "white.png")
Image.fromarray(np.tile(np.arange(4, dtype=np.uint16) * 1000, (4, 1))).save(work / "ramp.png")
feature = tfds.features.Image(shape=(None, None, 3))


def pixels(file):
    """Return the first row of what a data source gives of a file that a builder was given."""
    decoded = feature.decode_example_np(feature.encode_example(work / file))
    assert decoded.shape == (4, 4, 3) and decoded.dtype == np.uint8
    return decoded[0]


found = {file: pixels(file)[0].tolist() for file in ("red.png", "red.gif", "white.png")}
found["ramp.png"] = pixels("ramp.png")[:, 0].tolist()
print(f"{name}:", ", ".join(f"{file} {values}" for file, values in found.items()))
assert str(found["red.png"]) == str(found["red.gif"]) == expected_red
assert str(found["white.png"]) == expected_white
assert found["ramp.png"] == [0, 1000 % 256, 2000 % 256, 3000 % 256]
EOF
find() { "$work/venv/bin/python" -W ignore "$work/find.py" "$work" "$@" 2>"$work/log" ||
  { cat "$work/log" >&2; return 1; }; }

find without "[0, 0, 0]" "[1, 1, 1]"
"$work/venv/bin/pip" install --quiet --no-compile opencv-python-headless==5.0.0.93
find "with OpenCV" "[200, 30, 40]" "[255, 255, 255]"
