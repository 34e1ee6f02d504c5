#!/usr/bin/env bash
# Keys by jax.random.fold_in and keys by jax.random.split are the same keys.
#
# Library:   jax 0.10.2, whose threefry is "partitionable" by default.
# Expected:  two ways to derive keys that are independent of each other.
# Happens:   split(key, n)[i] is fold_in(key, i), for every n. A key from which a training loop has
#            folded out its steps, and of which a module has split off its layers, gives step 1 the
#            key of layer 1: both draw the same mask. Splitting into more keys keeps the first
#            ones; and seeds are taken modulo 2**32, so that 2**32 + 5 is seed 5.
# Matters:   dropout, augmentation and initial weights of "independent" parts that are equal.
#            Nothing shows it but equal masks. A key should be used by one of the two functions
#            only.
# Seen on 2026-11-28:
#   split(key, 5)[i] == fold_in(key, i): [True, True, True, True, True]
#   dropout masks of step 3 and of layer 3 agree in 4096 of 4096 elements
#   key(5) == key(2**32 + 5): True
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet jax==0.10.2

JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'EOF'
import jax

data = jax.random.key_data


def equal(a, b):
    return bool((data(a) == data(b)).all())


key = jax.random.key(7)
layers = jax.random.split(key, 5)
same = [equal(layers[i], jax.random.fold_in(key, i)) for i in range(5)]
print("split(key, 5)[i] == fold_in(key, i):", same)
assert all(same)
assert all(equal(jax.random.split(key, 100)[i], layers[i]) for i in range(5))

of_step = jax.random.bernoulli(jax.random.fold_in(key, 3), 0.9, (64, 64))
of_layer = jax.random.bernoulli(layers[3], 0.9, (64, 64))
agreeing = int((of_step == of_layer).sum())
print(f"dropout masks of step 3 and of layer 3 agree in {agreeing} of {of_step.size} elements")
assert agreeing == of_step.size

wrapped = equal(jax.random.key(5), jax.random.key(2**32 + 5))
print("key(5) == key(2**32 + 5):", wrapped)
assert wrapped
EOF
