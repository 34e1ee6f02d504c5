"""Models of our own that come with the package: what was trained, beside towers of other packages.

A folder of `published/` holds what is trained of a model (`trained.safetensors`, named as the
parameters and batch statistics are), the run's config, log and results, and the weights' sha256.
What is frozen comes from the packages that the config names.
"""

import hashlib
import itertools
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from otter_jax import config as config_lib
from otter_jax.json_files import read_json, write_json
from otter_jax.models.dual_encoder import Variables, parameter_name

FOLDER = Path(__file__).parents[1] / "published"
WEIGHTS, ABOUT = "trained.safetensors", "about.json"
LARGEST = 16e6  # Bytes of weights.
OF_A_RUN = ("config.json", "metrics.jsonl", "results.json")  # What is published of it.


def published_names() -> list[str]:
    """Return the names that `otter_jax.load` knows."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{ABOUT}"))


def publish(name: str, workdir: Path, variables: Variables, note: str) -> Path:
    """Write a finished run's model among the published ones; return its folder.

    Matrices and kernels of towers that are trained take half precision, which changes an embedding
    by a thousandth or less; all else is kept as it is.

    Args:
        name: what it is to be called.
        workdir: of the run.
        variables: of its model.
        note: what it is, in a sentence.

    Raises:
        ValueError: what is trained is too large for a package.
    """
    config = config_lib.load_config(workdir / "config.json")
    arrays = _trained(config, variables)
    size = sum(array.nbytes for array in arrays.values())
    if size > LARGEST:
        raise ValueError(
            f"{workdir}: its trained parts have {size / 1e6:.0f} MB, and a package takes "
            f"{LARGEST / 1e6:.0f}; model.image.frozen, or .trainable, makes them fewer"
        )
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(whole, folder / WEIGHTS)
    for file in OF_A_RUN:
        (folder / file).write_bytes((workdir / file).read_bytes())
    write_json(folder / ABOUT, {"note": note, "sha256": checksum(folder / WEIGHTS)})
    return folder


def _trained(config: ConfigDict, variables: Variables) -> dict[str, np.ndarray]:
    """Return what a run has changed, by name: parameters, and the batch statistics of towers."""
    moved = not (config.model.image.frozen and config.model.text.frozen)
    trained = (variables.params, variables.batch_stats if moved else {})
    leaves = itertools.chain.from_iterable(map(jax.tree.leaves_with_path, trained))
    arrays = {parameter_name(path): np.asarray(array) for path, array in leaves}
    return {name: _in_half_precision(array) for name, array in arrays.items()} if moved else arrays


def _in_half_precision(array: np.ndarray) -> np.ndarray:
    """Return an array of two dimensions or more in float16; vectors are small, and stay."""
    return array.astype(np.float16) if array.ndim > 1 else array


def with_published(variables: Variables, published: dict[str, np.ndarray]) -> Variables:
    """Return a model's variables with the published values, in the variables' own precision."""

    def restored(path: tuple, array: jax.Array) -> np.ndarray:
        return published[parameter_name(path)].astype(array.dtype)

    params = jax.tree.map_with_path(restored, variables.params)
    if len(published) == len(jax.tree.leaves(params)):  # Frozen towers keep their statistics.
        return variables._replace(params=params)
    statistics = jax.tree.map_with_path(restored, variables.batch_stats)
    return variables._replace(params=params, batch_stats=statistics)


def read_published(name: str) -> tuple[ConfigDict, dict[str, np.ndarray]]:
    """Return the config and the trained arrays of a published model.

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
