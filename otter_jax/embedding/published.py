"""Models of our own that come with the package: what was trained, beside towers of other packages.

A folder of `published/` holds what is trained of a model (`trained.safetensors`, named as the
parameters are), the run's config, log and results, and the weights' sha256. The frozen towers come
from the packages that the config names.
"""

import hashlib
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from otter_jax import config as config_lib
from otter_jax.json_files import read_json, write_json
from otter_jax.models.dual_encoder import Arrays, parameter_name

FOLDER = Path(__file__).parents[1] / "published"
WEIGHTS, ABOUT = "trained.safetensors", "about.json"
OF_A_RUN = ("config.json", "metrics.jsonl", "results.json")  # What is published of it.


def published_names() -> list[str]:
    """Return the names that `otter_jax.load` knows."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{ABOUT}"))


def publish(name: str, workdir: Path, params: Arrays, note: str) -> Path:
    """Write a finished run's model among the published ones; return its folder.

    Args:
        name: what it is to be called.
        workdir: of the run, whose towers are frozen.
        params: what it has trained.
        note: what it is, in a sentence.

    Raises:
        ValueError: a tower is trained, which would be too large.
    """
    config = config_lib.load_config(workdir / "config.json")
    if not (config.model.image.frozen and config.model.text.frozen):
        raise ValueError(f"{workdir}: only models with frozen towers can be published")
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    leaves = jax.tree.leaves_with_path(params)
    save_file(
        {parameter_name(path): np.ascontiguousarray(array) for path, array in leaves},
        folder / WEIGHTS,
    )
    for file in OF_A_RUN:
        (folder / file).write_bytes((workdir / file).read_bytes())
    write_json(folder / ABOUT, {"note": note, "sha256": checksum(folder / WEIGHTS)})
    return folder


def with_published(params: Arrays, published: dict[str, np.ndarray]) -> Arrays:
    """Return a model's trained parameters with the published values."""
    return jax.tree.map_with_path(lambda path, _: published[parameter_name(path)], params)


def read_published(name: str) -> tuple[ConfigDict, dict[str, np.ndarray]]:
    """Return the config and the trained parameters of a published model.

    Raises:
        ValueError: the file of the weights is damaged.
    """
    folder = FOLDER / name
    if checksum(folder / WEIGHTS) != read_json(folder / ABOUT)["sha256"]:
        raise ValueError(f"{folder / WEIGHTS} is damaged: install the package again")
    return config_lib.load_config(folder / "config.json"), load_file(folder / WEIGHTS)


def checksum(path: Path) -> str:
    """Return the sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
