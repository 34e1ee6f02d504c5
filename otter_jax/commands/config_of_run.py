"""A config file for `otter-jax evaluate`: the config that a run has kept."""

from pathlib import Path

from ml_collections import ConfigDict

from otter_jax.config import load_config


def get_config(path: str) -> ConfigDict:
    """Return what a workdir's config.json holds."""
    return load_config(Path(path))
