#!/usr/bin/env bash
# jax.checkpoint on a CPU: the same memory and the same operations as without.
#
# Library:   jax 0.10.2.
# Expected:  activations are computed again for the gradient: a third more operations, and a
#            fraction of the memory, as on GPUs and TPUs.
# Happens:   JAX keeps both computations apart by a barrier for each layer, which XLA removes on a
#            CPU, and finds that they are the same: the activations are kept as before, to the byte.
#            Only in a loop, such as jax.lax.scan over the layers, is anything saved.
# Matters:   a batch that does not fit on a CPU does not fit with it either; and whether a tower's
#            checkpoints are in the right places cannot be tried out on a CPU: layers written out
#            say that it is good for nothing.
# Seen on 2026-11-29, gradient of 16 layers, memory for temporaries:
#   layers written out: 206 MB, 51.2 GFLOP; with jax.checkpoint 206 MB, 51.2 GFLOP
#   barriers given to XLA: 16, left in its program: 0
#   layers in a loop: 361 MB; with jax.checkpoint 89 MB
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile jax==0.10.2

JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'EOF'
import jax
import jax.numpy as jnp

LAYERS = 16
kernels = jax.ShapeDtypeStruct((LAYERS, 256, 256), jnp.float32)
rows = jax.ShapeDtypeStruct((4096, 256), jnp.float32)


def layer(kernel, x):
    return x + jnp.tanh(jnp.tanh(x @ kernel) @ kernel.T)


def written_out(layer, kernels, x):
    for number in range(LAYERS):
        x = layer(kernels[number], x)
    return (x**2).sum()


def in_a_loop(layer, kernels, x):
    x, _ = jax.lax.scan(lambda x, kernel: (layer(kernel, x), None), x, kernels)
    return (x**2).sum()


def measure(network, layer):
    """Return bytes of temporaries, operations, and barriers before and after XLA's work."""
    gradient = jax.jit(jax.grad(lambda kernels, x: network(layer, kernels, x)))
    lowered = gradient.lower(kernels, rows)
    compiled = lowered.compile()
    memory = compiled.memory_analysis().temp_size_in_bytes
    given = lowered.as_text().count("optimization_barrier")
    left = compiled.as_text().count("opt-barrier")
    return memory, compiled.cost_analysis()["flops"], given, left


plain, again = measure(written_out, layer), measure(written_out, jax.checkpoint(layer))
print(f"layers written out: {plain[0] / 1e6:.0f} MB, {plain[1] / 1e9:.1f} GFLOP;", end=" ")
print(f"with jax.checkpoint {again[0] / 1e6:.0f} MB, {again[1] / 1e9:.1f} GFLOP")
print(f"barriers given to XLA: {again[2]}, left in its program: {again[3]}")
assert plain[:2] == again[:2] and again[2:] == (LAYERS, 0)

plain, again = measure(in_a_loop, layer), measure(in_a_loop, jax.checkpoint(layer))
print(f"layers in a loop: {plain[0] / 1e6:.0f} MB; with jax.checkpoint {again[0] / 1e6:.0f} MB")
assert again[0] < 0.3 * plain[0]
EOF
