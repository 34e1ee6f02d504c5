#!/usr/bin/env bash
# A data-parallel step moved from pmap to shard_map trains with gradients times the devices.
#
# Library:   jax 0.10.2.
# Expected:  inside of jax.shard_map, as in jax.pmap, jax.grad gives each device the gradient of its
#            own rows, and jax.lax.pmean makes of them the gradient of the whole batch.
# Happens:   by default (check_vma=True) parameters are known to be the same on all devices, and the
#            gradient of what is the same everywhere is summed over the devices by jax.grad itself.
#            pmean, or psum divided by the devices, then finds equal numbers, and leaves the sum:
#            on 8 devices 8 times the gradient, no error. check_vma=False gives the right one.
#            And the other way round: the gradient of a loss that is averaged by pmean inside of
#            the function is right by default, and another one with check_vma=False.
# Matters:   steps of image-text training are written in just this way, with jax.lax.all_gather of
#            the embeddings. The reported loss is right. Under Adam the factor hides, while SGD's
#            steps are 8 times as long, and clipping of the gradient's norm cuts far more.
# Seen on 2026-11-29, 8 devices on a CPU, norm of the gradient by that of one device:
#   mean squares, then pmean: check_vma=False 1.00, default 8.00
#   InfoNCE of gathered embeddings, then pmean: check_vma=False 1.00, default 8.00
#   mean squares, pmean of the loss itself: check_vma=False differs, default 1.00
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile jax==0.10.2 numpy==2.4.6

JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 \
  "$work/venv/bin/python" - <<'EOF'
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
kernel = jax.random.normal(jax.random.key(0), (4, 3))
images, texts = jax.random.normal(jax.random.key(1), (2, 16, 4))


def mean_squares(kernel, images, texts):
    return jnp.mean((images @ kernel - texts @ kernel) ** 2)


def info_nce(kernel, images, texts, first=0, gather=lambda rows: rows):
    logits = (images @ kernel) @ gather(texts @ kernel).T
    own = first + jnp.arange(len(images))
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), own[:, None], axis=1).mean()


def info_nce_of_all(kernel, images, texts):
    first = jax.lax.axis_index("rows") * len(images)
    gather = lambda rows: jax.lax.all_gather(rows, "rows", tiled=True)
    return info_nce(kernel, images, texts, first, gather)


def mean_after(loss):
    return lambda *arrays: jax.lax.pmean(jax.grad(loss)(*arrays), "rows")


def mean_inside(loss):
    return jax.grad(lambda *arrays: jax.lax.pmean(loss(*arrays), "rows"))


def on_devices(gradient, **options):
    rows = PartitionSpec("rows")
    specs = {"in_specs": (PartitionSpec(), rows, rows), "out_specs": PartitionSpec()}
    split = jax.shard_map(gradient, mesh=mesh, **specs, **options)
    return np.asarray(jax.jit(split)(kernel, images, texts))


def factor(found, right):
    """Return the number that `right` is multiplied by, or None if it is another direction."""
    times = np.linalg.norm(found) / np.linalg.norm(right)
    return round(float(times), 2) if np.allclose(found, times * right, rtol=1e-4) else None


cases = [
    ("mean squares, then pmean", mean_after(mean_squares), mean_squares),
    ("InfoNCE of gathered embeddings, then pmean", mean_after(info_nce_of_all), info_nce),
    ("mean squares, pmean of the loss itself", mean_inside(mean_squares), mean_squares),
]
factors = []
for name, gradient, loss in cases:
    right = np.asarray(jax.grad(loss)(kernel, images, texts))
    unchecked = factor(on_devices(gradient, check_vma=False), right)
    default = factor(on_devices(gradient), right)
    shown = "differs" if unchecked is None else f"{unchecked:.2f}"
    print(f"{name}: check_vma=False {shown}, default {default:.2f}")
    factors.append((unchecked, default))
assert factors == [(1.0, 8.0), (1.0, 8.0), (None, 1.0)]
EOF
