"""Finished runs, read from their workdirs."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from otter_jax import config as config_lib
from otter_jax.json_files import read_json_object
from otter_jax.runs.reporting import sets_of


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its config's values by flat key, and `{"set  metric": value}`."""

    path: Path
    config: dict[str, Any]
    results: dict[str, float]

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config["seed"]


def runs_among(paths: Sequence[Path], *, finished: bool) -> tuple[list[Path], str]:
    """Tell runs from what else lies beside them, such as what `runs/*` stands for.

    Args:
        paths: files and folders.
        finished: whether only finished runs are wanted.

    Returns:
        The workdirs, and a line that names what was passed over and why; "" where nothing was.

    Raises:
        FileNotFoundError: for a path that leads nowhere, or where no run is left.
    """
    kind = "finished run" if finished else "run"
    runs, others = [], []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} is not a {kind}: there is no such folder")
        if not (path / "config.json").is_file():
            others.append(f"{path} (no run)")
        elif finished and not (path / "results.json").is_file():
            others.append(f"{path} (not finished)")
        else:
            runs.append(path)
    if not runs:
        raise FileNotFoundError(f"what is given holds no {kind}: {', '.join(others)}")
    return runs, f"passed over: {', '.join(others)}" if others else ""


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read config.json and results.json of finished runs' workdirs.

    Raises:
        ValueError: for a folder that is given twice, or a damaged file.
    """
    runs = []
    for path in paths:
        if path.resolve() in [run.path.resolve() for run in runs]:
            raise ValueError(f"{path} is given twice")
        results = read_json_object(path / "results.json")
        flat = {
            f"{name}  {metric}": value
            for name, metrics in sets_of(results)
            for metric, value in metrics.items()
        }
        # Not `as_dict`: options that a method leaves at its defaults are no difference to another.
        config = json.loads(config_lib.load_config(path / "config.json").to_json())
        runs.append(Run(path, config_lib.flatten(config), flat))
    return runs
