#!/usr/bin/env bash
# Layers 2 to 11 of a restored transformer change places: dictionaries sort "10" before "2".
#
# Libraries: flax 0.12.8, orbax-checkpoint 0.12.8.
# Expected:  the leaves of a state, saved and restored, come back in the order they had.
# Happens:   nnx.to_pure_dict names the layers of a list 0, 1, 2, ...; Orbax keeps names as strings
#            and restores "0", "1", "10", "11", "2", ...: the order in which JAX walks dictionaries.
#            flax.serialization.to_state_dict has strings at once. Putting such leaves back by
#            jax.tree.unflatten, which counts and does not compare names, permutes the layers. All
#            layers of a tower have the same shapes, so nothing is refused.
# Matters:   any tower of more than ten blocks (ViT-B and BERT have twelve), and any moving average,
#            conversion or surgery on weights that zips the leaves of a module and a checkpoint.
# Seen on 2026-11-28:
#   layers after restoring: [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile flax==0.12.8 orbax-checkpoint==0.12.8 jax==0.10.2

JAX_PLATFORMS=cpu "$work/venv/bin/python" - "$work/checkpoint" <<'EOF'
import sys

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx, serialization


class Tower(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.blocks = nnx.List([nnx.Linear(1, 1, use_bias=False, rngs=rngs) for _ in range(12)])


tower = Tower()
for number, block in enumerate(tower.blocks):
    block.kernel[...] = jnp.full((1, 1), float(number))
graph, state = nnx.split(tower)

with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(sys.argv[1], nnx.to_pure_dict(state))
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(sys.argv[1])
back = jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(restored))
layers = [int(block.kernel[...][0, 0]) for block in nnx.merge(graph, back).blocks]
print("layers after restoring:", layers)
assert layers == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]

by_flax = serialization.to_state_dict({"blocks": list(range(12))})
assert jax.tree.leaves(by_flax) == layers
EOF
