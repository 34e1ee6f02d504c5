#!/usr/bin/env bash
# resvg_py gives pictures of another size than the one that was asked for.
#
# Library:   resvg-py 0.5.0.
# Expected:  svg_to_bytes(width=64, height=64) is a picture of 64 by 64, the drawing fitted into it,
#            as resvg's own command line has it.
# Happens:   a drawing that is no square keeps its shape and so gives other numbers of rows (or
#            columns) than were asked for, also where it is nearly a square.
# Matters:   icons are rendered into one array of a batch, and the odd one ends the run.
# Seen on 2026-11-28:
#   asked for 64 by 64: 24 x 24 gives (64, 64), 48 x 24 (64, 32), 12 x 24 (32, 64); 100 of 200
#   boxes nearly square give another size
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile resvg-py==0.5.0 pillow==13.0.0

"$work/venv/bin/python" - <<'EOF'
import io

import resvg_py
from PIL import Image


def size(width: float, height: float, asked: int) -> tuple[int, int]:
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
        f'<rect width="{width}" height="{height}"/></svg>'
    )
    return Image.open(
        io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=asked, height=asked)))
    ).size


square, wide, tall = size(24, 24, 64), size(48, 24, 64), size(12, 24, 64)
odd = [h / 100 for h in range(2300, 2500) if size(24, h / 100, 64) not in ((64, 64),)]
print(f"asked for 64 by 64: 24 x 24 gives {square}, 48 x 24 {wide}, 12 x 24 {tall};", end=" ")
print(f"{len(odd)} of 200 boxes nearly square give another size")
assert square == (64, 64)
assert wide != (64, 64) and tall != (64, 64)
EOF
