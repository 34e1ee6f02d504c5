"""A preset's step on the GPU that is here, beside its plan, and OTTER's loss beside PyTorch's.

    pip install -e ".[gpu,plan-gpu]"  # And torch, for the last row.
    python benchmarks/gpu_step.py [--config=otter_rn50] [--pairs=512] [--steps=10] [--loss=32768]
    python benchmarks/gpu_step.py --dry-run  # Small towers, on any machine, without a plan.

Weights and pairs are random, so that nothing is downloaded. In float32 and in bfloat16, the step is
timed with the pairs asked for and with about as many as fit: the memory of the first says how many
these are, and a tenth less is tried where it was too much. MFU is the share of the data sheet's
peak. The plan is what XLA's compiler says without running anything, its time a lower bound.
"""

import argparse
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from objectives import embeddings, measure, torch_loss

from otter_jax import objectives, sharding
from otter_jax.commands.plan import GIB, Plan, count_flops, plan, set_keys
from otter_jax.preset_files import read_preset
from otter_jax.training import shapes
from otter_jax.training.costs import StepCosts, peak_flops
from otter_jax.training.costs import measure as measure_costs
from otter_jax.training.topologies import GPUS, parse_topology

SMALL = ("model.image.name=resnet18", "data.image_size=32", "model.text.overrides.hidden_size=64",
         "model.text.overrides.num_hidden_layers=1", "model.text.overrides.vocab_size=100",
         "model.text.overrides.intermediate_size=64",
         "model.text.overrides.num_attention_heads=2", "model.embed_dim=64")  # fmt: skip
HEADER = ("dtype", "pairs", "ms a step", "pairs/s", "MFU", "GiB", "plan: ms, limited by", "GiB")
ROUND = 64  # The largest batch is a multiple of it.


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="otter_rn50", help="a preset's name")
    parser.add_argument("--pairs", type=int, default=512, help="pairs of a batch")
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed")
    parser.add_argument("--loss", type=int, default=32768, help="pairs of the loss alone")
    parser.add_argument("--dry-run", action="store_true", help="everything, but small")
    arguments = parser.parse_args()
    if arguments.dry_run:
        arguments.pairs, arguments.steps, arguments.loss = 8, 1, 512
    kind = jax.devices()[0].device_kind
    print(f"{arguments.config} on one {kind}, jax {jax.__version__}\n")
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    for dtype in ("float32", "bfloat16"):
        config = read_preset(arguments.config)
        keys = [f"model.dtype={dtype}", f"batch_size={arguments.pairs}"]
        set_keys(
            config, [f"--config.{key}" for key in (*keys, *SMALL[: len(SMALL) * arguments.dry_run])]
        )
        for row in rows(config, arguments.steps):
            print(f"| {' | '.join(row)} |", flush=True)
    print(f"\nOTTER's loss of {arguments.loss:,} pairs, value and gradient")
    for name, seconds in measure(losses(arguments.loss), repeats=3).items():
        print(f"{name:12} {1e3 * seconds:10,.1f} ms", flush=True)


def rows(config: ConfigDict, steps: int) -> Iterator[list[str]]:
    """Yield the table's rows of one type: of the batch asked for, and of about the largest."""
    costs, seconds = run(config, steps)
    yield row(config, costs, seconds)
    if costs.device is None:
        return
    a_pair = (costs.total - costs.state) / config.batch_size
    largest = config.copy_and_resolve_references()
    largest.batch_size = int(0.95 * (costs.device - costs.state) / a_pair)
    while largest.batch_size > config.batch_size:
        largest.batch_size -= largest.batch_size % ROUND
        try:
            costs, seconds = run(largest, steps)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            largest.batch_size = int(0.9 * largest.batch_size)
            continue
        yield row(largest, costs, seconds)
        return


def run(config: ConfigDict, steps: int) -> tuple[StepCosts, float]:
    """Return what a step costs, and its seconds in the mean of some, but for the first."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    step, state, batch = shapes.describe_step(config, mesh)
    lowered = step.lower(state, batch)
    costs = measure_costs(lowered, lowered, state, config.model.dtype)
    state, batch = filled(state), filled(batch)
    state, metrics = jax.block_until_ready(step(state, batch))
    start = time.perf_counter()
    for _ in range(steps):
        state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    return costs, (time.perf_counter() - start) / steps


def filled(tree: object) -> object:
    """Return arrays for shapes: small random numbers, and ones where there are no fractions."""

    def fill(shape: jax.ShapeDtypeStruct) -> jax.Array:
        if jnp.issubdtype(shape.dtype, jnp.floating):
            numbers = 0.02 * jax.random.normal(jax.random.key(0), shape.shape, shape.dtype)
        elif shape.dtype == jnp.uint8:
            numbers = jax.random.bits(jax.random.key(0), shape.shape, shape.dtype)
        else:
            numbers = jnp.ones(shape.shape, shape.dtype)
        return jax.device_put(numbers, shape.sharding)

    return jax.tree.map(fill, tree)


def row(config: ConfigDict, costs: StepCosts, seconds: float) -> list[str]:
    """Return a line of the first table."""
    kind = jax.devices()[0].device_kind
    flops, peak = count_flops(config), peak_flops(kind, config.model.dtype)
    expected = planned(config, kind, flops)
    return [
        config.model.dtype,
        f"{config.batch_size:,}",
        f"{1e3 * seconds:,.1f}",
        f"{config.batch_size / seconds:,.0f}",
        "-" if peak is None else f"{flops / seconds / peak:.2f}",
        f"{costs.total / GIB:.1f}",
        "-" if expected is None else f"{1e3 * expected.step_seconds:,.1f}, {expected.limit}",
        "-" if expected is None else f"{expected.memory / GIB:.1f}",
    ]


def planned(config: ConfigDict, kind: str, flops: float) -> Plan | None:
    """Return the plan of a step for one GPU of a kind, where that is known."""
    names = [name for name, gpu in GPUS.items() if gpu.chip.kind in kind]
    return plan(config, parse_topology(f"{names[-1]}:1x1"), flops) if names else None


def losses(size: int, width: int = 768) -> dict[str, object]:
    """Return OTTER's loss in this package's form for so many pairs, and in PyTorch's."""
    method = objectives.make_method("otter")
    scales = objectives.LogScales(jnp.float32(3.9), jnp.float32(3.9))
    student, teacher = (embeddings(size, width, seed) for seed in (0, 1))
    pairs = [objectives.Embeddings(*map(jnp.asarray, each)) for each in (student, teacher)]
    mesh = sharding.make_mesh(devices=jax.devices()[:1])

    def loss(*arguments: object) -> jax.Array:
        return objectives.total_loss(method, *arguments, mesh)[0]

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 2)))
    ours = {"otter_jax": lambda: jax.block_until_ready(gradient(*pairs, scales))}
    return ours | torch_loss(student, teacher)


if __name__ == "__main__":
    main()
