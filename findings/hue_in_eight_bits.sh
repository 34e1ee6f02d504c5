#!/usr/bin/env bash
# A colour jitter that turns the hue by nothing changes four of five colours.
#
# Libraries: Pillow 13.0.0, opencv-python-headless 5.0.0.93.
# Expected:  to HSV and back is the identity but for a rounding of 1 of 255.
# Happens:   HSV in 8 bits has 256 hues (OpenCV: 180) and 256 saturations, which is far fewer
#            colours than RGB. To HSV and back moves a channel by up to 7 of 255 in Pillow and up to
#            5 (180 hues) or 8 (256 hues) in OpenCV. In float32, OpenCV's way there and back is
#            exact.
# Matters:   SimCLR's and MoCo v2's jitter, which SLIP and DeCLIP take for their views, is done by
#            torchvision on Pillow's images in just this way: part of the "augmentation" is
#            quantisation, which a port that computes in float does not have, and the other way
#            round.
# Seen on 2026-11-28, all colours of a grid of step 3:
#   Pillow: 82 % of the colours change, by up to 7; OpenCV, 180 hues: 68 %, by up to 5
#   OpenCV, 256 hues: 78 %, by up to 8; OpenCV in float32, rounded: 0 %, by up to 0
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  pillow==13.0.0 opencv-python-headless==5.0.0.93 numpy==2.4.6

"$work/venv/bin/python" - <<'EOF'
import cv2
import numpy as np
from PIL import Image

steps = np.arange(0, 256, 3, dtype=np.uint8)
colours = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 1, 3)


def changed(back):
    distance = np.abs(back.astype(int) - colours).max(axis=-1)
    return round(100 * float((distance > 0).mean())), int(distance.max())


def by_opencv(there, back, image=colours):
    return cv2.cvtColor(cv2.cvtColor(image, there), back)


by_pillow = np.asarray(Image.fromarray(colours).convert("HSV").convert("RGB"))
narrow = by_opencv(cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB)
full = by_opencv(cv2.COLOR_RGB2HSV_FULL, cv2.COLOR_HSV2RGB_FULL)
exact = by_opencv(cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB, colours.astype(np.float32)).round()
found = [changed(back) for back in (by_pillow, narrow, full, exact)]
text = "{} %, by up to {}".format
print(f"Pillow: {found[0][0]} % of the colours change, by up to {found[0][1]};", end=" ")
print(f"OpenCV, 180 hues: {text(*found[1])}")
print(f"OpenCV, 256 hues: {text(*found[2])}; OpenCV in float32, rounded: {text(*found[3])}")
assert found[0] == (82, 7)
assert [largest for _, largest in found[1:]] == [5, 8, 0]
EOF
