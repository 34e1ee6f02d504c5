"""Rate of a frozen image tower's features with reading, against the tower alone.

    pip install -e ".[quickstart]"
    python benchmarks/frozen_features.py [--images=512] [--rounds=3]

The quickstart's images and tower. "tower" gets images that are decoded already, "reading" decodes
and resizes them and does nothing else, "both" is what a run does where it computes features once.
The three take turns, and the fastest round of each counts. Where reading takes cores that the tower
could use, as on a laptop, both together cannot be as fast as the tower alone: "at most" is what is
left if no core is ever idle.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import otter_jax
from otter_jax.data.sources import open_source
from otter_jax.embedding.encoder import Encoder
from otter_jax.embedding.image_collections import from_source, read_images


def make_runs(model: Encoder, count: int) -> dict[str, Callable[[], object]]:
    """Return what is timed, by name."""
    source = open_source("open_clipart")
    collection = from_source(source, [str(number) for number in range(count)])
    pixels = list(read_images(collection, model, {}))
    return {
        "tower": lambda: model.image_features(pixels),
        "reading": lambda: list(read_images(collection, model, {})),
        "both": lambda: model.image_features(read_images(collection, model, {})),
    }


def fastest(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the seconds of the fastest run of each, taking turns."""
    seconds = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    model = otter_jax.load("quickstart")
    model.image_features([np.zeros((model.image_size, model.image_size, 3), np.uint8)])  # Compiles.
    seconds = fastest(make_runs(model, arguments.images), arguments.rounds)
    for name, value in seconds.items():
        print(f"{name:8} {arguments.images / value:8.0f} images a second")
    tower, reading, both = seconds.values()
    print(f"both / tower {tower / both:.2f}, at most {tower / (tower + reading):.2f}")


if __name__ == "__main__":
    main()
