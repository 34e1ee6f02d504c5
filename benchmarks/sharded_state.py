"""Memory of parameters, optimizer and teacher on one device, whole and split over the devices.

    python benchmarks/sharded_state.py [--config=configs/otter_rn50.py] [--devices=1,2,4,8]

Prints MiB a device by the shapes of the arrays and where `config.fsdp` puts them; none is made.
"""

import argparse
import importlib.util
import os
from pathlib import Path
from typing import Any


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/otter_rn50.py", help="a file of configs/")
    parser.add_argument("--devices", default="1,2,4,8", help="numbers of devices")
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.devices.split(",")]
    os.environ["JAX_PLATFORMS"] = "cpu"
    flag = f" --xla_force_host_platform_device_count={max(counts)}"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + flag
    state = abstract_state(Path(arguments.config))
    parts = {
        "parameters and statistics": state.variables,
        "optimizer": state.opt_state,
        "teacher": state.teacher,
        "in all": state,
    }
    print(f"| devices | fsdp | {' | '.join(parts)} |\n|{'---|' * (2 + len(parts))}")
    for count in counts:
        for fsdp in (False, True):
            sizes = (f"{mebibytes(part, count, fsdp):,.1f}" for part in parts.values())
            print(f"| {count} | {fsdp} | {' | '.join(sizes)} |", flush=True)


def abstract_state(path: Path) -> Any:
    """Return the shapes of the state with which a config's run begins; weights are not read."""
    from otter_jax import sharding
    from otter_jax.training.shapes import describe_step

    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return describe_step(module.get_config(), sharding.make_mesh())[1]


def mebibytes(tree: Any, devices: int, fsdp: bool) -> float:
    """Return what one device holds of a pytree of shapes."""
    import jax
    import numpy as np
    from jax.sharding import Mesh

    from otter_jax import sharding

    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    places = sharding.array_places(mesh, tree, fsdp=fsdp)
    placed = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places
    )
    return sharding.bytes_on_a_device(placed) / 2**20


if __name__ == "__main__":
    main()
