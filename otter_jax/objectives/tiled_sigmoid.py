"""The sigmoid loss without any N x N array: every tile stands for itself."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from otter_jax.objectives import tiles
from otter_jax.objectives.contrastive import Embeddings, sigmoid_losses, similarity
from otter_jax.objectives.tiles import Rows, Tiling, is_given


def sigmoid_cross_entropy(
    tile: int,
    mesh: Mesh | None,
    student: Embeddings,
    weights: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
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
    """
    num_pairs = len(student.image)

    def rows_of_device(
        tiling: Tiling, student: Embeddings, weights: jax.Array, scale: jax.Array, bias: jax.Array
    ) -> jax.Array:
        texts, columns = (tiles.gather(x, tiling.axis) for x in (student.text, weights))

        @jax.checkpoint
        def step(total: jax.Array, rows: Rows, inputs: tuple) -> tuple[jax.Array, None]:
            image, weights = inputs
            logits = scale * similarity(image, texts) + bias
            losses = sigmoid_losses(logits, is_given(rows, logits))
            losses *= (weights[:, None] + columns) / 2
            return total + jnp.sum(jnp.where(rows.valid[:, None], losses, 0.0)), None

        inputs = student.image, weights
        return tiles.scan(tiling, step, jnp.zeros((1,), scale.dtype), inputs)[0]

    if not tiles.is_split(mesh):
        tiling = tiles.make_tiling(num_pairs, tile)
        return rows_of_device(tiling, student, weights, scale, bias)[0] / num_pairs
    axes = tiles.batch_axes(mesh)
    tiling = tiles.make_tiling(num_pairs, tile, axes, tiles.count_devices(mesh))
    split, whole = PartitionSpec(axes), PartitionSpec()
    sums = jax.shard_map(
        functools.partial(rows_of_device, tiling),
        mesh=mesh,
        in_specs=(split, split, whole, whole),
        out_specs=split,
        check_vma=False,
    )(student, weights, scale, bias)
    return jnp.sum(sums) / num_pairs
