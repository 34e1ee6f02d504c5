"""Makes towers by name, and reads pretrained ones.

A pretrained tower is named by a path or a name (see `hub.find_pretrained`) of

* a folder with `config.json` and `model.safetensors` or `pytorch_model.bin`, in one part or in
  several, as Hugging Face writes it;
* a `.safetensors`, `.pth`, `.pth.tar`, `.pt` or `.bin` file with a state dict, as torchvision,
  timm, open_clip, OpenAI's CLIP, DeCLIP and OTTER write it.

A file may hold two towers (see two_towers.py). A new tower is one file, with its class,
configuration, `CheckpointLayout`s and presets, and its presets in `IMAGE_TOWERS` or `TEXT_TOWERS`.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from otter_jax.models import (
    bert,
    clip_text,
    convnext,
    deberta,
    efficientnet,
    modernbert,
    open_clip_files,
    resnet,
    two_tower_configs,
    vit,
)
from otter_jax.models.abstract import without_values
from otter_jax.models.checkpoint_files import OWN_KEY, Checkpoint, read_checkpoint
from otter_jax.models.descriptions import split_guesses
from otter_jax.models.dual_encoder import DualEncoder
from otter_jax.models.hub import find_pretrained
from otter_jax.models.layers import Preset
from otter_jax.models.own_descriptions import read_settings, refuse_other_settings, require
from otter_jax.models.projections import read_projection
from otter_jax.models.two_towers import (
    KINDS,
    Half,
    Kind,
    find_half,
    find_scalars,
    holds_two_towers,
)
from otter_jax.models.weights import CheckpointArrays, load_weights, recognise_layout

_log = logging.getLogger(__name__)

IMAGE_TOWERS: dict[str, Preset] = {
    **efficientnet.PRESETS,
    **resnet.PRESETS,
    **vit.PRESETS,
    **convnext.PRESETS,
}
TEXT_TOWERS: dict[str, Preset] = {
    **bert.PRESETS,
    **clip_text.PRESETS,
    **deberta.PRESETS,
    **modernbert.PRESETS,
}


AUTO = "auto"  # As a tower's name: whichever its pretrained weights are.


class ProjectedTower(NamedTuple):
    """A tower, and the projection behind it if its checkpoint has two towers."""

    tower: nnx.Module
    projection: nnx.Module | None


def list_towers() -> dict[str, list[str]]:
    """Return the names of all towers by their kind, as `model.image.name` takes them."""
    return {kind: sorted(_registry(kind)) for kind in KINDS}


def create_image_tower(
    name: str,
    pretrained: str | None = None,
    *,
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
    allow_missing: Sequence[str] = (),
    **overrides: Any,
) -> nnx.Module:
    """Return an image tower, random or pretrained.

    Args:
        name: a key of `IMAGE_TOWERS`.
        pretrained: path or name of the weights (see the module's docstring), None for random ones.
        rngs: source of the random weights.
        dtype: type of the computation; parameters stay float32.
        allow_missing: patterns (with * and ?) of names that the weights may lack, such as a
            replaced layer's, which is drawn at random.
        overrides: fields of the tower's configuration.

    Raises:
        ValueError: the name or a field is unknown, or the weights are not this tower's.
        FileNotFoundError, ModuleNotFoundError: there is nothing at the path.
    """
    settings = {"rngs": rngs, "dtype": dtype, "allow_missing": allow_missing}
    return create_tower("image", name, pretrained, **settings, **overrides).tower


def create_text_tower(
    name: str,
    pretrained: str | None = None,
    *,
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
    allow_missing: Sequence[str] = (),
    **overrides: Any,
) -> nnx.Module:
    """Return a text tower, random or pretrained; arguments as in `create_image_tower`."""
    settings = {"rngs": rngs, "dtype": dtype, "allow_missing": allow_missing}
    return create_tower("text", name, pretrained, **settings, **overrides).tower


def create_tower(
    kind: Kind,
    name: str,
    pretrained: str | None,
    *,
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
    allow_missing: Sequence[str] = (),
    where_known: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> ProjectedTower:
    """Return a tower of a kind with its pretrained projection; the rest as `create_image_tower`.

    `where_known` are overrides for towers whose configuration has them.
    """
    registry = _registry(kind)
    if name == AUTO and pretrained is not None:
        location = find_pretrained(pretrained)
        reader = _Reader(location, read_checkpoint(location), rngs, dtype, allow_missing, overrides)
        return reader._replace(where_known=where_known or {}).read(kind)
    if name not in registry:
        known = ", ".join((*sorted(registry), f"{AUTO} (that of the pretrained weights)"))
        raise ValueError(f"there is no {kind} tower {name!r}; there are: {known}")
    wanted = registry[name]
    known = _setting_names(wanted.tower)
    overrides = {k: v for k, v in (where_known or {}).items() if k in known} | overrides
    if pretrained is None:
        config = make_config(wanted.tower, wanted.fields, overrides)
        return ProjectedTower(wanted.tower(config, rngs=rngs, dtype=dtype), None)
    location = find_pretrained(pretrained)
    reader = _Reader(
        location, read_checkpoint(location), rngs, dtype, allow_missing, overrides, wanted.tower
    )
    found = reader.read(kind)
    _refuse_other_tower(found.tower, name, wanted, overrides, pretrained)
    return found


def from_pretrained(
    path: str | Path,
    *,
    tower: Kind | None = None,
    dtype: DTypeLike = jnp.float32,
    allow_missing: Sequence[str] = (),
    rngs: nnx.Rngs | None = None,
    **overrides: Any,
) -> nnx.Module:
    """Return the tower that a checkpoint holds, or both of them, with their weights.

    Args:
        path: see the module's docstring.
        tower: "image" or "text" takes this one of a file that holds two; None takes what is there.
        dtype: type of the computation; parameters stay float32.
        allow_missing: see `create_image_tower`.
        rngs: source of weights that may be missing and are; seed 0 if None.
        overrides: fields of the tower's configuration, such as dropout rates.

    Returns:
        The tower; or a `DualEncoder` with both, their projections and the file's log-scale.

    Raises:
        ValueError: the checkpoint is damaged, of no known kind, or does not fit.
        FileNotFoundError, ModuleNotFoundError: there is nothing at the path.
    """
    if tower not in (None, *KINDS):
        raise ValueError(f"tower is {tower!r}; it must be 'image', 'text' or None")
    location = find_pretrained(path)
    rngs = rngs or nnx.Rngs(0)
    reader = _Reader(location, read_checkpoint(location), rngs, dtype, allow_missing, overrides)
    if tower is None and holds_two_towers(reader.checkpoint.arrays):
        if overrides:
            raise ValueError(
                f"{location} holds two towers: settings of one of them ({', '.join(overrides)}) "
                "need tower='image' or tower='text'"
            )
        return reader.read_both()
    return reader.read(tower).tower


class _Reader(NamedTuple):
    """What is known about a checkpoint and about the tower that is wanted of it."""

    location: Path
    checkpoint: Checkpoint
    rngs: nnx.Rngs
    dtype: DTypeLike
    allow_missing: Sequence[str]
    overrides: Mapping[str, Any]
    preferred: type[nnx.Module] | None = None  # Where names alone fit several classes.
    where_known: Mapping[str, Any] = {}  # Overrides of towers whose configuration has them.

    def read(self, kind: Kind | None) -> ProjectedTower:
        """Return the tower of a kind, or the only one there is."""
        halves = {each: find_half(each, self.checkpoint.arrays) for each in KINDS}
        present = [each for each in KINDS if halves[each]]
        if not present:
            return ProjectedTower(self._read_lone_tower(kind), None)
        if kind is not None and kind not in present:
            raise ValueError(f"{self.location} holds an {present[0]} tower, and no {kind} tower")
        kind = kind or present[0]
        return self._read_half(kind, halves[kind])

    def read_both(self) -> DualEncoder:
        """Return both towers with their projections and log-scales."""
        image, text = self.read("image"), self.read("text")
        scalars = find_scalars(self.checkpoint.arrays)
        model = DualEncoder(
            *(image.tower, text.tower, image.projection, text.projection),
            initial_bias=scalars.get("logit_bias"),
        )
        for name, value in scalars.items():
            getattr(model, name).set_value(jnp.float32(value))
        return model

    @property
    def _own_source(self) -> str:
        return f"{self.location}: config.json's {OWN_KEY}"

    def _read_lone_tower(self, kind: Kind | None) -> nnx.Module:
        saved, arrays = self.checkpoint.fields, self.checkpoint.arrays
        if saved and OWN_KEY in saved:
            tower_class, fields = read_description(saved[OWN_KEY], self._own_source)
        else:
            described = saved is not None
            classes = self._classes_described(saved) if described else _classes(*KINDS)
            tower_class = self._recognise(classes, arrays)
            fields = self._layout_fields(tower_class, saved or {}, arrays)
        if kind is not None and tower_class not in _classes(kind):
            raise ValueError(
                f"{self.location} holds a {tower_class.__name__}, which is no {kind} tower"
            )
        return self._build(tower_class, fields, arrays)

    def _classes_described(self, saved: Mapping[str, Any]) -> list[type[nnx.Module]]:
        """Return the classes that a config.json may mean: all for timm's, which has no type."""
        classes, model_type = _classes(*KINDS), saved.get("model_type")
        if model_type is None:
            if "architecture" not in saved:
                raise ValueError(
                    f"{self.location}: config.json says neither a model_type, as transformers' do, "
                    "nor an architecture, as timm's do"
                )
            return classes
        fitting = [each for each in classes if model_type in getattr(each, "model_types", ())]
        if not fitting:
            known = {name for each in classes for name in getattr(each, "model_types", ())}
            # Those of either tower of a model with both go without saying.
            known = {each for each in known if not each.endswith(("_text_model", "_vision_model"))}
            known = sorted(known.union(two_tower_configs.MODEL_TYPES))
            raise ValueError(
                f"{self.location} holds a model of type {model_type!r}; "
                f"known are: {', '.join(known)}"
            )
        return fitting

    def _read_half(self, kind: Kind, half: Half) -> ProjectedTower:
        # A tower may know its names inside such a file, or only those of a file of its own.
        arrays, saved = half.tower, self.checkpoint.fields or {}
        if not any(recognise_layout(each, arrays) for each in _classes(kind)):
            arrays = half.without_prefix()
        if OWN_KEY in saved:
            described = require(saved[OWN_KEY], kind, self._own_source)
            tower_class, fields = read_description(described, f"{self._own_source}.{kind}")
        else:
            saved, settings = self._described_half(kind)
            typed = saved and self.checkpoint.open_clip is None
            classes = self._classes_described(saved) if typed else _classes(kind)
            fitting = [each for each in classes if each in _classes(kind)]
            tower_class = self._recognise(fitting, arrays)
            fields = self._layout_fields(tower_class, saved, arrays) | dict(half.hints) | settings
        tower = self._build(tower_class, fields, arrays)
        try:
            return ProjectedTower(tower, read_projection(half.projection, tower.width))
        except ValueError as error:
            raise ValueError(f"{self.location}, {kind} projection: {error}") from None

    def _described_half(self, kind: Kind) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Return what the files say about one of two towers, in its layout's form and in ours."""
        saved = self.checkpoint.fields or {}
        try:
            if self.checkpoint.open_clip is not None:
                return open_clip_files.describe(kind, self.checkpoint.open_clip)
            if saved.get("model_type") in two_tower_configs.MODEL_TYPES:
                return two_tower_configs.describe(kind, saved), {}
        except ValueError as error:
            raise ValueError(f"{self.location}: {error}") from None
        return saved, {}

    def _layout_fields(
        self, tower_class: type[nnx.Module], saved: Mapping[str, Any], arrays: CheckpointArrays
    ) -> dict[str, Any]:
        """Return the tower's configuration as its kind of checkpoint says it."""
        layout = recognise_layout(tower_class, arrays)
        if layout.fields is None:
            if saved:
                raise ValueError(
                    f"{self.location}: its config.json is not of a {tower_class.__name__}"
                )
            return {}
        try:
            return layout.fields(saved, layout.respell(arrays))
        except ValueError as error:
            raise ValueError(f"{self.location}: {error}") from None

    def _recognise(
        self, classes: Sequence[type[nnx.Module]], arrays: CheckpointArrays
    ) -> type[nnx.Module]:
        fitting = [each for each in classes if recognise_layout(each, arrays)]
        if not fitting:
            if architecture := (self.checkpoint.fields or {}).get("architecture"):
                raise ValueError(
                    f"{self.location}: config.json says architecture={architecture!r}, which no "
                    "tower here computes"
                )
            names = ", ".join(each.__name__ for each in classes)
            raise ValueError(f"{self.location} is a checkpoint of none of: {names}")
        return self.preferred if self.preferred in fitting else fitting[0]

    def _build(
        self, tower_class: type[nnx.Module], fields: Mapping[str, Any], arrays: CheckpointArrays
    ) -> nnx.Module:
        known = _setting_names(tower_class)
        overrides = {k: v for k, v in self.where_known.items() if k in known} | dict(self.overrides)
        fields, guesses = split_guesses(
            {**fields, **self.checkpoint.hints}, overrides, str(self.location)
        )
        if guesses:
            _log.warning(
                "%s does not say so, but is taken to have %s; overrides say otherwise",
                self.location,
                ", ".join(f"{name}={value!r}" for name, value in guesses.items()),
            )
        try:
            config = make_config(tower_class, fields, overrides)
        except ValueError as error:
            raise ValueError(f"{self.location}: {error}") from None
        if self.allow_missing:
            tower = tower_class(config, rngs=self.rngs, dtype=self.dtype)
        else:  # Shapes only: every weight comes from the checkpoint, and drawing them is slow.
            tower = make_abstract(tower_class, config, self.dtype)
        try:
            load_weights(tower, arrays, self.allow_missing)
        except ValueError as error:
            raise ValueError(f"{self.location}: {error}") from None
        return tower


def make_config(
    tower_class: type[nnx.Module], fields: Mapping[str, Any], overrides: Mapping[str, Any]
) -> Any:
    """Return a tower's configuration.

    Args:
        tower_class: class of the tower.
        fields: settings by name; those that the class does not know are passed over.
        overrides: settings that must be known, and win.

    Raises:
        ValueError: an override is unknown or of another kind, or a value is refused by the
            configuration.
    """
    names = _setting_names(tower_class)
    unknown = sorted(set(overrides) - set(names))
    if unknown:
        raise ValueError(
            f"{tower_class.__name__} has no setting {', '.join(unknown)}; it has: "
            + ", ".join(names)
        )
    refuse_other_settings(
        tower_class.config_class, overrides, f"an override of {tower_class.__name__}"
    )
    known = {name: value for name, value in fields.items() if name in names}
    return tower_class.config_class(**known | dict(overrides))


def _setting_names(tower_class: type[nnx.Module]) -> list[str]:
    return [field.name for field in dataclasses.fields(tower_class.config_class)]


def make_abstract(
    tower_class: type[nnx.Module], config: Any, dtype: DTypeLike = jnp.float32
) -> nnx.Module:
    """Return a tower whose arrays have shapes but no values yet."""
    return without_values(lambda rngs: tower_class(config, rngs=rngs, dtype=dtype))


def read_description(description: Any, source: str) -> tuple[type[nnx.Module], dict[str, Any]]:
    """Return the class and the fields of the tower that `blueprint.describe_tower` wrote down.

    Args:
        description: what was written, maybe through JSON.
        source: names it, for messages.

    Raises:
        ValueError: this version of the package does not have such a tower, or a setting is missing
            or of another kind.
    """
    classes = {each.__name__: each for each in _classes(*KINDS)}
    name = require(description, "tower", source)
    if not isinstance(name, str) or name not in classes:
        raise ValueError(f"there is no tower class {name!r}; there are: {', '.join(classes)}")
    saved = require(description, "config", source)
    return classes[name], read_settings(name, classes[name].config_class, saved, f"{source}.config")


def _registry(kind: Kind) -> Mapping[str, Preset]:
    return IMAGE_TOWERS if kind == "image" else TEXT_TOWERS


def _classes(*kinds: Kind) -> list[type[nnx.Module]]:
    presets = [preset for kind in kinds for preset in _registry(kind).values()]
    return list(dict.fromkeys(preset.tower for preset in presets))


def _refuse_other_tower(
    tower: nnx.Module, name: str, wanted: Preset, overrides: Mapping[str, Any], path: str
) -> None:
    """Refuse a pretrained tower that is not what its name says."""
    found = type(tower).__name__
    if type(tower) is not wanted.tower:
        raise ValueError(f"{path} holds a {found}; {name!r} is a {wanted.tower.__name__}")
    for field, value in wanted.fields.items():
        actual = getattr(tower.config, field)
        if field not in (*overrides, "mean", "std") and actual != value:
            raise ValueError(f"{path} holds a {found} with {field} {actual}; {name} has {value}")
