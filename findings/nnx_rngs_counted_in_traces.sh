#!/usr/bin/env bash
# Drawing keys from nnx.Rngs while a model is traced takes time that grows with the square of them.
#
# Library:   flax 0.12.8 with jax 0.10.2.
# Expected:  nnx.eval_shape of a large model computes nothing, so it costs about what its layers
#            cost to construct, and twice the layers cost twice the time.
# Happens:   each key that nnx.Rngs gives counts up a traced number, of which the sharding is looked
#            up; a traced number has none, and JAX writes an error that walks over all that was
#            traced before. Twice the layers take far more than twice the time, and most of it.
# Matters:   every start, resume and load of a model that describes its arrays before it restores
#            them; deep or wide models most.
# Seen on 2026-11-28:
#   400 layers take 14.6 times what 100 take, and 30.6 times what they take if keys are not counted
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile jax==0.10.2 flax==0.12.8

JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'EOF'
import time

import jax
from flax import nnx


class OneKey(nnx.RngStream):
    """Gives its key without counting."""

    def __call__(self) -> jax.Array:
        return self.key[...]


def seconds(layers: int, counting: bool) -> float:
    def make() -> nnx.List:
        rngs = nnx.Rngs(0)
        if not counting:
            rngs = nnx.Rngs()
            rngs.default = OneKey(0, tag="default")
        return nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(layers)])

    start = time.process_time()
    nnx.eval_shape(make)
    return time.process_time() - start


seconds(10, True), seconds(10, False)
few, many, uncounted = seconds(100, True), seconds(400, True), seconds(400, False)
print(f"400 layers take {many / few:.1f} times what 100 take,", end=" ")
print(f"and {many / uncounted:.1f} times what they take if keys are not counted")
assert many / few > 5 and many / uncounted > 1.5
EOF
