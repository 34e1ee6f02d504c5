"""The loss of one batch: which terms it has, and whether its matrices are whole or in tiles."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from otter_jax.objectives import contrastive, targets, tiled_cross_entropy, tiled_sigmoid, tiles
from otter_jax.objectives.contrastive import (
    Directions,
    Embeddings,
    Term,
    both_directions,
    cross_entropy,
    entropy,
    normalize,
    scale_from_log,
    weighted_mean,
)
from otter_jax.objectives.known_positives import (
    IGNORE,
    Known,
    Relation,
    is_same,
    number_groups,
    relate,
    smoothed,
)
from otter_jax.objectives.methods import Method, Sigmoid
from otter_jax.objectives.tiles import AXIS

DEFAULT_TILE = 1024
LARGEST_DENSE = 1024**2  # Elements of a matrix that one device has.
FEWEST_TILED = 512  # Rows of a matrix that one device has: half of the usual two features' width.
Metrics = dict[str, jax.Array]


class LogScales(NamedTuple):
    """Learnable scalars: logarithms of 1 / temperature, and the sigmoid loss's addend."""

    contrastive: jax.Array
    distillation: jax.Array
    bias: jax.Array | float = 0.0


def total_loss(
    method: Method,
    student: Embeddings,
    teacher: Embeddings | None,
    log_scales: LogScales,
    mesh: Mesh | None = None,
    trust: jax.Array | None = None,
    groups: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """Return the loss of one batch: alpha * InfoNCE + (1 - alpha) * KL(soft target || student).

    Without a teacher it is the cross-entropy to the method's own target. Both directions are
    summed. Pair i's own alpha or weight, where they are estimated, is that of image i over all
    texts and of text i over all images. docs/targets.md says where paper and released code differ.

    Args:
        method: what is computed, and its options.
        student: [N, d] embeddings, normalised here.
        teacher: the same from the teacher, constants; None where none is used.
        log_scales: learnable log-scales; the second one serves the distillation term alone.
        mesh: over whose axis `data` the rows are split; None for one device.
        trust: [N] in [0, 1], a constant: the probability that a pair's caption is right; with
            `method.uses_trust`, else None.
        groups: int [N, k], rows equal where pairs are known to match each other; with
            `method.known_positives`, else None.

    Returns:
        The loss, and metrics without gradient: `loss_contrastive` and `loss_distillation`
        (weighted, they add up to the loss), `temperature`, `target_entropy` in nats and
        `target_diagonal`, the mass that the soft target leaves on the given pairs (OTTER, Fig. 2).

    Raises:
        ValueError: a method of several views, fewer than two pairs, shapes that do not agree or do
            not divide over the mesh, a teacher or trust that is missing or not used; and values
            that are not finite, or trust outside [0, 1], where they are known before compilation.
    """
    if method.uses_views:
        raise ValueError(f"objective {method.name!r} is computed by declip_loss, not total_loss")
    check_embeddings(method, student, teacher, mesh)
    check_trust(method, trust, len(student.image))
    check_groups(method, groups, len(student.image))
    # One type, float32 or wider, for all that follows.
    everything = (*student, *(teacher or ()), *log_scales)
    dtype = jnp.promote_types(jnp.result_type(*everything), jnp.float32)
    student = Embeddings(*(normalize(x.astype(dtype)) for x in student))
    if teacher is not None:
        constants = map(jax.lax.stop_gradient, teacher)
        teacher = Embeddings(*(normalize(x.astype(dtype)) for x in constants))
    if trust is not None:
        trust = as_constant(trust, dtype, mesh)
    known = None if groups is None else known_groups(groups, dtype, mesh)
    log_scales = LogScales(*(jnp.asarray(x, dtype) for x in log_scales))
    if isinstance(method, Sigmoid):
        loss, metrics = _sigmoid_loss(method, student, log_scales, mesh, trust, known)
    else:
        scales = jnp.stack([scale_from_log(x, *method.scale_bounds) for x in log_scales[:2]])
        loss, metrics = cross_entropy_loss(method, student, teacher, scales, mesh, trust, known)
    return loss, jax.lax.stop_gradient(metrics)


def cross_entropy_loss(
    method: Method,
    student: Embeddings,
    teacher: Embeddings | None,
    scales: jax.Array,
    mesh: Mesh | None,
    trust: jax.Array | None,
    known: Known | None = None,
) -> tuple[jax.Array, Metrics]:
    """Return the method's terms, less the entropy of the soft target where it has its own.

    Args:
        method: as in `total_loss`.
        student: [N, d] unit rows.
        teacher: the same, constants; None where none is used.
        scales: [2] factor of the cosines in each term, of the embeddings' type; a single term has
            the first one.
        mesh: as in `total_loss`.
        trust: [N] of `as_constant`.
        known: groups of the pairs, with `method.known_positives`.
    """
    terms = method.terms(trust)
    compute = _in_tiles if tile_rows(method, len(student.image), mesh) else _whole
    loss, means = compute(method, terms, student, teacher, scales[: len(terms)], mesh, known)
    metrics = {
        "temperature": 1.0 / scales[0],
        "target_entropy": means.entropy / 2,
        "target_diagonal": means.diagonal / 2,
    }
    if len(terms) == 2:
        # KL(P || softmax) is the cross-entropy less P's own entropy, which has no gradient.
        hard, soft = means.cross_entropy
        loss -= means.weighted_entropy
        metrics |= {
            "loss_contrastive": hard,
            "loss_distillation": soft - means.weighted_entropy,
            "distillation_temperature": 1.0 / scales[1],
        }
    return loss, metrics


def tile_rows(method: Method, num_pairs: int, mesh: Mesh | None = None) -> int | None:
    """Return the rows of a tile, or None where the whole matrix is computed at once.

    Without a choice of the user it is tiled where a device's share of a matrix gets large, and is
    not smaller than the features of all pairs, which a device needs for tiles as well.
    """
    if method.tile is not None:
        return method.tile if method.tile < num_pairs else None
    devices = tiles.count_devices(mesh)
    rows = num_pairs // devices
    saves = rows * num_pairs > LARGEST_DENSE and rows > FEWEST_TILED
    return DEFAULT_TILE if saves else None


class _Means(NamedTuple):
    """What a loss consists of, means over the pairs, sums over both directions."""

    cross_entropy: list[jax.Array]  # Of each term, weighted.
    weighted_entropy: jax.Array  # Of the soft target in nats, weighted as the last term is.
    entropy: jax.Array
    diagonal: jax.Array  # Mass that the soft target leaves on the given pairs.


def _whole(
    method: Method,
    terms: tuple[Term, ...],
    student: Embeddings,
    teacher: Embeddings | None,
    scales: jax.Array,
    mesh: Mesh | None,
    known: Known | None,
) -> tuple[jax.Array, _Means]:
    """Return the weighted sum of cross-entropies, and what it consists of, from whole matrices."""
    del mesh  # The compiler splits the rows of whatever has them.
    soft = soft_targets(method, teacher, len(student.image), known)
    relation = None if known is None else _relate_all(method, known)
    # Identity targets are whole too: every method's dense loss is the same computation.
    cosines = both_directions(student, stop_gradient_keys=method.stop_gradient_keys)
    cross_entropies = []
    for term, scale in zip(terms, scales, strict=True):
        given, hidden = (None, None) if relation is None else (relation.target, relation.hidden)
        mixtures = [targets.mixed(each, term.identity, given) for each in soft]
        logits = [scale * each for each in cosines]
        rows = map(cross_entropy, logits, mixtures, [hidden] * len(logits))
        cross_entropies.append(sum(weighted_mean(term.weight, each) for each in rows))
    entropies, diagonals = _facts_of_rows(method, soft, scales.dtype, relation)
    means = _Means(
        cross_entropies,
        sum(weighted_mean(terms[-1].weight, rows) for rows in entropies),
        sum(map(jnp.mean, entropies)),
        sum(map(jnp.mean, diagonals)),
    )
    return sum(cross_entropies), means


def _relate_all(method: Method, known: Known) -> Relation:
    """Return what all pairs of a batch are to each other; the same in both directions."""
    own = jnp.eye(len(known.number), dtype=bool)
    return relate(method.known_positives, known, known.number, own)


def _facts_of_rows(
    method: Method, soft: Directions, dtype: jnp.dtype, relation: Relation | None = None
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Return entropy in nats and mass on the given pair, [N] or one for all, of both directions.

    A smoothed identity is the same in each row, so no more of it is made than the cross-entropy
    multiplies with. Taken from the matrix, these facts would have each device make all of it:
    nothing in an identity says over which devices its rows are split.
    """
    if relation is not None:
        masses = [jnp.sum(jnp.where(relation.given, each, 0.0), axis=1) for each in soft]
        return [entropy(each) for each in soft], masses
    if not isinstance(method.target, targets.Smoothed):
        return [entropy(each) for each in soft], [jnp.diagonal(each) for each in soft]
    target, num_pairs = method.target, len(soft.image)
    facts = target.entropy(num_pairs), target.on_diagonal
    return tuple([jnp.asarray(fact, dtype)] * len(soft) for fact in facts)


def soft_targets(
    method: Method, teacher: Embeddings | None, num_pairs: int, known: Known | None = None
) -> Directions:
    """Return the targets of both directions, [N, N] each, without gradient.

    Args:
        method: which target, and its parameters.
        teacher: embeddings with unit rows; None where the method uses no teacher.
        num_pairs: N.
        known: groups of the pairs, with `method.known_positives`.
    """
    if teacher is None and known is not None and isinstance(method.target, targets.Smoothed):
        same = is_same(known.number, known.number)
        relation, counts = _relate_all(method, known), known.count[:, None]
        dense = smoothed(method.target.smoothing, relation, same, counts)
        return Directions(dense, dense)
    if teacher is None:
        dense = method.target.dense(None, num_pairs)
        return Directions(dense, dense)
    similarity = targets.teacher_similarity(
        *teacher,
        **method.teacher_weights,
        remove_diagonal=method.remove_diagonal,
    )
    if known is not None and removes_known(method):
        others = is_same(known.number, known.number) & ~jnp.eye(num_pairs, dtype=bool)
        similarity -= targets.DIAGONAL_PENALTY * others
    # The text direction's similarity is the transpose of the image direction's.
    return Directions(*(method.target.dense(k, num_pairs) for k in (similarity, similarity.T)))


def _in_tiles(
    method: Method,
    terms: tuple[Term, ...],
    student: Embeddings,
    teacher: Embeddings | None,
    scales: jax.Array,
    mesh: Mesh | None,
    known: Known | None,
) -> tuple[jax.Array, _Means]:
    """Return the same, a block of rows at a time."""
    features = None
    if teacher is not None:
        removed = known.number if known is not None and removes_known(method) else None
        features = tiled_cross_entropy.TeacherFeatures(
            *targets.teacher_features(*teacher, **method.teacher_weights), removed, removed
        )
    num_pairs = len(student.image)
    problem = tiled_cross_entropy.Problem(
        target=_tileable(method, num_pairs),
        remove_diagonal=getattr(method, "remove_diagonal", True),
        stop_gradient_keys=method.stop_gradient_keys,
        known=method.known_positives,
    )
    terms = jax.tree.map(lambda x: jnp.broadcast_to(x, num_pairs).astype(scales.dtype), terms)
    rows = tile_rows(method, num_pairs, mesh)
    value, found = tiled_cross_entropy.cross_entropies(
        problem, rows, mesh, student, features, terms, scales, known
    )
    means = _Means(
        [weighted_mean(t.weight, x) for t, x in zip(terms, found.cross_entropy, strict=True)],
        weighted_mean(terms[-1].weight, found.entropy),
        jnp.mean(found.entropy),
        jnp.mean(found.diagonal),
    )
    return value, means


def _tileable(method: Method, num_pairs: int) -> targets.Smoothed | targets.Transported:
    """Return the method's target, unless it is of a kind that only whole matrices give."""
    target = method.target
    if not isinstance(target, targets.Smoothed | targets.Transported):
        raise ValueError(
            f"objective {method.name!r}: its target {type(target).__name__} is not computed in "
            f"tiles; set config.objective.tile={num_pairs}, so that matrices are whole"
        )
    return target


def _sigmoid_loss(
    method: Sigmoid,
    student: Embeddings,
    log_scales: LogScales,
    mesh: Mesh | None,
    trust: jax.Array | None,
    known: Known | None,
) -> tuple[jax.Array, Metrics]:
    """Return the sum over all pairs divided by the number of images (SigLIP, eq. 1).

    One matrix is both directions. Where pairs have weights, image i with text j has the mean of w_i
    and w_j.
    """
    num_pairs = len(student.image)
    scale = scale_from_log(log_scales.contrastive, *method.scale_bounds)
    weights = jnp.broadcast_to(method.weights(trust), num_pairs).astype(scale.dtype)
    if rows := tile_rows(method, num_pairs, mesh):
        loss = tiled_sigmoid.sigmoid_cross_entropy(
            *(rows, mesh, student, weights, scale, log_scales.bias),
            mode=method.known_positives,
            known=known,
        )
    else:
        logits = scale * contrastive.similarity(*student) + log_scales.bias
        own = jnp.eye(num_pairs, dtype=bool)
        relation = Relation(own, own) if known is None else _relate_all(method, known)
        losses = tiled_sigmoid.known_sigmoid_losses(logits, relation)
        loss = jnp.mean(weights * (losses.sum(axis=0) + losses.sum(axis=1))) / 2
    return loss, {"temperature": 1.0 / scale, "bias": log_scales.bias}


def as_constant(trust: jax.Array, dtype: jnp.dtype, mesh: Mesh | None) -> jax.Array:
    """Return trust [N] of a type, without gradient, whole on every device.

    Every device needs all of it, for the rows of one direction and the columns of the other.
    """
    trust = jax.lax.stop_gradient(jnp.asarray(trust, dtype))
    if mesh is None:
        return trust
    return jax.lax.with_sharding_constraint(trust, NamedSharding(mesh, PartitionSpec()))


def known_groups(groups: jax.Array, dtype: jnp.dtype, mesh: Mesh | None) -> Known:
    """Return the groups of a batch, whole on every device, as `as_constant` has trust."""
    if mesh is not None:
        groups = jax.lax.with_sharding_constraint(groups, NamedSharding(mesh, PartitionSpec()))
    return number_groups(groups, dtype)


def removes_known(method: Method) -> bool:
    """Return whether known positives are taken out of the teacher's matrix.

    To be ignored they must be. Where they share what is given, they go as the given pairs do.
    """
    return method.known_positives == IGNORE or method.remove_diagonal


def check_embeddings(
    method: Method, student: Embeddings, teacher: Embeddings | None, mesh: Mesh | None = None
) -> None:
    """Refuse what no loss can be made of; values are looked at where they are known.

    Raises:
        ValueError: see `total_loss`.
    """
    if method.uses_teacher == (teacher is None):
        needs = "needs" if teacher is None else "does not use"
        raise ValueError(f"objective {method.name!r} {needs} a teacher's embeddings")
    num_pairs = len(student.image)
    if num_pairs < 2:
        raise ValueError(f"a contrastive loss needs at least 2 pairs, found {num_pairs}")
    if mesh is not None and AXIS not in mesh.shape:
        raise ValueError(f"the mesh has axes {mesh.axis_names}; one must be {AXIS!r}")
    if mesh is not None and num_pairs % (devices := tiles.count_devices(mesh)):
        raise ValueError(f"{num_pairs} pairs do not divide over {devices} devices")
    for owner, embeddings in (("student", student), ("teacher", teacher)):
        for name, rows in embeddings._asdict().items() if embeddings else ():
            _check_rows(f"{owner}.{name}", rows, (num_pairs, embeddings.image.shape[-1]))


def check_trust(method: Method, trust: jax.Array | None, num_pairs: int) -> None:
    """Refuse trust that is missing, not used, of another shape or outside [0, 1].

    Raises:
        ValueError: see `total_loss`.
    """
    if method.uses_trust == (trust is None):
        needs = "needs" if trust is None else "does not use"
        alpha = f"alpha={method.alpha!r} and " if hasattr(method, "alpha") else ""
        choice = f"{alpha}pair_weight={method.pair_weight!r}"
        raise ValueError(f"objective {method.name!r} with {choice} {needs} the pairs' trust")
    if trust is None:
        return
    if trust.shape != (num_pairs,):
        raise ValueError(f"trust has shape {trust.shape}; it must be {(num_pairs,)}")
    values = _known_values(trust)
    if values is not None:
        _refuse_rows("trust", (values >= 0.0) & (values <= 1.0), "outside [0, 1]")


def check_groups(method: Method, groups: jax.Array | None, num_pairs: int) -> None:
    """Refuse groups that are missing, not used, or of another shape (ValueError)."""
    mode = method.known_positives
    if (mode is None) != (groups is None):
        needs = "needs" if groups is None else "does not use"
        raise ValueError(
            f"objective {method.name!r} with known_positives={mode!r} {needs} the pairs' groups"
        )
    if groups is not None and (groups.ndim != 2 or len(groups) != num_pairs):
        raise ValueError(f"groups have shape {groups.shape}; it must be ({num_pairs}, k)")


def _check_rows(name: str, rows: jax.Array, shape: tuple[int, int]) -> None:
    if rows.shape != shape:
        raise ValueError(f"{name} has shape {rows.shape}; it must be {shape}")
    values = _known_values(rows)
    if values is not None:
        _refuse_rows(name, np.isfinite(values).all(axis=1), "that are not finite")


def _known_values(array: jax.Array) -> np.ndarray | None:
    """Return the values of an array, None while a function is being compiled."""
    while isinstance(array, jax.core.Tracer) and hasattr(array, "primal"):
        array = array.primal  # Differentiated outside of jit: the values are there.
    return None if isinstance(array, jax.core.Tracer) else np.asarray(array, np.float32)


def _refuse_rows(name: str, good: np.ndarray, found: str) -> None:
    """Refuse an array unless all of its rows are good, [N] bool."""
    if not good.all():
        raise ValueError(
            f"{name} has values {found} in {int((~good).sum())} of {len(good)} rows, "
            f"first in row {int(good.argmin())}"
        )
