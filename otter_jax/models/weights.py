"""Puts the arrays of a checkpoint into a tower, whatever names the checkpoint uses.

A tower's weights live in Flax modules; a checkpoint names them in its own way and stores them in
PyTorch's axis order. What the axes mean follows from the kind of layer, the same for all towers
(`AXES`). What the names are is said once per tower, as a `CheckpointLayout`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from otter_jax.models.layers import BatchNorm, Conv, Embed, LayerNorm, Linear
from otter_jax.models.transformer import PatchEmbedding

MOST_PROBLEMS = 20  # Names in a message; those of another network would fill pages.

Substitution = tuple[str, str]  # regular expression, replacement
CheckpointArrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class CheckpointLayout:
    """How one family of checkpoints names the weights of a tower.

    Attributes:
        recognised_by: a name that every such checkpoint has and no other kind does.
        names: substitutions that turn a path in the tower ("blocks.3.expand.conv.weight", the last
            part already as PyTorch calls it) into the checkpoint's name, applied in order.
        spellings: substitutions on the names in the file, for prefixes and older spellings.
        ignored: patterns (with * and ?) of names in the file that the tower has no use for.
        prepare: what remains to be done to the respelled arrays, such as taking a fused matrix
            apart; None for nothing.
        fields: the tower's configuration from its description (empty for a lone file)
            and the respelled arrays, whose shapes say the rest; a `descriptions.Guess` for what
            neither says. None: there are no settings, nor descriptions.
    """

    recognised_by: str
    names: tuple[Substitution, ...]
    fields: Callable[[Mapping[str, Any], CheckpointArrays], dict[str, Any]] | None = None
    spellings: tuple[Substitution, ...] = ()
    ignored: tuple[str, ...] = ()
    prepare: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None

    def respell(self, arrays: CheckpointArrays) -> dict[str, np.ndarray]:
        """Return the arrays under the one spelling that `names` leads to."""
        arrays = {_substitute(name, self.spellings): array for name, array in arrays.items()}
        return self.prepare(arrays) if self.prepare else arrays

    def recognises(self, arrays: CheckpointArrays) -> bool:
        """Return whether the arrays of a file are named in this way."""
        return any(_substitute(name, self.spellings) == self.recognised_by for name in arrays)


@dataclass(frozen=True)
class _Entry:
    """Where an array of the checkpoint goes, and which of its axes becomes which."""

    variable: nnx.Variable
    axes: tuple[int, ...] | None = None

    @property
    def checkpoint_shape(self) -> tuple[int, ...]:
        shape = self.variable.shape
        return shape if self.axes is None else tuple(shape[i] for i in np.argsort(self.axes))

    def checkpoint_array(self) -> np.ndarray:
        array = np.asarray(self.variable[...])
        # In the order of its axes in memory too: safetensors writes what lies there.
        return (
            array
            if self.axes is None
            else np.ascontiguousarray(array.transpose(np.argsort(self.axes)))
        )

    def assign(self, array: np.ndarray) -> None:
        array = array if self.axes is None else array.transpose(self.axes)
        self.variable.set_value(jnp.asarray(array, dtype=self.variable.dtype))


# Kind of layer -> our name of a weight -> PyTorch's name and the order to put its axes in.
AXES: Mapping[type[nnx.Module], Mapping[str, tuple[str, tuple[int, ...] | None]]] = {
    nnx.Linear: {"kernel": ("weight", (1, 0)), "bias": ("bias", None)},
    nnx.Embed: {"embedding": ("weight", None)},
    Embed: {"embedding": ("weight", None)},
    Linear: {"kernel": ("weight", (1, 0)), "bias": ("bias", None)},
    LayerNorm: {"scale": ("weight", None), "bias": ("bias", None)},
    nnx.BatchNorm: {
        "scale": ("weight", None),
        "bias": ("bias", None),
        "mean": ("running_mean", None),
        "var": ("running_var", None),
    },
    BatchNorm: {
        "scale": ("weight", None),
        "bias": ("bias", None),
        "mean": ("running_mean", None),
        "var": ("running_var", None),
    },
    Conv: {"kernel": ("weight", (2, 3, 1, 0)), "bias": ("bias", None)},
    PatchEmbedding: {"kernel": ("weight", (2, 3, 1, 0)), "bias": ("bias", None)},
}


def load_weights(
    tower: nnx.Module,
    arrays: CheckpointArrays,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> None:
    """Set the tower's parameters and batch statistics from a checkpoint, in place.

    Either everything fits, or the tower is left as it was.

    Args:
        tower: a tower, of whose `checkpoint_layouts` one must recognise the arrays; if it has none,
            they are named by its own paths.
        arrays: the checkpoint's arrays by name.
        allow_missing: patterns (with * and ?) of names that may be absent; those weights stay.
        allow_unexpected: patterns of names that are passed over, beside those that the layout
            ignores anyway.

    Raises:
        ValueError: names are missing or unexpected, or shapes differ; one table lists them, or the
            first twenty.
    """
    layout = recognise_layout(tower, arrays) or first_layout(tower)
    passed_over = (*layout.ignored, *allow_unexpected)
    assign_arrays(tower, layout.respell(arrays), layout.names, allow_missing, passed_over)


def assign_arrays(
    module: nnx.Module,
    arrays: CheckpointArrays,
    names: Sequence[Substitution] = (),
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> None:
    """Set a module's parameters and batch statistics from arrays in PyTorch's order of axes.

    Args:
        module: any module, whose weights are named by its own paths after the substitutions.
        arrays: by these names.
        names: see `CheckpointLayout`.
        allow_missing: as in `load_weights`.
        allow_unexpected: as in `load_weights`.

    Raises:
        ValueError: as `load_weights`.
    """
    entries = _entries(module, names)
    problems = [
        (name, "missing", entry.checkpoint_shape)
        for name, entry in entries.items()
        if name not in arrays and not matches(name, allow_missing)
    ]
    for name, array in arrays.items():
        if name not in entries and not matches(name, allow_unexpected):
            problems.append((name, array.shape, "unexpected"))
        elif name in entries and array.shape != entries[name].checkpoint_shape:
            problems.append((name, array.shape, entries[name].checkpoint_shape))
    if problems:
        raise ValueError(_problem_table(type(module).__name__, problems))
    for name, entry in entries.items():
        if name in arrays:
            entry.assign(arrays[name])


def checkpoint_arrays(
    module: nnx.Module, names: Sequence[Substitution] = ()
) -> dict[str, np.ndarray]:
    """Return a module's weights as a checkpoint has them: the inverse of `assign_arrays`."""
    return {name: entry.checkpoint_array() for name, entry in _entries(module, names).items()}


