"""Learning rate and optimizer of a run, on optax's own parts.

With `optimizer.groups` each group of parameters has an optimizer of its own, that of the run with
what the group changes; only the clipping of the gradients' global norm is common to all.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from otter_jax.config import ParameterGroup, groups_of
from otter_jax.models.dual_encoder import Arrays, parameter_name, path_in_tower
from otter_jax.terminal import aligned, say

REST = "rest"  # What no group's pattern matches.
LAYER = re.compile(r"layer(\d+)\.(\d+)|(?:blocks|layers|stages)\.(\d+)(?:\.blocks\.(\d+))?")
ABOVE_ALL_LAYERS = re.compile(r"(final_norm|pooled_norm|head|attnpool|projection|mlm_head)\b")
Level = tuple[float, ...]  # Compares as layers lie above each other.


def make_schedule(config: ConfigDict, total_steps: int) -> optax.Schedule:
    """Return the learning rate by step: linear warm-up, then cosine to zero.

    A warm-up that is no shorter than the run, as in a short trial, is cut to a tenth of it.
    """
    if total_steps == 0:
        return optax.constant_schedule(0.0)
    optimizer = config.optimizer
    warmup_steps = optimizer.warmup_steps
    if warmup_steps >= total_steps:
        warmup_steps = total_steps // 10
        say(
            f"config.optimizer.warmup_steps={optimizer.warmup_steps} is no less than the "
            f"{total_steps} steps of the run: {warmup_steps} are taken"
        )
    return _warm_cosine(optimizer.learning_rate, warmup_steps, total_steps)


def _warm_cosine(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else peak,
        peak_value=peak,
        warmup_steps=warmup_steps,
        decay_steps=total_steps,
    )


def make_optimizer(
    config: ConfigDict, schedule: optax.Schedule, total_steps: int | None = None
) -> optax.GradientTransformation:
    """Return SGD with momentum or AdamW; weight decay spares biases, norms and scales.

    Args:
        config: `optimizer` says the rest.
        schedule: learning rate of what is in no group.
        total_steps: of the run, for the groups' own schedules.
    """
    optimizer, groups = config.optimizer, groups_of(config)
    clip = optax.identity()
    if optimizer.gradient_clip is not None:
        clip = optax.clip_by_global_norm(optimizer.gradient_clip)
    rest = _descent(optimizer, schedule, optimizer.weight_decay)
    if not groups or total_steps == 0:  # Nothing is trained in no steps.
        return optax.chain(clip, *rest)
    by_label = {REST: optax.chain(*rest)}
    for label, group in _labelled(groups):
        by_label[label] = _group_optimizer(optimizer, group, total_steps)
    return optax.chain(clip, optax.partition(by_label, functools.partial(labels_of, groups)))


def _descent(
    optimizer: ConfigDict, schedule: optax.Schedule, weight_decay: float
) -> tuple[optax.GradientTransformation, ...]:
    """Return what turns gradients into updates, one after the other."""
    decay = optax.add_decayed_weights(
        weight_decay, mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
    )
    if optimizer.name == "sgd":  # As in PyTorch, the decay enters the momentum.
        return decay, optax.sgd(schedule, momentum=optimizer.momentum)
    adam = optax.scale_by_adam(b1=optimizer.momentum, b2=optimizer.b2)
    return adam, decay, optax.scale_by_learning_rate(schedule)


def _group_optimizer(
    optimizer: ConfigDict, group: ParameterGroup, total_steps: int
) -> optax.GradientTransformation:
    """Return the optimizer of a group: the run's, with what the group says otherwise."""
    rate = _given(group.learning_rate, optimizer.learning_rate)
    warmup_steps = _given(group.warmup_steps, optimizer.warmup_steps)
    if warmup_steps >= total_steps:
        warmup_steps = total_steps // 10  # As `make_schedule` does, and says, for the run's.
    schedule = _warm_cosine(rate, warmup_steps, total_steps)
    if group.schedule == "constant":
        schedule = optax.warmup_constant_schedule(0.0 if warmup_steps else rate, rate, warmup_steps)
    descent = _descent(optimizer, schedule, _given(group.weight_decay, optimizer.weight_decay))
    return optax.chain(*descent, _scale_layers(group.layer_decay))


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _scale_layers(decay: float | None) -> optax.GradientTransformation:
    """Return what scales the updates of each layer by `decay` for every layer above it."""
    if decay is None:
        return optax.identity()

    def scale(updates: Arrays, params: Arrays | None) -> Arrays:
        del params
        above = layers_above(dict(_named(updates)))
        return jax.tree.map_with_path(
            lambda path, x: x * decay ** above[parameter_name(path)], updates
        )

    return optax.stateless(scale)


