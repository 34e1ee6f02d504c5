"""The sigmoid loss without any N x N array: every tile stands for itself."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from otter_jax.objectives import tiles
from otter_jax.objectives.contrastive import Embeddings, sigmoid_losses, similarity
from otter_jax.objectives.known_positives import Known, Relation, relate
from otter_jax.objectives.tiles import Rows, Tiling, is_given


def known_sigmoid_losses(logits: jax.Array, relation: Relation) -> jax.Array:
    """Return `sigmoid_losses`, [n, N], 0 for what is hidden."""
    losses = sigmoid_losses(logits, relation.given)
    return losses if relation.hidden is None else jnp.where(relation.hidden, 0.0, losses)


def sigmoid_cross_entropy(
    tile: int,
    mesh: Mesh | None,
    student: Embeddings,
    weights: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    mode: str | None = None,
    known: Known | None = None,
) -> jax.Array:
    """Return the mean over images of the sigmoid loss (SigLIP, eq. 1).

    It has no normaliser to wait for, so every tile stands for itself, and differentiating the one
    sweep is all that backward needs.

    Args:
        tile: most rows in a tile.
        mesh: as in `cross_entropies`.
        student: [N, d] unit rows.
        weights: [N] of the pairs; image i with text j has the mean of w_i and w_j.
        scale: scalar factor of the similarities.
        bias: scalar added to them.
        mode: what becomes of known positives; None where none are known.
        known: their groups, [N] each.
    """
    num_pairs = len(student.image)
    if not tiles.is_split(mesh):
        tiling = tiles.make_tiling(num_pairs, tile)
        return _sum_of_rows(mode, tiling, student, weights, known, scale, bias)[0] / num_pairs
    axes = tiles.batch_axes(mesh)
    tiling = tiles.make_tiling(num_pairs, tile, axes, tiles.count_devices(mesh))
    split, whole = PartitionSpec(axes), PartitionSpec()
    sums = jax.shard_map(
        functools.partial(_sum_of_rows, mode, tiling),
        mesh=mesh,
        in_specs=(split, split, split, whole, whole),
        out_specs=split,
        check_vma=False,
    )(student, weights, known, scale, bias)
    return jnp.sum(sums) / num_pairs


def _sum_of_rows(
    mode: str | None,
    tiling: Tiling,
    student: Embeddings,
    weights: jax.Array,
    known: Known | None,
    scale: jax.Array,
    bias: jax.Array,
) -> jax.Array:
    """Return [1] the sum over this device's rows and all columns; works inside `shard_map`."""
    texts, columns, groups = jax.tree.map(
        lambda x: tiles.gather(x, tiling.axis), (student.text, weights, known)
    )
    numbers = None if groups is None else groups.number

    @jax.checkpoint
    def step(total: jax.Array, rows: Rows, inputs: tuple) -> tuple[jax.Array, None]:
        image, weights, own = inputs
        logits = scale * similarity(image, texts) + bias
        losses = known_sigmoid_losses(logits, relate(mode, own, numbers, is_given(rows, logits)))
        losses *= (weights[:, None] + columns) / 2
        return total + jnp.sum(jnp.where(rows.valid[:, None], losses, 0.0)), None

    inputs = student.image, weights, known
    return tiles.scan(tiling, step, jnp.zeros((1,), scale.dtype), inputs)[0]
