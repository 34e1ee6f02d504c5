"""The losses that see a pair in several views: DeCLIP's and SLIP's.

    clip       contrast of every image view with every text view        both
    neighbor   contrast with the nearest neighbours of the texts        declip, nns
    simsiam    an image view predicts the other one                     declip, ss
    mlm        masked tokens are predicted                              declip, ss
    simclr     NT-Xent of two further image views                       slip

A contrast is the mean of its two directions here, where OTTER has their sum.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jax.sharding import Mesh, PartitionSpec

from otter_jax.objectives import self_supervision, tiles
from otter_jax.objectives.contrastive import (
    Embeddings,
    normalize,
    scale_from_log,
    similarity,
)
from otter_jax.objectives.losses import (
    LogScales,
    Metrics,
    as_constant,
    check_embeddings,
    check_trust,
    cross_entropy_loss,
    tile_rows,
)
from otter_jax.objectives.methods import Method
from otter_jax.objectives.nearest_neighbor import Queue, enqueue, nearest


class ViewOutputs(NamedTuple):
    """What the towers and heads make of one batch; None for what the method does not use.

    Embeddings are not normalised. Row i of all arrays belongs to one pair.
    """

    image: jax.Array  # [N, d]
    text: jax.Array  # [N, d]; of the masked tokens where tokens are masked.
    image2: jax.Array | None = None  # [N, d], with mvs; SimSiam needs no more of it than p2, z2.
    text2: jax.Array | None = None  # [N, d], with mvs.
    p1: jax.Array | None = None  # [N, k] SimSiam's predictions from the first image view, with ss,
    p2: jax.Array | None = None  # and from the second one.
    z1: jax.Array | None = None  # [N, k] projections, which the predictions should match.
    z2: jax.Array | None = None
    mlm_losses: jax.Array | None = None  # [N, ...] of `token_losses`, with ss.
    mlm_labels: jax.Array | None = None  # [N, ...] integers, `IGNORED` where nothing is masked.
    simclr1: jax.Array | None = None  # [N, k] SLIP's projections of two further image views.
    simclr2: jax.Array | None = None


def check_queue(method: Method, batch_size: int, devices: int = 1) -> None:
    """Refuse a queue that does not hold a batch, or cannot be split over the devices.

    Raises:
        ValueError: naming `config.objective.queue_size`.
    """
    if not method.uses_queue:
        return
    found = f"config.objective.queue_size={method.queue_size}"
    if method.queue_size < batch_size:
        raise ValueError(f"{found}: it must be at least config.batch_size={batch_size}")
    if method.queue_size % devices:
        raise ValueError(f"{found} does not divide over {devices} devices")


def declip_loss(
    method: Method,
    views: ViewOutputs,
    queue: Queue | None,
    log_scales: LogScales,
    mesh: Mesh | None = None,
    teacher: Embeddings | None = None,
    trust: jax.Array | None = None,
) -> tuple[jax.Array, Metrics, Queue | None]:
    """Return the weighted sum of the losses that are on.

    Args:
        method: of `declip` or `slip`.
        views: embeddings, projections and losses of one batch.
        queue: texts of the batches before; None where the method uses none.
        log_scales: learnable log-scales; the second one serves otter's targets alone.
        mesh: over whose axis `data` the rows of the batch and of the queue are split.
        teacher: [N, d] embeddings with `targets="otter"`, constants: of one view of each image and
            text, for the targets of all pairs of views. None else.
        trust: as in `total_loss`; for the losses where images meet texts, the first two.

    Returns:
        The loss; metrics without gradient: `loss_<name>` of each (weighted, with the loss as sum),
        `temperature`, and what `total_loss` says about soft targets, of the first pair of views;
        and the queue with this batch's texts, the second view's before the first's.

    Raises:
        ValueError: views that are missing, shapes that do not agree or do not divide over the mesh,
            or values that are not finite where they are known before compilation.
    """
    _check(method, views, queue, teacher, mesh)
    images, texts, teacher = _unit_rows(method, views, teacher)
    check_trust(method, trust, len(views.image))
    if trust is not None:
        trust = as_constant(trust, images[0].dtype, mesh)
    log_scales = [jnp.asarray(x, images[0].dtype) for x in log_scales[:2]]
    scales = [scale_from_log(x, *method.scale_bounds) for x in log_scales]
    loss, metrics = _views_loss(method, images, texts, teacher, scales, mesh, trust)
    losses = {"loss_clip": loss}
    if method.uses_queue:
        loss = _neighbor_loss(method, images, texts, queue, scales[0], mesh, trust)
        losses["loss_neighbor"] = method.neighbor_weight * loss
        queue = functools.reduce(enqueue, reversed(texts), queue)
    if method.uses_simsiam:
        loss = self_supervision.simsiam_loss(views.p1, views.p2, views.z1, views.z2)
        losses["loss_simsiam"] = method.simsiam_weight * loss
    if method.uses_masked_language:
        loss = self_supervision.masked_language_loss(views.mlm_losses, views.mlm_labels)
        losses["loss_mlm"] = method.mlm_weight * loss
    if method.uses_simclr:
        loss = self_supervision.ntxent_loss(views.simclr1, views.simclr2)
        losses["loss_simclr"] = method.simclr_weight * loss
    return sum(losses.values()), jax.lax.stop_gradient(metrics | losses), queue


def _check(
    method: Method,
    views: ViewOutputs,
    queue: Queue | None,
    teacher: Embeddings | None,
    mesh: Mesh | None,
) -> None:
    """Refuse what is missing, then what is there and wrong."""
    if not method.uses_views:
        raise ValueError(f"objective {method.name!r} is computed by total_loss, not declip_loss")
    needed = {
        ("image2", "text2"): method.uses_two_text_views,
        ("p1", "p2", "z1", "z2"): method.uses_simsiam,
        ("mlm_losses", "mlm_labels"): method.uses_masked_language,
        ("simclr1", "simclr2"): method.uses_simclr,
    }
    for name in itertools.chain.from_iterable(names for names, used in needed.items() if used):
        if getattr(views, name) is None:
            raise ValueError(f"objective {method.name!r} needs views.{name}")
    if method.uses_queue and queue is None:
        raise ValueError(f"objective {method.name!r} needs a queue")
    check_embeddings(method, Embeddings(views.image, views.text), teacher, mesh)
    if method.uses_two_text_views:
        check_embeddings(method, Embeddings(views.image2, views.text2), teacher, mesh)


def _unit_rows(
    method: Method, views: ViewOutputs, teacher: Embeddings | None
) -> tuple[list[jax.Array], list[jax.Array], Embeddings | None]:
    """Return the contrasted views of images and texts, and the teacher, all of one type."""
    images, texts = [views.image], [views.text]
    if method.uses_two_text_views:
        images, texts = [*images, views.image2], [*texts, views.text2]
    dtype = jnp.result_type(*images, *texts, *(teacher or ()))
    images, texts = ([normalize(x.astype(dtype)) for x in rows] for rows in (images, texts))
    if teacher is not None:
        constants = jax.lax.stop_gradient(teacher)
        teacher = Embeddings(*(normalize(x.astype(dtype)) for x in constants))
    return images, texts, teacher


def _views_loss(
    method: Method,
    images: list[jax.Array],
    texts: list[jax.Array],
    teacher: Embeddings | None,
    scales: list[jax.Array],
    mesh: Mesh | None,
    trust: jax.Array | None,
) -> tuple[jax.Array, Metrics]:
    """Return every view of the images against every view of the texts, weighted."""
    scales = jnp.stack(scales)
    pairs = [Embeddings(*pair) for pair in itertools.product(images, texts)]
    sums, metrics = zip(
        *(cross_entropy_loss(method, pair, teacher, scales, mesh, trust) for pair in pairs),
        strict=True,
    )
    first, *others = (each / 2 for each in sums)  # The mean of the two directions.
    if method.multi_view_weight is None:
        loss = method.clip_weight * (first + sum(others)) / len(pairs)
    else:
        loss = method.clip_weight * first + method.multi_view_weight * sum(others)
    return loss, {k: v for k, v in metrics[0].items() if not k.startswith("loss_")}


def _neighbor_loss(
    method: Method,
    images: list[jax.Array],
    texts: list[jax.Array],
    queue: Queue,
    scale: jax.Array,
    mesh: Mesh | None,
    trust: jax.Array | None,
) -> jax.Array:
    """Return every view of the images against the neighbours of every view of the texts, the mean.

    0 without gradient while the queue is empty.
    """
    tile = tile_rows(method, len(texts[0]), mesh)
    weights = method.weights(trust)
    losses = []
    for text in texts:
        neighbors = nearest(queue, text, mesh)[0].astype(text.dtype)
        for image in images:
            losses.append(row_cross_entropy(tile, mesh, image, neighbors, scale, weights))
            if method.symmetric_neighbors:
                losses.append(row_cross_entropy(tile, mesh, neighbors, image, scale, weights))
    return jnp.where(queue.filled > 0, sum(losses) / len(losses), 0.0)


def row_cross_entropy(
    tile: int | None,
    mesh: Mesh | None,
    queries: jax.Array,
    keys: jax.Array,
    scale: jax.Array,
    weights: jax.Array | float = 1.0,
) -> jax.Array:
    """Return InfoNCE in one direction: row i of `queries` should find row i of `keys`; the mean.

    A row needs no other row's normaliser, so differentiating one sweep over tiles is enough.

    Args:
        tile: most rows in a tile; None for the whole matrix at once.
        mesh: over whose axis `data` the rows are split; None for one device.
        queries: [N, d] unit rows.
        keys: [N, d] unit rows.
        scale: scalar factor of the cosines.
        weights: of the rows, [N] or one for all.
    """
    normalisers = _normalisers
    if tile is not None:
        normalisers = functools.partial(_tiled_normalisers, tile, mesh)
    matched = scale * jnp.sum(queries * keys, axis=1)
    return jnp.mean(weights * (normalisers(queries, keys, scale) - matched))


def _normalisers(queries: jax.Array, keys: jax.Array, scale: jax.Array) -> jax.Array:
    """Return [rows of queries] log of the sum over keys of exp(scale * cosine)."""
    return logsumexp(scale * similarity(queries, keys), axis=1)


def _tiled_normalisers(
    tile: int, mesh: Mesh | None, queries: jax.Array, keys: jax.Array, scale: jax.Array
) -> jax.Array:
    """Return the same, a block of rows at a time, for the gradient too."""
    axes = None if mesh is None else tiles.batch_axes(mesh)
    tiling = tiles.make_tiling(len(queries), tile, axes, tiles.count_devices(mesh))

    def rows_of_device(queries: jax.Array, keys: jax.Array, scale: jax.Array) -> jax.Array:
        @jax.checkpoint
        def step(carry: None, rows: tiles.Rows, queries: jax.Array) -> tuple[None, jax.Array]:
            del rows  # Those of the padding are cut off.
            return carry, _normalisers(queries, keys, scale)

        return tiles.scan(tiling, step, None, queries)[1]

    if mesh is not None:
        split, whole = PartitionSpec(axes), PartitionSpec()
        rows_of_device = jax.shard_map(
            rows_of_device,
            mesh=mesh,
            in_specs=(split, whole, whole),
            out_specs=split,
            check_vma=False,
        )
    return rows_of_device(queries, keys, scale)
