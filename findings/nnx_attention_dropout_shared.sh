#!/usr/bin/env bash
# nnx.MultiHeadAttention drops the same attention weights in every example of a batch.
#
# Library:   flax 0.12.8.
# Expected:  dropout of attention weights drawn for each example and head, as in PyTorch and BERT.
# Happens:   `broadcast_dropout=True` is the default: one mask [queries, keys] is drawn a call and
#            shared by all examples and heads. Sixteen copies of a text come out equal in training.
# Matters:   encoders "ported" to Flax train with another, far more correlated noise than the
#            recipe they repeat. SimCSE-like methods, whose positives are two dropout masks of one
#            text in one batch, have two identical views and nothing to learn from.
# Seen on 2026-11-28:
#   16 copies of a text, dropout 0.5: 1 distinct output by default, 16 with broadcast_dropout=False
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet flax==0.12.8 jax==0.10.2

JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'EOF'
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def distinct(**options):
    attention = nnx.MultiHeadAttention(
        num_heads=2, in_features=8, dropout_rate=0.5, decode=False, deterministic=False,
        rngs=nnx.Rngs(0), **options,
    )
    text = jax.random.normal(jax.random.key(1), (1, 5, 8))
    outputs = attention(jnp.tile(text, (16, 1, 1)))
    return len(np.unique(np.asarray(outputs).reshape(16, -1).round(4), axis=0))


shared, own = distinct(), distinct(broadcast_dropout=False)
print(f"16 copies of a text, dropout 0.5: {shared} distinct output by default,", end=" ")
print(f"{own} with broadcast_dropout=False")
assert shared == 1 and own == 16
EOF
