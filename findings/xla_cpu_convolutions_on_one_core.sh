#!/usr/bin/env bash
# On a CPU many convolutions use one core, however many there are.
#
# Library:   jax 0.10.2 (XLA's CPU backend, its YNNPACK fusions).
# Expected:  a convolution of 32 images is spread over all cores, as products of matrices are.
# Happens:   one core is at work for the shapes below; 3x3 with 256 channels is spread. XLA's other
#            way, which a flag brings back, uses all cores: on two, these two take .6 of the time. On
#            one core some shapes are slower with it.
# Matters:   training image towers on laptops and CPU servers. (It needs two free cores to be seen.)
# Seen on 2026-11-29, two cores, CPU time a second of wall time:
#   3x3, 64 channels, 56x56, and 1x1, 512 to 128 channels, 28x28: 1.0 by default, 2.0 with the flag
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile jax==0.10.2

cat >"$work/convolve.py" <<'EOF'
import os
import time

import jax


def busy_cores(side, size, channels, out):
    images = jax.random.normal(jax.random.key(0), (32, side, side, channels))
    kernel = jax.random.normal(jax.random.key(1), (size, size, channels, out))

    @jax.jit
    def convolve(images, kernel):
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    jax.block_until_ready(convolve(images, kernel))
    found = []
    for _ in range(20):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(5):
            jax.block_until_ready(convolve(images, kernel))
        found.append((time.process_time() - cpu) / (time.perf_counter() - wall))
    return max(found)


busy = busy_cores(56, 3, 64, 64), busy_cores(28, 1, 512, 128)
print("3x3: {:.1f} cores, 1x1: {:.1f} cores at work, at most".format(*busy))
assert min(busy) > 1.4 if "XLA_FLAGS" in os.environ else max(busy) < 1.2
EOF

test "$(nproc)" -ge 2 || { echo "it takes two cores to see it"; exit 1; }
export JAX_PLATFORMS=cpu
echo "by default" && "$work/venv/bin/python" "$work/convolve.py"
without="-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
export XLA_FLAGS="--xla_cpu_experimental_ynn_fusion_type=$without"
echo "with $XLA_FLAGS" && "$work/venv/bin/python" "$work/convolve.py"
