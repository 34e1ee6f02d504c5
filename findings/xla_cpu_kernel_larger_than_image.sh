#!/usr/bin/env bash
# On a CPU a 3x3 convolution of 2x2 images takes tens of times as long as the same of 4x4 images.
#
# Library:   jax 0.10.2 (XLA's CPU backend).
# Expected:  a quarter of the pixels, a quarter of the time.
# Happens:   where the kernel is larger than the image, XLA's simplifier makes the kernel the image
#            and the image the kernel (`dim_labels=01fb_o01i->f01b` in the compiled program), which
#            is right and slow: the batch becomes channels. Written as four matrix products, one
#            for each pixel that comes out, the numbers are the same.
# Matters:   the last stages of ResNets on small images (CIFAR, icons): most of a train step's time
#            was in two such layers. From 3x3 images on, all is well.
# Seen on 2026-11-28, [256, side, side, 128] to 128, on two cores:
#   side 4: 3.4 ms, side 2: 18.0 ms, as four products 0.4 ms (51 times faster), difference 1e-04
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
kernel = jax.random.normal(kernel_key, (3, 3, 128, 128))


def convolve(images):
    return jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def products(images):
    """Of 2x2 images: each pixel that comes out has met all four, with four of the nine taps."""
    flat = images.reshape(len(images), -1)
    pixels = [
        flat @ kernel[1 - y : 3 - y, 1 - x : 3 - x].reshape(-1, 128) for y in (0, 1) for x in (0, 1)
    ]
    return jnp.stack(pixels, axis=1).reshape(images.shape)


def milliseconds(function, images):
    function = jax.jit(function)
    jax.block_until_ready(function(images))
    times = []
    for _ in range(15):
        start = time.perf_counter()
        jax.block_until_ready(function(images))
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


four, two = (jax.random.normal(image_key, (256, side, side, 128)) for side in (4, 2))
large, small = milliseconds(convolve, four), milliseconds(convolve, two)
written_out = milliseconds(products, two)
difference = float(jnp.abs(convolve(two) - products(two)).max())
print(f"side 4: {large:.1f} ms, side 2: {small:.1f} ms, as four products {written_out:.1f} ms", end="")
print(f" ({small / written_out:.0f} times faster), difference {difference:.0e}")
assert "01fb_o01i->f01b" in jax.jit(convolve).lower(two).compile().as_text()
assert small > large and small > 5 * written_out and difference < 1e-3
EOF
