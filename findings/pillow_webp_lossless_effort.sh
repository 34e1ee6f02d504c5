#!/usr/bin/env bash
# Lossless WebP at Pillow's full effort takes many times as long, and saves nothing, on small images.
#
# Library:   pillow 13.0.0 (libwebp as its wheels have it).
# Expected:  lossless=True, quality=100, method=6 is the slow way to clearly smaller files, worth it
#            for a data set that is written once; quality is for lossy files.
# Happens:   for small drawings the files are smaller by a thousandth, and take tens of times as
#            long. In lossless files quality is effort, and it is what costs.
# Matters:   data sets of icons, glyphs, tiles or spectrograms as lossless WebP: hours for nothing.
# Seen on 2026-11-28:
#   full effort: 0.1 % fewer bytes in 47 times the time
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile pillow==13.0.0 numpy==2.4.6

"$work/venv/bin/python" - <<'EOF'
import io
import time

import numpy as np
from PIL import Image, ImageDraw

rng = np.random.default_rng(0)
drawings = []
for _ in range(60):  # Strokes and discs, drawn large and shrunk, so that their rims are grey.
    image = Image.new("L", (256, 256), 255)
    pen = ImageDraw.Draw(image)
    for _ in range(4):
        x, y, u, v = (int(each) for each in rng.integers(16, 240, 4))
        pen.line((x, y, u, v), fill=0, width=20)
        pen.ellipse((x - 24, y - 24, x + 24, y + 24), outline=0, width=16)
    drawings.append(image.resize((64, 64), Image.Resampling.LANCZOS))


def write(**options: int) -> tuple[int, float]:
    start, size = time.process_time(), 0
    for image in drawings:
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", lossless=True, **options)
        size += buffer.tell()
        assert np.array_equal(np.asarray(Image.open(buffer).convert("L")), np.asarray(image))
    return size, time.process_time() - start


write(quality=80, method=4)  # Warms up.
default, full = (min(write(**o) for _ in range(3)) for o in (
    {"quality": 80, "method": 4}, {"quality": 100, "method": 6}))
saved, slower = 1 - full[0] / default[0], full[1] / default[1]
print(f"full effort: {100 * saved:.1f} % fewer bytes in {slower:.0f} times the time")
assert saved < 0.03 and slower > 10
EOF
