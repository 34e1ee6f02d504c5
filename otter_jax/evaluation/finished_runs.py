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


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read config.json and results.json of workdirs.

    Raises:
        FileNotFoundError: for a folder that is no finished run.
        ValueError: for a folder that is given twice.
    """
    runs = []
    for path in paths:
        if path.resolve() in [run.path.resolve() for run in runs]:
            raise ValueError(f"{path} is given twice")
        if not (path / "results.json").is_file():
            raise FileNotFoundError(f"{path} is not a finished run: it has no results.json")
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
