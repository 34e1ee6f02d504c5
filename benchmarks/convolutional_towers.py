"""Time of the convolutional image towers on a CPU, against PyTorch's in the same run.

    pip install -e ".[oracle]"
    python benchmarks/convolutional_towers.py [resnet50] [efficientnet_lite0] [--rounds=3] [--lax]

Each network runs forward in evaluation mode, and forward and backward in training mode (batch norm
on the batch's own statistics, gradients of all parameters), float32, on the same images. The two
sides take turns, a few runs each at a time, and the fastest run of each counts, so that neither has
the advantage of a quieter machine. --lax adds XLA's own operations, the form for GPUs and TPUs.

Memory that is new in each step costs both sides time. With glibc, larger pages make it cheaper:

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python benchmarks/convolutional_towers.py
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

sys.path.insert(0, str(Path(__file__).parents[1]))

from otter_jax.commands.cpu_settings import all_cores, convolve_on_all_cores
from otter_jax.models import create_image_tower

Run = Callable[[], Any]
RUNS_IN_A_ROW = 4  # The first of them only warms up.


class Workload(NamedTuple):
    """A network and what it is given."""

    batch_size: int
    image_size: int
    torch_network: Callable[[], tuple[Any, Callable]]  # Module; images -> pooled features.


def torch_resnet50() -> tuple[Any, Callable]:
    """Return Hugging Face's ResNet50 with random weights."""
    from transformers import ResNetConfig, ResNetModel

    network = ResNetModel(ResNetConfig())
    return network, lambda images: network(pixel_values=images).pooler_output


def torch_efficientnet() -> tuple[Any, Callable]:
    """Return the PyTorch port of EfficientNet-Lite0, whose weights our tower reads."""
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0", image_size=None)
    return network, lambda images: network.extract_features(images).mean(dim=(2, 3))


WORKLOADS = {
    "resnet50": Workload(16, 224, torch_resnet50),
    "efficientnet_lite0": Workload(32, 128, torch_efficientnet),
}


def torch_runs(workload: Workload, images: np.ndarray) -> dict[str, Run]:
    """Return PyTorch's passes of both networks, by name."""
    import torch

    network, features = workload.torch_network()
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def forward() -> None:
        network.eval()
        with torch.no_grad():
            features(batch)

    def train() -> None:
        network.train()
        network.zero_grad()
        features(batch).square().sum().backward()

    return {"forward": forward, "forward + backward": train}


def our_runs(name: str, images: np.ndarray, platform: str) -> dict[str, Run]:
    """Return the passes of the tower `name`, compiled in the form for a platform, by name."""
    graph, params, statistics = nnx.split(
        create_image_tower(name, rngs=nnx.Rngs(0)), nnx.Param, nnx.BatchStat
    )
    batch = jnp.asarray(images)

    def forward(params: nnx.State, statistics: nnx.State) -> jax.Array:
        return nnx.merge(graph, params, statistics, copy=True)(batch).pooled

    def train(params: nnx.State, statistics: nnx.State) -> tuple[nnx.State, nnx.State]:
        def loss(params: nnx.State) -> tuple[jax.Array, nnx.State]:
            tower = nnx.merge(graph, params, statistics, copy=True)
            features = tower(batch, train=True).pooled
            return jnp.sum(jnp.square(features)), nnx.state(tower, nnx.BatchStat)

        return jax.grad(loss, has_aux=True)(params)

    def compiled(function: Callable) -> Run:
        def choose(*arrays: jax.Array, cpu: Callable, default: Callable) -> jax.Array:
            return cpu(*arrays) if platform == "cpu" else default(*arrays)

        with mock.patch.object(jax.lax, "platform_dependent", choose):
            program = jax.jit(function).lower(params, statistics).compile()
        return lambda: jax.block_until_ready(program(params, statistics))

    return {"forward": compiled(forward), "forward + backward": compiled(train)}


def fastest(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Return the seconds of the fastest run of each, taking turns."""
    seconds = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            for _ in range(RUNS_IN_A_ROW - 1):
                start = time.perf_counter()
                run()
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def measure(name: str, rounds: int, with_lax: bool) -> None:
    """Print the lines of one network."""
    workload = WORKLOADS[name]
    shape = (workload.batch_size, workload.image_size, workload.image_size, 3)
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    sides = {"ours": our_runs(name, images, "cpu"), "PyTorch": torch_runs(workload, images)}
    if with_lax:
        sides["lax"] = our_runs(name, images, "tpu")
    for what in sides["ours"]:
        seconds = fastest({side: runs[what] for side, runs in sides.items()}, rounds)
        ratio = seconds["ours"] / seconds["PyTorch"]
        times = "".join(f"{seconds[side]:9.3f} s" for side in sides)
        print(f"{name:20}{what:20}{times}{ratio:8.2f}", flush=True)


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(WORKLOADS)}; all if none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lax", action="store_true", help="measure XLA's own operations as well")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.networks) - set(WORKLOADS))
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; there are: {', '.join(WORKLOADS)}")
    sides = ["ours", "PyTorch", *(["lax"] if arguments.lax else [])]
    convolve_on_all_cores(os.environ, len(all_cores()))  # As the commands do.
    print(f"{'network':20}{'pass':20}{''.join(f'{side:>11}' for side in sides)}   ours / PyTorch")
    for name in arguments.networks or WORKLOADS:
        measure(name, arguments.rounds, arguments.lax)


if __name__ == "__main__":
    main()
