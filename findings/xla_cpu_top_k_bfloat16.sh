#!/usr/bin/env bash
# On a CPU, the best ten of bfloat16 scores take a hundred times as long as of float32 scores.
#
# Library:   jax 0.10.2 (XLA's CPU backend).
# Expected:  jax.lax.top_k of bfloat16 costs what float32 costs, or half.
# Happens:   XLA's CPU backend has a fast top-k for float32 alone. Any other type (bfloat16,
#            float16) is sorted as a whole, with a comparison by index: 256 x 16,384 scores take
#            seconds. jax.lax.approx_max_k, made for such searches, is an exact top_k on a CPU.
# Matters:   nearest neighbours, hit@k and retrieval on embeddings kept in bfloat16. A cast to
#            float32 in front is exact and removes it.
# Seen on 2026-11-28, 256 x 16,384 scores, on two cores:
#   float32 0.01 s, bfloat16 1.9 s (360 times), float16 1.6 s, bfloat16 cast to float32 0.02 s
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile jax==0.10.2

JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'EOF'
import time

import jax
import jax.numpy as jnp

scores = jax.random.normal(jax.random.key(0), (256, 16384))


def seconds(scores, search=lambda x: jax.lax.top_k(x, 10)):
    search = jax.jit(search)
    jax.block_until_ready(search(scores))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(search(scores))
        times.append(time.perf_counter() - start)
    return min(times)


narrow = scores.astype(jnp.bfloat16)
wide = seconds(scores)
slow, half = seconds(narrow), seconds(scores.astype(jnp.float16))
cast = seconds(narrow, lambda x: jax.lax.top_k(x.astype(jnp.float32), 10))
print(f"float32 {wide:.2f} s, bfloat16 {slow:.1f} s ({slow / wide:.0f} times),", end=" ")
print(f"float16 {half:.1f} s, bfloat16 cast to float32 {cast:.2f} s")
assert slow > 10 * wide and half > 10 * wide and slow > 5 * cast
exact = jax.lax.top_k(scores, 10)[0]
approximate = jax.lax.approx_max_k(scores, 10, recall_target=0.5)[0]
assert bool((exact == approximate).all())
EOF
