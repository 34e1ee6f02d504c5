"""Finds drawings that look the same, by their looks (see `drawings.look`).

What is found in float32 is decided in whole numbers, so every machine finds the same.
"""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from otter_jax.data.records import Progress, no_progress

# Distances of looks, found by looking at pairs near the thresholds.
COPY = 0.06  # Up to here it is the same picture, drawn again at another size or place.
RELATIVE = 0.15  # Up to here it is too alike for one to be trained on while the other is held out.

_ROWS, _COLUMNS = 1024, 8192  # Of a tile of all distances.
_SLACK = 1e-4  # For the rounding of float32, relative.


def alike(looks: np.ndarray, limit: float, progress: Progress = no_progress) -> np.ndarray:
    """Return the pairs of drawings within a distance of each other, int64 [p, 2], first < second.

    The distance of two is that of their looks without their means, as vectors, relative to the
    longer one: 0 for equal ones, above 1 for those that have nothing in common. With their means,
    all that is white on a black disk would be alike.

    Args:
        looks: uint8 [n, d].
        limit: The largest distance, in (0, 1).
        progress: Shows how far it is.
    """
    contrasts = _contrasts(looks)
    squares = np.square(contrasts).sum(axis=1).astype(np.float64)
    order = np.argsort(squares, kind="stable")  # Lengths of looks that are alike are, too.
    vectors, squares = contrasts[order].astype(np.float32), squares[order]
    ends = np.searchsorted(squares, squares / (1 - limit) ** 2, side="right")
    # d^2 <= limit^2 b^2 for the longer one, b: a product of no less than (a^2 + b^2 - d^2) / 2.
    own, longer = squares.astype(np.float32), (squares * (1 - limit**2)).astype(np.float32)
    found = [np.empty((0, 2), np.int64)]
    starts = range(0, len(looks), _ROWS)
    for start in progress(starts, len(starts), "blocks compared"):
        rows = slice(start, start + _ROWS)
        for first in range(start, int(ends[rows].max()), _COLUMNS):
            columns = slice(first, first + _COLUMNS)
            products = vectors[rows] @ vectors[columns].T
            bound = (own[rows, None] + longer[columns]) * np.float32(0.5 - _SLACK)
            places = np.argwhere(products >= bound) + np.array([start, first])
            found.append(places[places[:, 0] < places[:, 1]])
    pairs = order[np.concatenate(found)]
    pairs = np.sort(pairs[distances(looks, pairs) <= limit], axis=1)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def distances(looks: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return the distance of each pair, float64 [p]; arguments as `alike` takes and gives them."""
    found = np.empty(len(pairs))
    for start in range(0, len(pairs), _COLUMNS):
        part = slice(start, start + _COLUMNS)
        first, second = (_contrasts(looks[column]) for column in pairs[part].T)
        longer = np.maximum(np.square(first).sum(axis=1), np.square(second).sum(axis=1))
        found[part] = np.sqrt(np.square(first - second).sum(axis=1) / np.maximum(longer, 1))
    return found


def _contrasts(looks: np.ndarray) -> np.ndarray:
    """Return looks without their means, times their width: whole numbers, int64 [n, d]."""
    whole = looks.astype(np.int64)
    return whole * whole.shape[1] - whole.sum(axis=1, keepdims=True)


def find_copies(count: int, pairs: np.ndarray) -> np.ndarray:
    """Return which drawings are copies of an earlier one that is kept, bool [count]."""
    earlier: dict[int, list[int]] = defaultdict(list)
    for first, second in pairs.tolist():
        earlier[second].append(first)
    dropped = np.zeros(count, bool)
    for number in sorted(earlier):
        dropped[number] = any(not dropped[other] for other in earlier[number])
    return dropped


def related(pairs: np.ndarray, ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return which of the ones have a relative among the others, bool [n].

    Args:
        pairs: Relatives, int [p, 2].
        ones: bool [n].
        others: bool [n].
    """
    found = np.zeros(len(ones), bool)
    for first, second in (pairs.T, pairs[:, ::-1].T):
        found[first[others[second]]] = True
    return found & ones


def join(names: Iterable[str], joined: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the family of each name, called by its first member: names that are joined share one.

    >>> join(["b", "a", "c"], [("c", "b")])
    {'a': 'a', 'b': 'b', 'c': 'b'}
    """
    parent = {name: name for name in sorted(names)}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    for one, other in joined:
        first, second = sorted((root(one), root(other)))
        parent[second] = first
    return {name: root(name) for name in parent}
