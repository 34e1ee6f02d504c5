"""Blocks of a tower one after another, and equal ones as one loop, which compiles once for all.

A compiler's time goes with the size of the program, and the blocks of a transformer, or of a stage
of a ResNet, are the same program over and over. The numbers are the same both ways, and so are the
tower's parameters: they are put side by side inside of the step.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from otter_jax.models import layers

# (block, [B, ...], dropout key or None) -> [B, ...]
Run = Callable[[nnx.Module, jax.Array, jax.Array | None], jax.Array]


def run_in_turn(
    run: Run,
    blocks: Sequence[nnx.Module],
    x: jax.Array,
    keys: Sequence[jax.Array | None] | None = None,
    *,
    remat: bool = False,
    scan: bool = False,
) -> jax.Array:
    """Pass an array through blocks, each of which gives what the next one takes.

    Args:
        run: what is done with one block; it may change the block's batch statistics.
        blocks: in order.
        x: what the first takes.
        keys: one a block, for `run`; none for blocks without anything random.
        remat: compute what is inside of a block again for the gradient instead of keeping it.
        scan: run neighbours that are equal, but for the numbers in their arrays, as one loop.

    Returns:
        What the last block gives.
    """
    keys = [None] * len(blocks) if keys is None else keys
    run = nnx.remat(run) if remat else run
    if not scan or layers.is_portable():
        for block, key in zip(blocks, keys, strict=True):
            x = run(block, x, key)
        return x
    pairs = zip(blocks, keys, strict=True)
    for _, group in itertools.groupby(pairs, key=lambda pair: _form(pair[0])):
        x = _run_equal(run, *zip(*group, strict=True), x)
    return x


def _form(block: nnx.Module) -> tuple[nnx.GraphDef, Any]:
    """Return what two blocks share that run as one program."""
    definition, state = nnx.split(block)
    return definition, jax.tree.map(lambda array: (array.shape, array.dtype), state)


def _run_equal(
    run: Run, blocks: Sequence[nnx.Module], keys: Sequence[jax.Array | None], x: jax.Array
) -> jax.Array:
    """Do the same with blocks of one form."""
    if len(blocks) == 1:
        return run(blocks[0], x, keys[0])
    definition = nnx.graphdef(blocks[0])
    states = _side_by_side([nnx.state(block) for block in blocks])

    def body(x: jax.Array, of_block: tuple[nnx.State, jax.Array | None]) -> tuple[Any, nnx.State]:
        state, key = of_block
        block = nnx.merge(definition, state)
        return run(block, x, key), nnx.state(block, nnx.BatchStat)

    x, statistics = jax.lax.scan(body, x, (states, _side_by_side(keys)))
    for number, block in enumerate(blocks):
        nnx.update(block, jax.tree.map(lambda array: array[number], statistics))  # noqa: B023
    return x


def _side_by_side(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *trees)
