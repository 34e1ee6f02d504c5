"""Finds drawings that look the same, by their looks (see `drawings.look`).

All arithmetic is of whole numbers that float32 holds exactly, so every machine finds the same.
"""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from otter_jax.data.records import Progress, no_progress

# Distances of looks, found by looking at pairs near the thresholds.
COPY = 0.12  # Up to here it is the same picture, drawn again at another size or place.
RELATIVE = 0.25  # Up to here it is too alike for one to be trained on while the other is held out.

_ROWS, _COLUMNS = 1024, 8192  # Of a tile of all distances.


def alike(looks: np.ndarray, limit: float, progress: Progress = no_progress) -> np.ndarray:
    """Return the pairs of drawings within a distance of each other, int64 [p, 2], first < second.

    The distance of two is that of their looks as vectors, relative to the longer one: 0 for equal
    ones, about 1 for those that have nothing in common.

    Args:
        looks: uint8 [n, d] with d at most 256, for which float32 has all products exactly.
        limit: The largest distance, in (0, 1).
        progress: Shows how far it is.
    """
    squares = np.square(looks.astype(np.int64)).sum(axis=1)
    order = np.argsort(squares, kind="stable")  # Lengths of looks that are alike are, too.
    vectors, squares = looks[order].astype(np.float32), squares[order]
    ends = np.searchsorted(squares, squares / (1 - limit) ** 2, side="right")
    found = [np.empty((0, 2), np.int64)]
    starts = range(0, len(looks), _ROWS)
    for start in progress(starts, len(starts), "blocks compared"):
        rows = slice(start, start + _ROWS)
        for first in range(start, int(ends[rows].max()), _COLUMNS):
            columns = slice(first, first + _COLUMNS)
            products = vectors[rows] @ vectors[columns].T
            # Of d^2 <= limit^2 * the longer one's square, a rough form first: a float a number.
            longest = squares[columns].astype(np.float32) * np.float32((1 - limit**2) * (1 - 1e-5))
            bound = (squares[rows].astype(np.float32)[:, None] + longest) / 2
            places = np.argwhere(products >= bound) + np.array([start, first])
            found.append(places[places[:, 0] < places[:, 1]])
    places = np.concatenate(found)
    pairs = order[places]
    pairs = np.sort(pairs[distances(looks, pairs) <= limit], axis=1)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def distances(looks: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return the distance of each pair, float64 [p]; arguments as `alike` takes and gives them."""
    found = np.empty(len(pairs))
    for start in range(0, len(pairs), _COLUMNS):
        part = slice(start, start + _COLUMNS)
        first, second = (looks[column].astype(np.int64) for column in pairs[part].T)
        longer = np.maximum(np.square(first).sum(axis=1), np.square(second).sum(axis=1))
        square = np.square(first - second).sum(axis=1)
        found[part] = np.sqrt(square / np.maximum(longer, 1))
    return found


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
