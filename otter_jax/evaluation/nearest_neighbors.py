"""k-nearest-neighbour classification by cosine similarity, in blocks."""

import numpy as np
from jax.sharding import Mesh

from otter_jax import sharding
from otter_jax.embedding.nearest_rows import nearest_rows

QUERY_BLOCK, KEY_BLOCK = 1024, 16384
TEMPERATURE = 0.07  # Of a neighbour's vote, exp(similarity / temperature); Wu et al. 2018.


def classify(
    train: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    num_classes: int,
    k: int = 20,
    *,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """Return the class to which each test image's k nearest training images give most weight.

    A neighbour's vote weighs exp(similarity / 0.07) (Wu et al. 2018, Unsupervised Feature Learning
    via Non-Parametric Instance Discrimination); of equally similar ones the lower number is nearer.

    Args:
        train: float [n, d]; rows are made unit.
        labels: int [n].
        test: float [m, d]; rows are made unit.
        num_classes: number of classes.
        k: neighbours; all where there are fewer.
        mesh: devices to split the test images over; all of them if not given.

    Returns:
        int [m].
    """
    mesh = mesh or sharding.make_mesh()
    similar, nearest = nearest_rows(_unit(test), _unit(train), min(k, len(train)), mesh)
    votes = np.zeros((len(test), num_classes))
    weights = np.exp((similar.astype(np.float64) - 1.0) / TEMPERATURE)
    np.add.at(votes, (np.arange(len(test))[:, None], labels[nearest]), weights)
    return votes.argmax(axis=1)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
