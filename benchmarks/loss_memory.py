"""Memory of the OTTER loss, value and gradient, as the compiler plans it; nothing is run.

    python benchmarks/loss_memory.py [--sizes=512,4096,16384,65536] [--devices=1,8] [--width=256]

Prints MiB a device beside the embeddings and their gradients, for whole matrices and for tiles.
Devices are simulated on the CPU; what an accelerator's compiler plans is of the same order.
"""

import argparse
import os


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="512,4096,16384,65536", help="batch sizes")
    parser.add_argument("--devices", default="1,8", help="numbers of devices")
    parser.add_argument("--width", type=int, default=256, help="embedding width")
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.devices.split(",")]
    os.environ["JAX_PLATFORMS"] = "cpu"
    flag = f" --xla_force_host_platform_device_count={max(counts)}"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + flag
    print("| N | devices | whole matrices, MiB a device | tiles, MiB a device |\n|---|---|---|---|")
    for size in map(int, arguments.sizes.split(",")):
        for count in counts:
            dense, tiled = (
                mebibytes(size, arguments.width, tile, count)
                for tile in (size, min(1024, size - 1))
            )
            print(f"| {size:,} | {count} | {dense:,.0f} | {tiled:,.0f} |", flush=True)


def mebibytes(size: int, width: int, tile: int, devices: int) -> float:
    """Return the temporary memory of one device for a batch of `size` pairs."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh

    from otter_jax import objectives, sharding

    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    options = objectives.make_method("otter", tile=tile)
    rows = jax.ShapeDtypeStruct((size, width), jnp.float32, sharding=sharding.split_rows(mesh))
    pairs, scalar = objectives.Embeddings(rows, rows), jax.ShapeDtypeStruct((), jnp.float32)

    def loss(student, teacher, *scales):
        log_scales = objectives.LogScales(*scales)
        return objectives.total_loss(options, student, teacher, log_scales, mesh)[0]

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 2, 3)))
    compiled = gradient.lower(pairs, pairs, scalar, scalar).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


if __name__ == "__main__":
    main()
