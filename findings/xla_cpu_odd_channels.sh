#!/usr/bin/env bash
# On a CPU a convolution of three channels is three times as fast with a fourth of zeros.
#
# Library:   jax 0.10.2 (XLA's CPU backend, its YNNPACK fusions).
# Expected:  three channels of an RGB image cost three quarters of four.
# Happens:   with few channels out, an odd number of channels in is several times slower than the
#            next even one, at 1, 3, 5 and 7 alike. With 64 channels out (ResNet50's stem) it is not.
# Matters:   the stems of EfficientNet, CLIP's ResNets and small ResNets: 3 to 24 or 32 channels.
# Seen on 2026-11-28, [8, 224, 224, channels], 3x3, stride 2, to 32, on two cores:
#   3 channels 5.1 ms, 4 channels 1.5 ms (3.5 times faster); to 64: 2.2 ms and 2.9 ms
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile jax==0.10.2

JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'EOF'
import time

import jax


def milliseconds(channels, out):
    image_key, kernel_key = jax.random.split(jax.random.key(0))
    images = jax.random.normal(image_key, (8, 224, 224, channels))
    kernel = jax.random.normal(kernel_key, (3, 3, channels, out))

    @jax.jit
    def convolve(images, kernel):
        return jax.lax.conv_general_dilated(
            images, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    jax.block_until_ready(convolve(images, kernel))
    times = []
    for _ in range(15):
        start = time.perf_counter()
        jax.block_until_ready(convolve(images, kernel))
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


three, four = milliseconds(3, 32), milliseconds(4, 32)
wide = [milliseconds(channels, 64) for channels in (3, 4)]
print(f"3 channels {three:.1f} ms, 4 channels {four:.1f} ms ({three / four:.1f} times faster);", end="")
print(" to 64: {:.1f} ms and {:.1f} ms".format(*wide))
assert three > 1.8 * four and wide[0] < 1.5 * wide[1]
EOF
