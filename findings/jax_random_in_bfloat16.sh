#!/usr/bin/env bash
# Of 1000 equal classes, jax.random.categorical draws the first half in 98 % of all draws.
#
# Library:   jax 0.10.2.
# Expected:  random numbers in bfloat16 are those of float32, rounded.
# Happens:   they are made of as many random bits as bfloat16 has: 128 different numbers in all.
#            * categorical with bfloat16 logits: the largest of 1000 Gumbel variables is nearly
#              always shared, and the first of equals wins; the last hundreds are never drawn.
#            * bernoulli with a probability of bfloat16's type: .001 comes true in .0077.
#            * normal: 128 values, none beyond 2.9, with a mean of -.012 (twelve times what chance
#              allows here). So is a kernel that Flax draws with param_dtype=bfloat16.
# Matters:   drawing hard negatives or neighbours by similarity scores as they come from towers in
#            bfloat16; rates of masking and noise; initial weights. float32 has none of it.
# Seen on 2026-11-28:
#   categorical, 1000 equal logits, share of the first 500: bfloat16 0.981, float32 0.494
#   bernoulli(.001): bfloat16 0.0077, float32 0.0010
#   normal in bfloat16: 128 values, mean -0.012, largest 2.89
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile jax==0.10.2 numpy==2.4.6

JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'EOF'
import jax
import jax.numpy as jnp
import numpy as np

key = jax.random.key(0)


def first_half(dtype):
    drawn = jax.random.categorical(key, jnp.zeros(1000, dtype), shape=(20_000,))
    return float((drawn < 500).mean())


narrow, wide = first_half(jnp.bfloat16), first_half(jnp.float32)
print("categorical, 1000 equal logits, share of the first 500:", end=" ")
print(f"bfloat16 {narrow:.3f}, float32 {wide:.3f}")
assert narrow > 0.97 and 0.48 < wide < 0.52


def rate(dtype):
    return float(jax.random.bernoulli(key, jnp.asarray(0.001, dtype), (1_000_000,)).mean())


narrow, wide = rate(jnp.bfloat16), rate(jnp.float32)
print(f"bernoulli(.001): bfloat16 {narrow:.4f}, float32 {wide:.4f}")
assert 0.0075 < narrow < 0.0082 and 0.0009 < wide < 0.0011

drawn = np.asarray(jax.random.normal(key, (1_000_000,), jnp.bfloat16)).astype(np.float64)
values = len(np.unique(drawn))
print(f"normal in bfloat16: {values} values, mean {drawn.mean():.3f},", end=" ")
print(f"largest {np.abs(drawn).max():.2f}")
assert values == 128 and -0.015 < drawn.mean() < -0.009 and np.abs(drawn).max() < 2.9
EOF
