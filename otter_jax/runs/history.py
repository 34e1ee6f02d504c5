"""What a workdir says of its run, finished or not: read once, for whoever looks at it."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from otter_jax import config as config_lib
from otter_jax.json_files import read_json_lines, read_json_object
from otter_jax.runs.checkpoints import find_damage
from otter_jax.runs.machine import FILE as MACHINE_FILE

Curves = dict[str, dict[int, float]]  # By a metric's name, its value at each step.


@dataclasses.dataclass(frozen=True)
class History:
    """All that the files of a workdir say, except its model.

    Attributes:
        path: the workdir.
        config: its config.
        data: data.json; empty before the data were opened.
        metrics: what metrics.jsonl holds, by name and step.
        timings: what timings.jsonl holds, in the same way.
        machines: where the run was started and resumed, first to last.
        results: results.json; empty before the run has finished.
        checkpoints: steps that have one.
        total_steps: of the whole run; None before the pairs were counted.
    """

    path: Path
    config: ConfigDict
    data: dict[str, Any]
    metrics: Curves
    timings: Curves
    machines: list[dict[str, Any]]
    results: dict[str, Any]
    checkpoints: list[int]
    total_steps: int | None

    @property
    def step(self) -> int:
        """The last step of which there is a line or a checkpoint; 0 before the first one."""
        written = (max(curve) for name, curve in self.metrics.items() if curve)
        return max((*written, *self.checkpoints), default=0)

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return bool(self.results)


def read_history(workdir: Path) -> History:
    """Read the files of a workdir; a run that is under way may go on writing them.

    Raises:
        FileNotFoundError: if there is no run.
        ValueError: naming the file that is damaged.
    """
    if not (workdir / "config.json").is_file():
        raise FileNotFoundError(f"{workdir} holds no run: it has no config.json")
    config = config_lib.load_config(workdir / "config.json")
    data = _read_if_there(workdir / "data.json")
    return History(
        path=workdir,
        config=config,
        data=data,
        metrics=_curves(read_json_lines(workdir / "metrics.jsonl")),
        timings=_curves(read_json_lines(workdir / "timings.jsonl")),
        machines=read_json_lines(workdir / MACHINE_FILE),
        results=_read_if_there(workdir / "results.json"),
        checkpoints=sorted(
            int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*") if _is_step(path)
        ),
        total_steps=_total_steps(config, data),
    )


def damage_of_last_checkpoint(history: History) -> str | None:
    """Return what is wrong with the newest checkpoint, every file of which is read; or None."""
    if not history.checkpoints:
        return None
    return find_damage(history.path / "checkpoints" / str(history.checkpoints[-1]))


def _curves(lines: Iterable[Mapping[str, Any]]) -> Curves:
    curves: Curves = defaultdict(dict)
    for line in lines:
        step = line["step"]
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                curves[name][step] = float(value)
    return dict(curves)


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _is_step(path: Path) -> bool:
    return path.is_dir() and path.name.isdecimal()


def _total_steps(config: ConfigDict, data: Mapping[str, Any]) -> int | None:
    """Return the run's length, which hangs on how many pairs there are, readable or not."""
    if not data and config.total_steps is None:
        return None
    train = data.get("train", {})
    return config_lib.total_steps(config, train.get("pairs", 0) + len(train.get("unreadable", {})))
