#!/usr/bin/env bash
# truncated_normal(0.02) has a standard deviation of 0.0176.
#
# Library:   jax 0.10.2 (flax.nnx.initializers has the same function).
# Expected:  the standard deviation that the argument is named after, as in PyTorch and timm.
# Happens:   `stddev` is that before the cut at two deviations, and the cut takes 12 %. JAX's own
#            variance_scaling(..., "truncated_normal") divides by .8796 to make up for it, so that
#            one name means two things in one module. PyTorch's trunc_normal_(std=0.02) cuts at
#            -2 and 2, which is to say nowhere.
# Matters:   recipes of ViT, ConvNeXt and BERT say "truncated normal, 0.02". Ported literally,
#            weights begin 12 % smaller; in a deep network without norms that is a factor.
# Seen on 2026-11-28, a million weights:
#   truncated_normal(0.02): deviation 0.01758, largest 0.0400
#   variance_scaling with the same variance: deviation 0.01998, largest 0.0455
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile jax==0.10.2

JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'EOF'
import jax

key, shape = jax.random.key(0), (1000, 1000)
make = jax.nn.initializers
literal = make.truncated_normal(0.02)(key, shape)
scaled = make.variance_scaling(0.02**2 * 1000, "fan_in", "truncated_normal")(key, shape)
for name, weights in (
    ("truncated_normal(0.02)", literal), ("variance_scaling with the same variance", scaled)
):
    print(f"{name}: deviation {weights.std():.5f}, largest {abs(weights).max():.4f}")
assert abs(float(literal.std()) - 0.02 * 0.87963) < 5e-5
assert abs(float(scaled.std()) - 0.02) < 5e-5
EOF
