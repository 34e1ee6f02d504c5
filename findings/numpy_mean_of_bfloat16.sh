#!/usr/bin/env bash
# NumPy's mean of a thousand bfloat16 ones is 0.256.
#
# Libraries: numpy 2.4.6, ml_dtypes 0.6.0 (JAX's bfloat16 outside of JAX), jax 0.10.2.
# Expected:  1, as jnp.mean says, and as np.mean says of float16, which it sums in float32.
# Happens:   NumPy knows nothing special of bfloat16, and adds in it, number by number: from 256 on
#            adding 1 changes nothing, so the sum of ones stays at 256 however many there are.
# Matters:   embeddings computed in bfloat16 and fetched with np.asarray. A class's mean over its
#            prompts, a centroid, a recall over queries is then silently too small, the more so
#            the more rows there are, and without a warning.
# Seen on 2026-11-28:
#   np.mean of 1000 ones: bfloat16 0.255859, float16 1.0; jnp.mean in bfloat16: 1
#   mean of 5000 embeddings, each coordinate's true mean 0.5: largest coordinate 0.051
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet jax==0.10.2 ml_dtypes==0.6.0 numpy==2.4.6

JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'EOF'
import jax.numpy as jnp
import numpy as np

ones = jnp.ones(1000, jnp.bfloat16)
fetched = np.asarray(ones)
half = np.ones(1000, np.float16)
print(f"np.mean of 1000 ones: bfloat16 {fetched.mean()}, float16 {half.mean()};", end=" ")
print(f"jnp.mean in bfloat16: {ones.mean()}")
assert float(fetched.sum()) == 256.0
assert float(fetched.mean()) == 0.255859375
assert float(half.mean()) == 1.0 and float(ones.mean()) == 1.0

features = np.random.default_rng(0).uniform(0.4, 0.6, (5000, 64)).astype(fetched.dtype)
means = features.mean(axis=0).astype(np.float32)
print("mean of 5000 embeddings, each coordinate's true mean 0.5:", end=" ")
print(f"largest coordinate {means.max():.3f}")
assert means.max() < 0.06
assert abs(features.astype(np.float32).mean() - 0.5) < 0.01
EOF
