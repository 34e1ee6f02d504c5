#!/usr/bin/env bash
# XLA's count of FLOPs counts one round of a loop: a scanned tower of 12 layers has 1/12 of its own.
#
# Library:   jax 0.10.2.
# Expected:  compiled.cost_analysis()["flops"] of a forward pass is that of the forward pass.
# Happens:   a while loop's body is counted once, however many rounds it has. The same network
#            written as a Python loop has 12 times the FLOPs of the one written with lax.scan.
# Matters:   shares of a chip's peak ("MFU") and forecasts of time for scanned layers, gradient
#            accumulation, losses in tiles: too low by the number of rounds, and an optimisation
#            that only unrolls a loop seems to cost more.
# Seen on 2026-11-28:
#   12 layers of 2 * 64 * 256 * 256 FLOPs: written out 100,663,296, scanned 8,388,610: 12.0 times
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile jax==0.10.2

JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'EOF'
import jax
import jax.numpy as jnp

ROWS, WIDTH, LAYERS = 64, 256, 12


def layer(x, kernel):
    return jnp.tanh(x @ kernel)


def written_out(x, kernels):
    for number in range(LAYERS):
        x = layer(x, kernels[number])
    return x


def scanned(x, kernels):
    return jax.lax.scan(lambda x, kernel: (layer(x, kernel), None), x, kernels)[0]


def flops(network):
    shapes = (ROWS, WIDTH), (LAYERS, WIDTH, WIDTH)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(network).lower(*arguments).compile().cost_analysis()["flops"]


whole, round_ = flops(written_out), flops(scanned)
print(f"12 layers of 2 * 64 * 256 * 256 FLOPs: written out {whole:,.0f},", end=" ")
print(f"scanned {round_:,.0f}: {whole / round_:.1f} times")
assert whole == LAYERS * 2 * ROWS * WIDTH * WIDTH
assert abs(whole / round_ - LAYERS) < 0.01
EOF
