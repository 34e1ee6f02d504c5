#!/usr/bin/env bash
# A soft target of zero on a masked logit makes optax's loss NaN, while the gradient is fine.
#
# Library:   optax 0.2.8.
# Expected:  a cross-entropy with soft targets skips what has no mass: 0 log 0 is 0.
# Happens:   a logit of -inf with target 0 gives 0 * -inf, NaN. The gradient, softmax minus target,
#            is right and finite, so training goes on well while its curve is NaN; guards that stop
#            on a loss that is not finite stop a healthy run. With integer labels the loss is
#            finite.
# Matters:   contrastive targets that take the given pair, duplicates or padding out of a batch by
#            -inf, as OTTER's and most masked losses do.
# Seen on 2026-11-28:
#   soft targets: loss nan, gradient [-0.231  0.231  0.   ]; integer label: loss 1.313
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2

JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'EOF'
import jax
import jax.numpy as jnp
import numpy as np
import optax

logits = jnp.array([0.0, 1.0, -jnp.inf])  # The last one is taken out.
targets = jnp.array([0.5, 0.5, 0.0])
loss, gradient = jax.value_and_grad(optax.softmax_cross_entropy)(logits, targets)
by_label = optax.softmax_cross_entropy_with_integer_labels(logits, 0)
print(f"soft targets: loss {loss}, gradient {np.round(gradient, 3)};", end=" ")
print(f"integer label: loss {by_label:.3f}")
assert np.isnan(loss)
right = np.array([1 / (1 + np.e) - 0.5, np.e / (1 + np.e) - 0.5, 0.0])
np.testing.assert_allclose(gradient, right, atol=1e-6)
assert abs(by_label - np.log(1 + np.e)) < 1e-6
EOF
