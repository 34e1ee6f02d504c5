"""Times a train step of DeCLIP against one of CLIP with the same towers and batch, in one run.

    python benchmarks/declip_step.py --config=declip_rn50 --batch_size=16

The two take turns, so that whatever else the machine does hits both; the table shows the best time
of each. Images and tokens are random; making the views is the input pipeline's work, not the
step's. Two image views and two text views cost twice one of each; the rest is the heads.
"""

import argparse
import importlib
import time
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from otter_jax import encoder, objectives, sharding, step, train
from otter_jax.data.masking import num_masked_slots
from otter_jax.models import dual_encoder

PARTS = {
    "CLIP": {"ss": False, "mvs": False, "nns": False},
    "+ several views": {"ss": False, "mvs": True, "nns": False},
    "+ self-supervision": {"ss": True, "mvs": True, "nns": False},
    "+ nearest neighbours": {"ss": True, "mvs": True, "nns": True},
}


def random_batch(config: ConfigDict, vocabulary_size: int) -> dict[str, np.ndarray]:
    """All views of some pairs; captions of 12 tokens, as they are long in the median."""
    rng = np.random.default_rng(0)
    rows, size, length = config.batch_size, config.data.image_size, config.data.max_tokens
    image = rng.integers(0, 256, (2, rows, size, size, 3), dtype=np.uint8)
    tokens = rng.integers(1000, vocabulary_size - 3, (2, rows, length)).astype(np.int32)
    tokens[:, :, -1] = vocabulary_size - 2  # Ends the text, where the tower looks for an end.
    mask = np.broadcast_to(np.arange(length) < 12, (rows, length))
    slots = num_masked_slots(length)
    labels = np.where(np.arange(slots) < 2, tokens[0, :, :slots], -100).astype(np.int32)
    return {
        "image": image[0],
        "image2": image[1],
        "tokens": tokens[0],
        "token_mask": mask,
        "tokens2": tokens[1],
        "token_mask2": mask,
        "masked_tokens": tokens[0],
        "masked_positions": np.tile(np.arange(slots, dtype=np.int32), (rows, 1)),
        "masked_labels": labels,
    }


def views_used(config: ConfigDict, options: objectives.Options) -> set[str]:
    """Names of the arrays that the loader would make for these options."""
    views = train.views_of(config, options)
    names = {"image", "tokens", "token_mask"}
    names |= {"image2"} if views.images > 1 else set()
    names |= {"tokens2", "token_mask2"} if views.second_text else set()
    masked = {"masked_tokens", "masked_positions", "masked_labels"}
    return names | masked if views.masked_text else names


def make_run(config: ConfigDict, parts: dict[str, bool]) -> Callable[[], None]:
    """A function that takes one step; compiled and run once already."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.objective.update(parts)
    options, mesh = objectives.make_options(**config.objective), sharding.make_mesh()
    module = encoder.build_module(config)
    vocabulary_size = module.text.config.vocab_size
    model, variables = dual_encoder.split(module)
    schedule = step.make_schedule(config, config.total_steps)
    optimizer = step.make_optimizer(config, schedule)
    train_step = step.make_train_step(model, options, optimizer, schedule, config, mesh)
    memory = train.make_memory(options, config.model.embed_dim)
    state = step.initial_state(
        variables, optimizer, uses_teacher=options.uses_teacher, memory=memory
    )
    everything, used = random_batch(config, vocabulary_size), views_used(config, options)
    batch = sharding.put_batch(mesh, {k: v for k, v in everything.items() if k in used})

    def run() -> None:
        nonlocal state
        state, metrics = train_step(state, batch)
        jax.block_until_ready(metrics)

    run()
    return run


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="declip_rn50", help="a preset of configs/")
    parser.add_argument("--batch_size", type=int, default=16, help="pairs of a batch")
    parser.add_argument("--repeats", type=int, default=4, help="steps of each kind")
    flags = parser.parse_args()
    config = importlib.import_module(f"configs.{flags.config}").get_config()
    config.batch_size, config.total_steps = flags.batch_size, 10_000
    runs = {name: make_run(config, parts) for name, parts in PARTS.items()}
    seconds = {name: [] for name in runs}
    for _ in range(flags.repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    print(f"{flags.config}, {flags.batch_size} pairs")
    for name, times in seconds.items():
        print(f"{name:22} {min(times):7.2f} s  {min(times) / min(seconds['CLIP']):5.2f}")


if __name__ == "__main__":
    main()