def layers_above(names: Iterable[str]) -> dict[str, int]:
    """Return how many layers lie above each parameter among those named, tower by tower.

    What comes before a tower's layers is one more layer, and so is all that comes behind them with
    the projection (Bao et al., "BEiT", 2021). Nothing lies above what belongs to no tower.
    """
    levels = {name: _level(name) for name in names}
    above = {}
    for name, (tower, level) in levels.items():
        own = {other for owner, other in levels.values() if owner == tower}
        above[name] = sum(other > level for other in own)
    return above


def _level(name: str) -> tuple[str | None, Level]:
    """Return whose a parameter is, and in which of the tower's layers."""
    owned = path_in_tower(tuple(name.split(".")))
    if owned is None:
        return None, ()
    tower, path = owned
    if ABOVE_ALL_LAYERS.match(path):
        return tower, (math.inf,)
    numbers = LAYER.match(path)
    return tower, tuple(int(number) for number in numbers.groups() if number) if numbers else ()


def labels_of(groups: Sequence[ParameterGroup], params: Arrays) -> Arrays:
    """Return the number of each parameter's group, or `REST`, in a tree like `params`.

    A pattern is searched in names such as "image.blocks.3.attention.query.kernel",
    "text_projection.kernel" and "log_scale".

    Raises:
        ValueError: two groups have the same parameter, or one has none.
    """
    names = [name for name, _ in _named(params)]
    groups_of_name = {
        name: [str(n) for n, each in enumerate(groups) if re.search(each.pattern, name)]
        for name in names
    }
    for name, found in groups_of_name.items():
        if len(found) > 1:
            patterns = " and ".join(repr(groups[int(number)].pattern) for number in found)
            raise ValueError(f"config.optimizer.groups overlap: {patterns} both match {name}")
    used = {number for found in groups_of_name.values() for number in found}
    for number, group in enumerate(groups):
        if str(number) not in used:
            some = ", ".join(names[:: max(1, len(names) // 6)])
            raise ValueError(
                f"config.optimizer.groups: no trained parameter has {group.pattern!r} in its name; "
                f"there are {len(names)}, among them: {some}"
            )
    return jax.tree.map_with_path(
        lambda path, _: (*groups_of_name[parameter_name(path)], REST)[0], params
    )


def describe_groups(config: ConfigDict, params: Arrays) -> list[str]:
    """Return a table of the groups: how many parameters they have, and how fast they learn.

    Raises:
        ValueError: as `labels_of`.
    """
    groups, optimizer = groups_of(config), config.optimizer
    labels = jax.tree.leaves(labels_of(groups, params))
    sizes = Counter()
    for label, (_, array) in zip(labels, _named(params), strict=True):
        sizes[label] += array.size
    rows = [("group", "parameters", "learning rate", "weight decay", "layer decay")]
    for label, group in (*_labelled(groups), (REST, ParameterGroup(REST))):
        settings = (
            _given(group.learning_rate, optimizer.learning_rate),
            _given(group.weight_decay, optimizer.weight_decay),
            _given(group.layer_decay, 1.0),
        )
        if sizes[label]:
            rows.append((group.pattern, f"{sizes[label]:,}", *(f"{x:.3g}" for x in settings)))
    return aligned(rows)


def _labelled(groups: Sequence[ParameterGroup]) -> Iterator[tuple[str, ParameterGroup]]:
    return ((str(number), group) for number, group in enumerate(groups))


def _named(params: Arrays) -> Iterator[tuple[str, jax.Array]]:
    return ((parameter_name(path), leaf) for path, leaf in jax.tree.leaves_with_path(params))
