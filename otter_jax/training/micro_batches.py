"""Gradients of a loss over a whole batch whose towers run on a part of it at a time.

A contrastive loss needs the embeddings of all pairs at once, but not the activations behind them:
the embeddings are computed part by part and kept, the loss and its gradient with respect to them
once, and each part runs again for its share of the parameters' gradient (Gao et al., "Scaling Deep
Contrastive Learning Batch Size under Memory Limited Setup", 2021). The numbers are those of the
whole batch where the towers treat every row alone. Batch norm does not: its statistics are those of
a part, or the running ones where they are kept.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Arrays = Any  # A pytree of arrays.
# (params, batch_stats, rows of the batch) -> (outputs of these rows, batch_stats afterwards)
Forward = Callable[[Arrays, Arrays, Arrays], tuple[Arrays, Arrays]]
# (outputs of the whole batch, params) -> (loss, whatever else)
LossOfOutputs = Callable[[Arrays, Arrays], tuple[jax.Array, Any]]


def split_parts(rows: Arrays, num_parts: int, mesh: Mesh) -> Arrays:
    """Cut [N, ...] into [parts, N / parts, ...]; each device has rows of its own in every part."""
    place = NamedSharding(mesh, PartitionSpec(None, mesh.axis_names))

    def split(x: jax.Array) -> jax.Array:
        parts = x.reshape(-1, num_parts, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(parts, place)

    return jax.tree.map(split, rows)


def join_parts(parts: Arrays) -> Arrays:
    """Return the inverse of `split_parts`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), parts)


def gradients_in_parts(
    forward: Forward,
    loss: LossOfOutputs,
    params: Arrays,
    batch_stats: Arrays,
    batch: Arrays,
    *,
    num_parts: int,
    mesh: Mesh,
) -> tuple[jax.Array, Any, Arrays, Arrays]:
    """Return the loss of a batch, what else it gives, batch statistics afterwards, gradients.

    Args:
        forward: what is run on a part; it must be the same function of its arguments each time,
            also in what it draws at random.
        loss: of all outputs; `params` are those that enter it by themselves, such as scales.
        params: to be differentiated by.
        batch_stats: batch norm's running statistics.
        batch: a pytree of arrays with N rows each.
        num_parts: in how many parts the rows go forward; must divide N.
        mesh: over whose axis `data` the rows are split.
    """
    parts = split_parts(batch, num_parts, mesh)

    def run(stats: Arrays, part: Arrays) -> tuple[Arrays, Arrays]:
        outputs, stats = forward(params, stats, part)
        return stats, outputs

    after, outputs = jax.lax.scan(run, batch_stats, parts)
    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (value, others), (to_outputs, gradients) = gradient(join_parts(outputs), params)

    def run_again(total: Arrays, part: tuple[Arrays, Arrays]) -> tuple[Arrays, None]:
        rows, to_rows = part
        _, pull = jax.vjp(lambda params: forward(params, batch_stats, rows)[0], params)
        return jax.tree.map(jnp.add, total, pull(to_rows)[0]), None

    to_parts = split_parts(to_outputs, num_parts, mesh)
    gradients, _ = jax.lax.scan(run_again, gradients, (parts, to_parts))
    return value, others, after, gradients
