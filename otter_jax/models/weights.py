"""Puts the arrays of a checkpoint into a tower, whatever names the checkpoint uses.

A tower's weights live in Flax modules; a checkpoint names them in its own way and stores them in
PyTorch's axis order. What the axes mean follows from the kind of layer, the same for all towers
(`AXES`). What the names are is said once per tower, as a `CheckpointLayout`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import jax.numpy as jnp
import numpy as np
from flax import nnx

from otter_jax.models.layers import Conv

Substitution = tuple[str, str]  # regular expression, replacement


@dataclass(frozen=True)
class CheckpointLayout:
    """How one family of checkpoints names the weights of a tower.

    Attributes:
        recognised_by: a name that every such checkpoint has and no other kind does.
        names: substitutions that turn a path in the tower ("blocks.3.expand.conv.weight", the last
            part already as PyTorch calls it) into the checkpoint's name, applied in order.
        spellings: substitutions on the names in the file, for prefixes and older spellings.
        ignored: patterns (with * and ?) of names in the file that the tower has no use for.
    """

    recognised_by: str
    names: tuple[Substitution, ...]
    spellings: tuple[Substitution, ...] = ()
    ignored: tuple[str, ...] = ()

    def respell(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the arrays under the one spelling that `names` leads to."""
        return {_substitute(name, self.spellings): array for name, array in arrays.items()}


@dataclass(frozen=True)
class _Entry:
    """Where an array of the checkpoint goes, and which of its axes becomes which."""

    variable: nnx.Variable
    axes: tuple[int, ...] | None = None

    @property
    def checkpoint_shape(self) -> tuple[int, ...]:
        shape = self.variable.shape
        return shape if self.axes is None else tuple(shape[i] for i in np.argsort(self.axes))

    def assign(self, array: np.ndarray) -> None:
        array = array if self.axes is None else array.transpose(self.axes)
        self.variable.set_value(jnp.asarray(array, dtype=self.variable.dtype))


# Kind of layer -> our name of a weight -> PyTorch's name and the order to put its axes in.
AXES: Mapping[type[nnx.Module], Mapping[str, tuple[str, tuple[int, ...] | None]]] = {
    nnx.Linear: {"kernel": ("weight", (1, 0)), "bias": ("bias", None)},
    nnx.Embed: {"embedding": ("weight", None)},
    nnx.LayerNorm: {"scale": ("weight", None), "bias": ("bias", None)},
    nnx.BatchNorm: {
        "scale": ("weight", None),
        "bias": ("bias", None),
        "mean": ("running_mean", None),
        "var": ("running_var", None),
    },
    Conv: {"kernel": ("weight", (2, 3, 1, 0))},
}


def load_weights(
    tower: nnx.Module,
    arrays: Mapping[str, np.ndarray],
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> None:
    """Set the tower's parameters and batch statistics from a checkpoint, in place.

    Either everything fits, or the tower is left as it was.

    Args:
        tower: a tower with a `checkpoint_layout`.
        arrays: the checkpoint's arrays by name.
        allow_missing: patterns (with * and ?) of names that may be absent; those weights stay.
        allow_unexpected: patterns of names that are passed over, beside those that the layout
            ignores anyway.

    Raises:
        ValueError: names are missing or unexpected, or shapes differ; one table lists them all.
    """
    layout: CheckpointLayout = tower.checkpoint_layout
    arrays = layout.respell(arrays)
    entries = _entries(tower, layout)
    passed_over = (*layout.ignored, *allow_unexpected)
    problems = [
        (name, "missing", entry.checkpoint_shape)
        for name, entry in entries.items()
        if name not in arrays and not _matches(name, allow_missing)
    ]
    for name, array in arrays.items():
        if name not in entries and not _matches(name, passed_over):
            problems.append((name, array.shape, "unexpected"))
        elif name in entries and array.shape != entries[name].checkpoint_shape:
            problems.append((name, array.shape, entries[name].checkpoint_shape))
    if problems:
        raise ValueError(_problem_table(type(tower).__name__, problems))
    for name, entry in entries.items():
        if name in arrays:
            entry.assign(arrays[name])


def _entries(tower: nnx.Module, layout: CheckpointLayout) -> dict[str, _Entry]:
    modules = dict(nnx.iter_modules(tower))
    entries = {}
    for path, variable in nnx.to_flat_state(nnx.state(tower, (nnx.Param, nnx.BatchStat))):
        *owner, leaf = path
        known = AXES.get(type(modules[tuple(owner)]), {})
        torch_leaf, axes = known.get(leaf, (leaf, None))
        name = ".".join(map(str, (*owner, torch_leaf)))
        entries[_substitute(name, layout.names)] = _Entry(variable, axes)
    return entries


def _substitute(name: str, substitutions: Sequence[Substitution]) -> str:
    for pattern, replacement in substitutions:
        name = re.sub(pattern, replacement, name)
    return name


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _problem_table(tower_name: str, problems: Sequence[tuple[str, object, object]]) -> str:
    rows = [("name", "checkpoint", "expected"), *(tuple(map(str, row)) for row in problems)]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = [f"  {name:{widths[0]}}  {found:{widths[1]}}  {wanted}" for name, found, wanted in rows]
    heading = f"the checkpoint does not fit {tower_name}: {len(problems)} names differ"
    return "\n".join([heading, *lines])
