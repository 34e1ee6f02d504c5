"""Multinomial logistic regression by L-BFGS, jitted and split over all devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from otter_jax import sharding

MAX_ITERATIONS = 1000
# Of the largest entry of the gradient: as in scikit-learn, and beside it a share of what it is
# where all weights are 0. The mean over images makes it small where there are many classes, so that
# scikit-learn's alone ends before a probe of thousands has begun
# (findings/sklearn_probe_of_many_classes.sh).
TOLERANCE, SHARE = 1e-4, 1e-3

Weights = dict[str, np.ndarray]
Arrays = dict[str, jax.Array]


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    l2: float,
    *,
    start: Weights | None = None,
    mesh: Mesh | None = None,
) -> Weights:
    """Fit a multinomial logistic regression.

    It minimises the sum of cross-entropies + l2 / 2 * |kernel|^2, which is scikit-learn's
    LogisticRegression with C = 1 / l2; the bias is not penalised.

    Args:
        features: float [n, d].
        labels: int [n], in 0 ... num_classes - 1.
        num_classes: number of classes.
        l2: strength of the penalty.
        start: weights to start from, such as those of a neighbouring l2; zeros if not given.
        mesh: devices to split the images over; all of them if not given.

    Returns:
        `kernel` [d, num_classes] and `bias` [num_classes].

    Raises:
        ValueError: for labels that are not classes, or numbers that differ.
    """
    check_labels(features, labels, num_classes)
    mesh = mesh or sharding.make_mesh()
    padding = -len(features) % mesh.devices.size
    rows = sharding.put_rows(mesh, np.pad(features.astype(np.float32), ((0, padding), (0, 0))))
    classes = sharding.put_rows(mesh, np.pad(labels.astype(np.int32), (0, padding)))
    counted = sharding.put_rows(mesh, np.pad(np.ones(len(labels), np.float32), (0, padding)))
    start = start or {
        "kernel": np.zeros((features.shape[1], num_classes), np.float32),
        "bias": np.zeros(num_classes, np.float32),
    }
    fitted = _minimiser(mesh)(start, rows, classes, counted, np.float32(l2))
    return {name: np.asarray(array) for name, array in fitted.items()}


@functools.cache
def _minimiser(mesh: Mesh) -> jax.stages.Wrapped:
    """Compile `_minimise`, once for each mesh; every process gets all weights."""
    return jax.jit(_minimise, out_shardings=sharding.replicated(mesh))


def _minimise(
    start: Arrays, features: jax.Array, labels: jax.Array, counted: jax.Array, l2: jax.Array
) -> Arrays:
    """Run L-BFGS until the gradient vanishes; padded rows are not `counted`."""
    total = counted.sum()

    def loss(weights: Arrays) -> jax.Array:
        logits = jnp.matmul(features, weights["kernel"], precision="highest") + weights["bias"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        penalty = 0.5 * l2 * (weights["kernel"] ** 2).sum()
        return ((losses * counted).sum() + penalty) / total

    def largest_entry(gradient: Arrays) -> jax.Array:
        return jnp.max(jnp.array([jnp.abs(leaf).max() for leaf in jax.tree.leaves(gradient)]))

    first = largest_entry(jax.grad(loss)(jax.tree.map(jnp.zeros_like, start)))
    tolerance = jnp.minimum(TOLERANCE, SHARE * first)
    optimizer = optax.lbfgs(memory_size=10)
    value_and_gradient = optax.value_and_grad_from_state(loss)

    def unfinished(carry: tuple) -> jax.Array:
        _, state, iteration = carry
        largest = largest_entry(optax.tree.get(state, "grad"))
        return (iteration == 0) | ((iteration < MAX_ITERATIONS) & (largest > tolerance))

    def improve(carry: tuple) -> tuple:
        weights, state, iteration = carry
        value, gradient = value_and_gradient(weights, state=state)
        updates, state = optimizer.update(
            gradient, state, weights, value=value, grad=gradient, value_fn=loss
        )
        return optax.apply_updates(weights, updates), state, iteration + 1

    return jax.lax.while_loop(unfinished, improve, (start, optimizer.init(start), 0))[0]


def predict(weights: Weights, features: np.ndarray, block: int = 4096) -> np.ndarray:
    """Return the class probabilities, float32 [n, num_classes]."""
    parts = [
        _probabilities(weights, np.asarray(features[start : start + block], np.float32))
        for start in range(0, len(features), block)
    ]
    return np.concatenate([np.asarray(part) for part in parts])


@jax.jit
def _probabilities(weights: Arrays, rows: jax.Array) -> jax.Array:
    logits = jnp.matmul(rows, weights["kernel"], precision="highest") + weights["bias"]
    return jax.nn.softmax(logits)


def check_labels(features: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    """Refuse what is no classification problem (ValueError)."""
    if features.ndim != 2 or labels.shape != (len(features),) or not len(features):
        raise ValueError(f"features {features.shape} and labels {labels.shape} do not fit")
    if not np.isfinite(features).all():
        raise ValueError("the features hold values that are not finite")
    if labels.min() < 0 or labels.max() >= num_classes or num_classes < 2:
        raise ValueError(
            f"labels from {labels.min()} to {labels.max()} for {num_classes} classes: a probe "
            "needs one label an image, of two classes or more"
        )
