#!/usr/bin/env bash
# Setting an nnx.Variable while a program is traced takes time that grows with all traced before.
#
# Library:   flax 0.12.8 with jax 0.10.2.
# Expected:  tracing costs about what its layers cost, and twice the layers cost twice the time:
#            nnx.eval_shape of a large model, or the step of a network with batch norm.
# Happens:   `variable[...] = value` compares the shardings of both; a traced number has none, and
#            JAX writes an error, to be thrown away, for which it walks over all that was traced
#            before. nnx.Rngs counts up such a variable for each key, and nnx.BatchNorm sets two in
#            each forward pass. Twice the layers take far more than twice the time.
# Matters:   every start of training with batch norm, and every start, resume and load of a model
#            that describes its arrays before it restores them; deep ones most. Tracing the step of
#            a ResNet50 and a BERT took three times as long. `variable.set_value(value)` is free.
# Seen on 2026-11-29:
#   400 layers' keys take 16.4 times what 100 take, and 33.5 times what they take uncounted
#   120 batch norms take 27.3 times what 30 take, and 34.1 times what they take by set_value
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile jax==0.10.2 flax==0.12.8

JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'EOF'
import time

import jax
import jax.numpy as jnp
from flax import nnx


class OneKey(nnx.RngStream):
    """Gives its key without counting."""

    def __call__(self) -> jax.Array:
        return self.key[...]


def seconds_of_keys(layers: int, counting: bool) -> float:
    def make() -> nnx.List:
        rngs = nnx.Rngs(0)
        if not counting:
            rngs = nnx.Rngs()
            rngs.default = OneKey(0, tag="default")
        return nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(layers)])

    start = time.process_time()
    nnx.eval_shape(make)
    return time.process_time() - start


class Norm(nnx.BatchNorm):
    """Sets its statistics by `set_value`."""

    def __call__(self, x: jax.Array) -> jax.Array:
        mean, var = x.mean(0), x.var(0)
        self.mean.set_value(0.9 * self.mean[...] + 0.1 * mean)
        self.var.set_value(0.9 * self.var[...] + 0.1 * var)
        return (x - mean) * jax.lax.rsqrt(var + 1e-5) * self.scale[...] + self.bias[...]


def seconds_of_norms(layers: int, kind: type) -> float:
    norms = nnx.List([kind(4, rngs=nnx.Rngs(0)) for _ in range(layers)])
    graph, state = nnx.split(norms)

    def step(state: nnx.State, x: jax.Array) -> tuple[jax.Array, nnx.State]:
        norms = nnx.merge(graph, state)
        for norm in norms:
            for _ in range(10):
                x = jnp.sin(x)
            x = norm(x)
        return x, nnx.split(norms)[1]

    start = time.process_time()
    jax.jit(step).trace(state, jnp.ones((8, 4)))
    return time.process_time() - start


seconds_of_keys(10, True), seconds_of_keys(10, False)
few, many, free = (seconds_of_keys(*x) for x in ((100, True), (400, True), (400, False)))
print(f"400 layers' keys take {many / few:.1f} times what 100 take,", end=" ")
print(f"and {many / free:.1f} times what they take uncounted")
assert many / few > 5 and many / free > 1.5

seconds_of_norms(5, nnx.BatchNorm), seconds_of_norms(5, Norm)
few, many, free = (
    seconds_of_norms(*x) for x in ((30, nnx.BatchNorm), (120, nnx.BatchNorm), (120, Norm))
)
print(f"120 batch norms take {many / few:.1f} times what 30 take,", end=" ")
print(f"and {many / free:.1f} times what they take by set_value")
assert many / few > 5 and many / free > 2
EOF
