#!/usr/bin/env bash
# img2dataset stores 16-bit PNGs as white pictures.
#
# Library:   img2dataset 1.47.0 (with opencv-python-headless 4.14.0.94).
# Expected:  a PNG of 16 bits a channel is stored as browsers show it, or counted as a failure.
# Happens:   it is decoded with its 16 bits, and OpenCV's JPEG encoder cuts all values at 255 of
#            65535 instead of dividing them. All that is brighter than 0.4 % is white. The download
#            counts as a success, and the caption is kept.
# Matters:   figures, microscopy, X-rays, renderings and maps on the web: white pictures with
#            captions of all kinds of things, in the middle of a training set.
# Seen on 2026-11-29, a ramp from black to white, mean and share of white pixels:
#   8 bits: grey 128 (1%), RGB 128 (1%), RGBA 128 (1%)
#   16 bits: grey 254 (99%), RGB 254 (99%), RGBA 254 (99%)
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  img2dataset==1.47.0 opencv-python-headless==4.14.0.94

"$work/venv/bin/python" -W ignore - <<'EOF'
import io

import cv2
import numpy as np
from img2dataset.resizer import Resizer

resizer = Resizer(image_size=256, resize_mode="keep_ratio", resize_only_if_bigger=True)
eight = np.tile(np.arange(256, dtype=np.uint8), (256, 1))


def stored(picture):
    """Return the mean and the share of white pixels, in percent, of what is stored of a PNG."""
    png = cv2.imencode(".png", picture)[1].tobytes()
    jpeg, *_, error = resizer(io.BytesIO(png))
    assert error is None
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    return round(float(pixels.mean())), int(100 * (pixels > 252).mean())


def kinds(grey):
    opaque = np.full_like(grey, np.iinfo(grey.dtype).max)
    return [grey, np.dstack([grey] * 3), np.dstack([grey] * 3 + [opaque])]


for bits, grey in ((8, eight), (16, eight.astype(np.uint16) * 257)):
    found = [stored(picture) for picture in kinds(grey)]
    shown = "{} bits: grey {} ({}%), RGB {} ({}%), RGBA {} ({}%)"
    print(shown.format(bits, *np.ravel(found)))
    for mean, white in found:
        assert (120 < mean < 135 and white < 3) if bits == 8 else (mean > 250 and white > 95)
EOF
