"""A program that trains as `otter-jax train` does, but that one phase of the run takes long.

python slow_phases.py PHASE CONFIG.json WORKDIR; prints "in PHASE" when the phase has begun.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from otter_jax import config as config_lib
from otter_jax import train
from otter_jax.commands.command_line import ending_in_one_line
from otter_jax.embedding import trust
from otter_jax.embedding.features import FeatureStore
from otter_jax.pictures import gallery
from otter_jax.runs.interruption import Interruption
from otter_jax.training import costs
from otter_jax.training.parts import Parts


def slow_down(phase: str) -> None:
    """Have one phase take a minute, where possible in many small pieces."""
    if phase == "compile":  # Within XLA, which is left alone.
        program = long_program()
        replace(costs, "measure", lambda do: before(program.compile, do))
    elif phase == "features":
        replace(FeatureStore, "run_tower", lambda do: between_batches)
    elif phase == "trust":
        trust.BLOCK = 4
        replace(trust, "nearest_rows", lambda do: before(lambda: time.sleep(2), do))
    elif phase == "evaluation":  # Far from any place to stop.
        replace(Parts, "evaluate", lambda do: before(lambda: time.sleep(60), do))
    elif phase == "pictures":
        replace(gallery, "draw_set", lambda do: before(lambda: time.sleep(60), do))


def replace(owner: Any, name: str, wrap: Callable[[Callable], Callable]) -> None:
    """Put something around a function."""
    setattr(owner, name, wrap(getattr(owner, name)))


def before(wait: Callable[[], object], function: Callable) -> Callable:
    """Return a function that says where it is, and waits, before it does its work."""

    def wrapped(*arguments: Any, **options: Any) -> Any:
        announce()
        wait()
        return function(*arguments, **options)

    return wrapped


def announce() -> None:
    print(f"in {PHASE}", flush=True)


def long_program() -> jax.stages.Lowered:
    """Return what takes XLA half a minute to compile, even without passes that cost time."""
    new = os.getpid()  # Nobody has compiled it before.

    def chain(x: jax.Array) -> jax.Array:
        for number in range(2400):
            x = jnp.sin(x @ x) + jnp.sort(x, axis=0)[::-1] * (number + new)
        return x

    return jax.jit(chain).lower(jnp.ones((32, 32)))


RUN_TOWER = FeatureStore.run_tower


def between_batches(self: FeatureStore, encoder: Any, kind: str, rows: Iterator) -> Iterator:
    """Yield the features of each batch, and wait after the first ones."""
    for number, features in enumerate(RUN_TOWER(self, encoder, kind, rows)):
        yield features
        if number == 1:
            announce()
        time.sleep(2 if number else 0)


if __name__ == "__main__":
    PHASE, config, workdir = sys.argv[1:]
    slow_down(PHASE)
    Interruption.may_end_process = True
    with ending_in_one_line():
        train.train(config_lib.load_config(Path(config)), Path(workdir))
