#!/usr/bin/env bash
# PyTorch's bicubic is two curves: enlarging a ViT's position table depends on `antialias`.
#
# Libraries: torch 2.13.0 (CPU), jax 0.10.2.
# Expected:  antialias=True only matters where something is made smaller.
# Happens:   with antialias=False torch's bicubic has the coefficient -0.75, as OpenCV, with
#            antialias=True -0.5, as Pillow: enlarging, too, gives other numbers. jax.image.resize
#            is the second. timm resizes position tables with antialias=True, transformers' ViT with
#            False: one checkpoint at a higher resolution is two models.
# Matters:   fine-tuning or evaluating a ViT at another resolution in another library than the
#            one that is compared with. Scores shift by little enough to be taken for noise.
# Seen on 2026-11-28, a random 7 x 7 table of 768 channels, enlarged to 14 x 14:
#   antialias False against True: 8.4% (largest difference 0.35)
#   jax.image.resize against antialias True: 1e-06, against False 0.35
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 jax==0.10.2 numpy==2.4.6

JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'EOF'
import jax
import numpy as np
import torch

table = np.random.default_rng(0).normal(size=(7, 7, 768)).astype(np.float32)
as_images = torch.tensor(table).permute(2, 0, 1)[None]


def by_torch(antialias):
    resized = torch.nn.functional.interpolate(
        as_images, size=(14, 14), mode="bicubic", antialias=antialias
    )
    return resized[0].permute(1, 2, 0).numpy()


plain, smooth = by_torch(False), by_torch(True)
by_jax = np.asarray(jax.image.resize(table, (14, 14, 768), "cubic"))
share = np.linalg.norm(plain - smooth) / np.linalg.norm(smooth)
largest = np.abs(plain - smooth).max()
to_smooth, to_plain = np.abs(by_jax - smooth).max(), np.abs(by_jax - plain).max()
print(f"antialias False against True: {share:.1%} (largest difference {largest:.2f})")
print(f"jax.image.resize against antialias True: {to_smooth:.0e}, against False {to_plain:.2f}")
assert 0.08 < share < 0.09 and to_smooth < 1e-5 and to_plain > 0.3
EOF
