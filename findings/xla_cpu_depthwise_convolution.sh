#!/usr/bin/env bash
# On a CPU, nine shifted copies are tens of times faster than XLA's own depthwise convolution.
#
# Library:   jax 0.10.2 (XLA's CPU backend).
# Expected:  lax.conv_general_dilated with feature_group_count (nnx.Conv's way) is the fast form,
#            and a depthwise convolution costs 1/channels of a full one.
# Happens:   it takes longer than the full convolution, which has 64 times the FLOPs. Written as a
#            sum of nine shifted multiply-adds the numbers are the same and it takes milliseconds.
# Matters:   EfficientNet, MobileNet and ConvNeXt towers on laptops and in CI: "JAX is slow on CPUs"
#            is this operation and its gradients.
# Seen on 2026-11-28, [16, 56, 56, 64], 3x3, on two cores:
#   depthwise 0.20 s, full 0.05 s, shifted sums 0.007 s (28 times faster), difference 0
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile jax==0.10.2

JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'EOF'
import time

import jax
import jax.numpy as jnp

image_key, kernel_key = jax.random.split(jax.random.key(0))
images = jax.random.normal(image_key, (16, 56, 56, 64))
kernel = jax.random.normal(kernel_key, (3, 3, 1, 64))
full_kernel = jax.random.normal(kernel_key, (3, 3, 64, 64))


def convolve(images, kernel, groups=1):
    return jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def depthwise(images, kernel):
    return convolve(images, kernel, groups=64)


def shifted(images, kernel):
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [(row, column) for row in range(3) for column in range(3)]
    return sum(padded[:, y : y + 56, x : x + 56] * kernel[y, x, 0] for y, x in taps)


def seconds(function, *arguments):
    function = jax.jit(function)
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return min(times)


grouped, whole = seconds(depthwise, images, kernel), seconds(convolve, images, full_kernel)
sums = seconds(shifted, images, kernel)
difference = float(jnp.abs(depthwise(images, kernel) - shifted(images, kernel)).max())
print(f"depthwise {grouped:.2f} s, full {whole:.2f} s, shifted sums {sums:.3f} s", end=" ")
print(f"({grouped / sums:.0f} times faster), difference {difference:.1g}")
assert grouped > 8 * sums and difference < 1e-5
EOF
