#!/usr/bin/env bash
# Sinkhorn's kernel is NaN in JAX on a CPU where NumPy has the answer, in the same float32.
#
# Library:   jax 0.10.2 (XLA's CPU backend), numpy 2.4.6.
# Expected:  exp(-90) is 8.2e-40 in float32, a small number with fewer bits.
# Happens:   XLA's CPU backend computes with denormal numbers flushed to zero, in arguments and
#            results alike; NumPy and PyTorch keep them by default. float32 ends at exp(-87.3)
#            instead of exp(-103). A row of the kernel exp(-cost / epsilon) is then zeros, and its
#            scaling infinite.
# Matters:   optimal transport with cosines: at epsilon 0.01, a row whose costs 1 - cosine are all
#            above 0.88 (a caption that fits no image of the batch). A reference in NumPy or
#            PyTorch passes on the data on which its port is NaN. The log domain has no such limit.
# Seen on 2026-11-28:
#   exp(-90): JAX 0.0, NumPy 8.2e-40; a row of costs .90 to .93, normalised: JAX [nan nan nan nan],
#   NumPy [0.644 0.237 0.087 0.032]
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile jax==0.10.2 numpy==2.4.6

JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'EOF'
import jax
import jax.numpy as jnp
import numpy as np

costs = np.array([0.90, 0.91, 0.92, 0.93], np.float32)
epsilon = np.float32(0.01)


def row(xp, costs):
    kernel = xp.exp(-costs / epsilon)
    return kernel / kernel.sum()


by_jax, by_numpy = np.asarray(jax.jit(lambda x: row(jnp, x))(costs)), row(np, costs)
small = float(jnp.exp(jnp.float32(-90))), float(np.exp(np.float32(-90)))
print(f"exp(-90): JAX {small[0]}, NumPy {small[1]:.1e};", end=" ")
print(f"a row of costs .90 to .93, normalised: JAX {by_jax},")
print("NumPy", by_numpy.round(3))
assert small[0] == 0.0 and 8e-40 < small[1] < 9e-40
assert np.isnan(by_jax).all()
np.testing.assert_allclose(by_numpy, np.exp([0, -1, -2, -3]) / np.exp([0, -1, -2, -3]).sum(), 1e-3)
doubled = jax.jit(lambda x: 2 * x)(np.full(4, 8e-39, np.float32))
assert (np.asarray(doubled) == 0).all()
EOF
