"""The presets: files of configs/, wherever the package is installed."""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

# A wheel has them inside the package, a checkout beside it.
FOLDERS = (Path(__file__).parent / "presets", Path(__file__).parents[1] / "configs")
RECIPES = ("common", "yfcc15m")  # What presets share; no experiments by themselves.


def preset_names() -> list[str]:
    """Return the names of all presets, in order."""
    folder = next(filter(Path.is_dir, FOLDERS))
    return sorted(p.stem for p in folder.glob("*.py") if p.stem not in (*RECIPES, "__init__"))


def find_preset(name: str) -> Path:
    """Return the file of a preset, or of a config of one's own that is named by its path.

    Raises:
        FileNotFoundError: if there is none of that name, listing those that there are.
    """
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise FileNotFoundError(f"there is no config file {name}")
        return Path(name)
    for folder in FOLDERS:
        if (path := folder / f"{name}.py").is_file():
            return path
    raise FileNotFoundError(f"there is no preset {name}; there are {', '.join(preset_names())}")


def read_preset(name: str) -> ConfigDict:
    """Return the config of a preset or a file, `NAME` or `NAME:ARGUMENT` as on the command line.

    Raises:
        FileNotFoundError: as `find_preset`.
        ValueError: if it has no function `get_config`.
    """
    name, _, argument = name.partition(":")
    path = find_preset(name)
    spec = importlib.util.spec_from_file_location(f"otter_jax_preset_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path} has no function get_config, which returns a config")
    return module.get_config(argument) if argument else module.get_config()
