"""Batches in the shortest of a few lengths of texts, the same in all processes.

Captions are padded to `data.max_tokens`, though most are a fraction of that, and the time of a text
tower goes with the length. What is cut is padding in all texts of a batch, so that its loss stays
as it was to rounding. Each length is a shape, for which the step is compiled; so they are few.
"""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from otter_jax import sharding
from otter_jax.data.batches import Batch
from otter_jax.data.texts import fitting_length, used_length

MASKS = ("token_mask", "token_mask2")
PADDED = (*MASKS, "tokens", "tokens2", "masked_tokens")  # All [rows, length].


def in_buckets(stream: Iterator[Batch], lengths: Sequence[int], mesh: Mesh) -> Iterator[Batch]:
    """Pass batches on with their texts in the first of the lengths that holds the longest of them.

    How long a batch is follows from its captions, so from seed and step alone, also where each
    process has a part of it: they agree on the longest text while the step before is taken. So all
    must ask for batches at the same time, in the thread that dispatches steps.

    Args:
        stream: this process's rows of batches.
        lengths: ascending; none: texts keep their length.
        mesh: of the run.
    """
    if jax.process_count() == 1:
        for batch in stream:
            yield cut(batch, lengths, longest_text(batch))
        return
    waiting: tuple[Batch, jax.Array] | None = None
    for batch in stream:
        # Asked for before the step of the batch that is waiting, and behind the one before that,
        # so that no device waits for the answer.
        largest = _largest(mesh, longest_text(batch))
        if waiting is not None:
            yield cut(waiting[0], lengths, int(waiting[1]))
        waiting = batch, largest


def longest_text(batch: Batch) -> int:
    """Return how many tokens the longest text of a batch has, in all of its views."""
    return max((used_length(batch[name]) for name in MASKS if name in batch), default=0)


def cut(batch: Batch, lengths: Sequence[int], used: int) -> Batch:
    """Return a batch whose texts are cut to the first of the lengths that holds `used` tokens."""
    return {
        name: rows[:, : fitting_length(used, lengths, rows.shape[1])] if name in PADDED else rows
        for name, rows in batch.items()
    }


def _largest(mesh: Mesh, number: int) -> jax.Array:
    """Return the largest of all processes' numbers, without waiting for it."""
    numbers = np.full(len(mesh.local_devices), number, np.int32)
    return _maximum(mesh)(sharding.put_batch(mesh, {"numbers": numbers})["numbers"])


@functools.cache
def _maximum(mesh: Mesh) -> jax.stages.Wrapped:
    return jax.jit(jnp.max, out_shardings=sharding.replicated(mesh))
