"""Reads the arrays of a checkpoint by name, whatever kind of file or folder they lie in.

What training scripts put around a model's weights is taken off here, once, so that everything
behind this module sees the names that the model's own code gave.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from otter_jax.models.bert_layouts import read_pooling, transformer_folder
from otter_jax.models.preprocessing import read_preprocessing
from otter_jax.models.torch_files import read_torch_file

SAFETENSORS = ".safetensors"
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".pth.tar", ".ckpt")
SUFFIXES = (SAFETENSORS, *TORCH_SUFFIXES)
# In the order of preference; an index lists the files of a checkpoint in several parts.
FOLDER_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
NO_WEIGHT = re.compile(r"(^|\.)attn_mask$")  # The causal mask, in OpenAI's TorchScript archives.
# Where training scripts keep the weights in what they save (the last as DeepSpeed does), and what
# they put before the names: data parallelism, compilation, Lightning, and OTTER's distillation,
# whose teacher is not wanted.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
PREFIXES = ("module.", "_orig_mod.", "model.", "student.")
# In a config.json that export.py wrote: what Hugging Face's own fields do not say.
OWN_KEY = "otter_jax"
OTTER_DISTILLATION_SCALE = "dist_loss.T_s"


class Checkpoint(NamedTuple):
    """What a file or folder holds."""

    fields: dict[str, Any] | None  # Of config.json; None where there is none.
    arrays: dict[str, np.ndarray]
    # Settings of a tower that other files of the folder say: mean, std, resize, pooling.
    hints: Mapping[str, Any] = {}
    open_clip: dict[str, Any] | None = None  # Of open_clip_config.json, if the weights are its.


def read_checkpoint(location: Path) -> Checkpoint:
    """Return a checkpoint's configuration and arrays, without wrappers and prefixes.

    Args:
        location: a folder with config.json and weights, or a file with a state dict.

    Raises:
        FileNotFoundError: the folder has no weights or no config.json.
        ValueError: a file is damaged or no state dict.
    """
    if location.is_file():
        return Checkpoint(None, strip_prefixes(_read_arrays(location)))
    folder = transformer_folder(location)
    weights, config = find_weights(folder), folder / "config.json"
    # open_clip's own folders have another file instead.
    of_open_clip = weights is not None and weights.name.startswith("open_clip")
    if weights is None or not (config.is_file() or of_open_clip):
        needed = " or ".join(FOLDER_WEIGHTS)
        raise FileNotFoundError(f"{folder} should have config.json and {needed}")
    described = folder / "open_clip_config.json"
    if of_open_clip:
        fields, open_clip = None, read_json(described) if described.is_file() else None
    else:
        fields, open_clip = read_json(config), None
    arrays = strip_prefixes(_read_arrays(weights))
    if fields and OWN_KEY in fields:  # It says all; what lies beside it is for other programs.
        return Checkpoint(fields, arrays)
    pixels = folder / "preprocessor_config.json"
    try:
        preprocessing = read_preprocessing(
            read_json(pixels) if pixels.is_file() else None, fields, open_clip
        )
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    hints = read_pooling(location) | preprocessing
    return Checkpoint(fields, arrays, hints, open_clip)


def find_weights(folder: Path) -> Path | None:
    """Return the file of a folder that holds or lists its weights, None if there is none."""
    return next((folder / name for name in FOLDER_WEIGHTS if (folder / name).is_file()), None)


def strip_prefixes(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays without the prefixes that wrappers of a model put before its names.

    Where some names have a prefix, those without it are not the model's and are left out, but for
    the scale that OTTER's distillation learns beside its student.
    """
    arrays = dict(arrays)
    while prefix := next((p for p in PREFIXES if any(n.startswith(p) for n in arrays)), None):
        arrays = {
            name.removeprefix(prefix): array
            for name, array in arrays.items()
            if name.startswith(prefix) or name == OTTER_DISTILLATION_SCALE
        }
    return arrays


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if path.name.endswith(".index.json"):
        return _read_parts(path)
    if path.suffix == SAFETENSORS:
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    if not path.name.endswith(TORCH_SUFFIXES):
        raise ValueError(f"{path} should end in one of {', '.join(SUFFIXES)}")
    content = read_torch_file(path, select=_unwrap)
    if not isinstance(content, dict) or not all(
        isinstance(array, np.ndarray) for array in content.values()
    ):
        raise ValueError(f"{path} is not a state dict (names with tensors)")
    return {name: array for name, array in content.items() if not NO_WEIGHT.search(name)}


def _unwrap(content: Any) -> Any:
    while isinstance(content, dict):
        inner = next((content[n] for n in WRAPPERS if isinstance(content.get(n), dict)), None)
        if inner is None:
            break
        content = inner
    return content


def _read_parts(index: Path) -> dict[str, np.ndarray]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in places.values()
    ):
        raise ValueError(f"{index} should map every weight to the name of a file beside it")
    arrays: dict[str, np.ndarray] = {}
    for name in sorted(set(places.values())):
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f"{index} lists {name}, which is not there")
        arrays |= _read_arrays(index.parent / name)
    if absent := sorted(set(places) - set(arrays)):
        raise ValueError(f"{index} lists {absent[0]}, which {places[absent[0]]} does not hold")
    return arrays


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; ValueError if there is none."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} should hold one JSON object")
    return fields
