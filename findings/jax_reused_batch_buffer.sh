#!/usr/bin/env bash
# A loader that fills one NumPy buffer again and again changes batches that JAX already has.
#
# Library:   jax 0.10.2, on a CPU.
# Expected:  device_put and a call of a jitted function take a copy of a NumPy array, as to a GPU.
# Happens:   an array whose memory begins at a multiple of 64 bytes is not copied: the jax.Array is
#            a view of it, for ever. device_put, make_array_from_process_local_data and the
#            arguments of jitted functions do so; jnp.array and jnp.asarray copy. A jitted call
#            returns before it has read its arguments, so what is written into the buffer next is
#            what it computes on. Where memory begins depends on its size and on luck: the same
#            program is right for one batch size and wrong for another.
# Matters:   prefetching with a ring of buffers; test suites on CPUs that pass or fail by alignment.
# Seen on 2026-11-28:
#   three batches of 0s, 1s and 2s from one aligned buffer: [2.0, 2.0, 2.0]
#   the same, 16 bytes further on: [0.0, 1.0, 2.0]
#   three steps that add the mean of batches of 1s, 2s and 3s: 3000 instead of 6
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile jax==0.10.2 numpy==2.4.6

JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'EOF'
import jax
import numpy as np


def buffer(shape, offset):
    """Return float32 memory that begins `offset` bytes after a multiple of 64."""
    size = 4 * int(np.prod(shape))
    memory = np.zeros(size + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    return memory[start : start + size].view(np.float32).reshape(shape)


def batches(rows):
    placed = []
    for number in range(3):
        rows[:] = number
        placed.append(jax.device_put(rows))
        jax.block_until_ready(placed[-1])
    return [float(batch.mean()) for batch in placed]


aligned, shifted = batches(buffer((64, 1000), 0)), batches(buffer((64, 1000), 16))
print("three batches of 0s, 1s and 2s from one aligned buffer:", aligned)
print("the same, 16 bytes further on:", shifted)
assert aligned == [2.0, 2.0, 2.0] and shifted == [0.0, 1.0, 2.0]

mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
rows = buffer((64, 1000), 0)
of_process = jax.make_array_from_process_local_data(
    jax.NamedSharding(mesh, jax.P("data")), rows
)
jax.block_until_ready(of_process)
rows[:] = 9
assert float(of_process.mean()) == 9.0

SIZE = 2000  # The product of two such matrices of 1 / SIZE is the same matrix.


@jax.jit
def step(state, rows):
    matrix, total = state
    matrix = matrix @ matrix
    return matrix, total + rows.mean() * matrix[0, 0] * SIZE


def total_of_steps(rows):
    state = jax.numpy.full((SIZE, SIZE), 1 / SIZE), 0.0
    for number in (1, 2, 3):
        rows[:] = number
        state = step(state, rows)
    rows[:] = 1000
    return round(float(state[1]))


rows = buffer((64, 1000), 0)
jax.block_until_ready(step((jax.numpy.zeros((SIZE, SIZE)), 0.0), rows))  # Compiled before.
total = total_of_steps(rows)
print(f"three steps that add the mean of batches of 1s, 2s and 3s: {total} instead of 6")
assert total > 6
EOF
