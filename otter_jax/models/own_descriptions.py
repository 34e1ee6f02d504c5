"""Reads what this package itself wrote about a tower: every setting, each of its kind.

`blueprint.describe_tower` writes a configuration whole. One that lacks a setting is damaged, and
the default in its place would give other numbers without a word. Only what version 0.1.0 wrote has
fewer settings, and these are known.
"""

import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from otter_jax.models.descriptions import (
    COUNT,
    NUMBER,
    POSITIVE,
    TEXT,
    TRUTH,
    Kind,
    refuse_all_but,
    refuse_no_object,
    refuse_other_kind,
)
from otter_jax.models.preprocessing import INTERPOLATIONS, Resize

# By the tower's class: the settings that came after version 0.1.0, and what its towers were. A
# description has all of these or none.
_BERT = {"embedding_size": None, "shared_layer": False, "cleaning": "none"}
_BLOCKS = {"layer_scale": False, "gated": False}
SINCE_0_1_0: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("Bert", "Roberta", "DistilBert", "MPNet"), _BERT),
    "ClipText": _BLOCKS
    | {"causal": True, "pooling": "eos", "cleaning": "none", "strip_separator": False},
    "ViT": _BLOCKS
    | {"class_token": True, "register_tokens": 0, "prefix_positions": 1, "pooling": "cls"}
    | {"norm_after_pooling": False, "resize": None},
    "ResNet": {"deep_stem": (), "average_downsample": False, "resize": None},
    "ClipResNet": {"resize": None},
    "EfficientNetLite0": {"resize": None},
}

# How a tower runs, not what it is: a description without them is whole.
HOW_IT_RUNS: Mapping[str, Any] = {"scan_layers": False, "pack_heads": False}

_KINDS: Mapping[Any, Kind] = {
    int: COUNT,
    float: NUMBER,
    bool: TRUTH,
    str: TEXT,
    type(None): Kind("null", lambda value: value is None),
}


def read_settings(tower: str, config_class: type, saved: Any, source: str) -> dict[str, Any]:
    """Return the settings of a tower's configuration, all of them.

    Args:
        tower: name of the tower's class.
        config_class: dataclass of the configuration.
        saved: what was written, maybe through JSON.
        source: names the description, for messages.

    Raises:
        ValueError: a setting is missing, unknown, or of another kind.
    """
    refuse_no_object(saved, source)
    later = SINCE_0_1_0.get(tower, {})
    if not any(name in saved for name in later):
        saved = {**later, **saved}
    annotations = get_type_hints(config_class)
    saved = {name: HOW_IT_RUNS[name] for name in HOW_IT_RUNS if name in annotations} | dict(saved)
    kinds = {name: kind_of_field(annotation) for name, annotation in annotations.items()}
    read_entries(saved, kinds | {"resize": RESIZE} if "resize" in kinds else kinds, source)
    for name, value in saved.items():
        if annotations[name] is not bool:  # transformers has texts under some of these names.
            refuse_other_kind(value, name, source)
    return {name: _as_tuple(value) for name, value in saved.items()}


def refuse_other_settings(config_class: type, settings: Mapping[str, Any], source: str) -> None:
    """Refuse settings of a tower's configuration that are of another kind than its fields."""
    annotations = get_type_hints(config_class)
    for name, value in settings.items():
        kind = RESIZE if name == "resize" else kind_of_field(annotations[name])
        refuse_all_but(kind, value, name, source)


def read_entries(saved: Any, kinds: Mapping[str, Kind], source: str) -> dict[str, Any]:
    """Return the entries of an object.

    Args:
        saved: the object.
        kinds: the names of all its entries, and what they are.
        source: names the object, for messages.

    Raises:
        ValueError: an entry is missing, unknown, or of another kind.
    """
    for name, kind in kinds.items():
        read_entry(saved, name, kind, source)
    if unknown := [name for name in saved if name not in kinds]:
        raise ValueError(f"{source} has {unknown[0]!r}, which this version does not know")
    return dict(saved)


def read_entry(description: Any, name: str, kind: Kind, source: str) -> Any:
    """Return an entry of a description; ValueError if it is missing or of another kind."""
    value = require(description, name, source)
    refuse_all_but(kind, value, name, source)
    return value


def require(description: Any, name: str, source: str) -> Any:
    """Return an entry of a description; ValueError if it has none, or is no object."""
    refuse_no_object(description, source)
    if name not in description:
        raise ValueError(f"{source} lacks {name!r}")
    return description[name]


def kind_of_field(annotation: Any) -> Kind:
    """Return what a value must be, in JSON, for a field that is annotated so."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _one_of(parts)
    if origin is types.UnionType:
        return _any_of([kind_of_field(part) for part in parts])
    if origin is tuple and parts[-1] is Ellipsis:
        kind = kind_of_field(parts[0])
        return Kind(
            f"a list, each entry {kind.words}",
            lambda value: isinstance(value, list | tuple) and all(map(kind.admits, value)),
        )
    if origin is tuple:
        return _list_of([kind_of_field(part) for part in parts])
    return _KINDS[annotation]


def _one_of(choices: Sequence[str]) -> Kind:
    return Kind(f"one of {list(choices)}", lambda value: value in choices)


def _any_of(kinds: Sequence[Kind]) -> Kind:
    return Kind(
        " or ".join(kind.words for kind in kinds),
        lambda value: any(kind.admits(value) for kind in kinds),
    )


def _list_of(kinds: Sequence[Kind]) -> Kind:
    return Kind(
        f"a list of {', '.join(kind.words for kind in kinds)}",
        lambda value: (
            isinstance(value, list | tuple)
            and len(value) == len(kinds)
            and all(kind.admits(each) for kind, each in zip(kinds, value, strict=True))
        ),
    )


# What `preprocessing.Resize` may be; crops that reach beyond the image have larger shares than 1.
RESIZE = _any_of(
    [
        _list_of(
            [kind_of_field(get_type_hints(Resize)["mode"]), POSITIVE, _one_of(INTERPOLATIONS)]
        ),
        _KINDS[type(None)],
    ]
)


def _as_tuple(value: Any) -> Any:
    """Return JSON's lists as the tuples that they were."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value
