#!/usr/bin/env bash
# Flax's norms lose the variance of features with a large mean: 100 times too large an output.
#
# Library:   flax 0.12.8.
# Expected:  LayerNorm returns rows of standard deviation 1, to float32's accuracy.
# Happens:   `use_fast_variance=True` is the default of nnx.LayerNorm, GroupNorm and BatchNorm: the
#            variance is the mean square less the squared mean, in float32. It is off by percents
#            where the mean is 1000 times the deviation, and clipped to 0 beyond, so that epsilon is
#            all that is divided by. PyTorch's norms are right on the same rows.
# Matters:   norms on raw pixels or on residual streams with a few huge, constant channels, as
#            trained ViTs and language models have: numbers differ from PyTorch's for the same
#            weights, and it looks like noise of the conversion.
# Seen on 2026-11-28, standard deviation of normalised rows, fast and exact:
#   mean / deviation    100:  0.9989 to   1.0011, exact 1.0000 to 1.0000
#   mean / deviation   1000:  0.8902 to   1.0563, exact 1.0000 to 1.0000
#   mean / deviation   3000:  0.6186 to 105.9002, exact 0.9999 to 1.0000
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet flax==0.12.8 jax==0.10.2 numpy==2.4.6

JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'EOF'
import jax.numpy as jnp
import numpy as np
from flax import nnx

fast = nnx.LayerNorm(512, rngs=nnx.Rngs(0))
exact = nnx.LayerNorm(512, use_fast_variance=False, rngs=nnx.Rngs(0))
found = {}
for mean, deviation in ((100, 1.0), (1000, 1.0), (300, 0.1)):
    rows = np.random.default_rng(0).normal(size=(64, 512)) * deviation + mean
    rows = jnp.asarray(rows, jnp.float32)
    by_fast, by_exact = (np.asarray(norm(rows)).std(axis=1) for norm in (fast, exact))
    ratio = round(mean / deviation)
    found[ratio] = by_fast
    print(f"mean / deviation {ratio:6}: {by_fast.min():7.4f} to {by_fast.max():8.4f},", end=" ")
    print(f"exact {by_exact.min():.4f} to {by_exact.max():.4f}")
    assert 0.999 < by_exact.min() and by_exact.max() < 1.001
assert 1e-4 < np.abs(found[100] - 1).max() < 2e-2
assert np.abs(found[1000] - 1).max() > 2e-2
assert found[3000].max() > 50
EOF