def first_layout(tower: nnx.Module) -> CheckpointLayout:
    """Return how a tower's weights are named in files of this package's own."""
    return next(iter(getattr(tower, "checkpoint_layouts", ())), CheckpointLayout("", ()))


def recognise_layout(
    tower: nnx.Module | type[nnx.Module], arrays: CheckpointArrays
) -> CheckpointLayout | None:
    """Return the first of the tower's layouts that recognises the arrays, None if none does."""
    layouts = getattr(tower, "checkpoint_layouts", ())  # A tower of one's own may have none.
    return next((each for each in layouts if each.recognises(arrays)), None)


def _entries(module: nnx.Module, names: Sequence[Substitution]) -> dict[str, _Entry]:
    modules = dict(nnx.iter_modules(module))
    entries = {}
    for path, variable in nnx.to_flat_state(nnx.state(module, (nnx.Param, nnx.BatchStat))):
        *owner, leaf = path
        known = AXES.get(type(modules[tuple(owner)]), {})
        torch_leaf, axes = known.get(leaf, (leaf, None))
        name = ".".join(map(str, (*owner, torch_leaf)))
        entries[_substitute(name, names)] = _Entry(variable, axes)
    return entries


def _substitute(name: str, substitutions: Sequence[Substitution]) -> str:
    for pattern, replacement in substitutions:
        name = re.sub(pattern, replacement, name)
    return name


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether one of the patterns (with * and ?) is a name's."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _problem_table(tower_name: str, problems: Sequence[tuple[str, object, object]]) -> str:
    shown = problems[:MOST_PROBLEMS]
    rows = [("name", "checkpoint", "expected"), *(tuple(map(str, row)) for row in shown)]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = [f"  {name:{widths[0]}}  {found:{widths[1]}}  {wanted}" for name, found, wanted in rows]
    heading = f"the checkpoint does not fit {tower_name}: {len(problems)} names differ"
    if hidden := len(problems) - len(shown):
        lines.append(f"  ... and {hidden} more")
    return "\n".join([heading, *lines])
