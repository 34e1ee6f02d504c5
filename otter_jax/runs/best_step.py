"""Which step of a run was best, by a metric of its evaluations, and whether any better will come.

metrics.jsonl says it all, so a run that is resumed knows what it knew.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from otter_jax.json_files import read_json_lines

PREFIX = "eval/"


def refuse_unmeasured(metric: str | None, measured: Sequence[str]) -> None:
    """Refuse a metric that no evaluation of a run gives (ValueError listing what there is)."""
    if metric is None or metric in measured:
        return
    listed = ", ".join(measured) or "nothing, as config.evaluate.sets is empty"
    raise ValueError(
        f"config.checkpoint.best={metric!r} is never measured; what is measured: {listed}"
    )


def evaluations(workdir: Path, metric: str) -> list[tuple[int, float]]:
    """Return the steps of a run that were evaluated, but the untrained one, and what was found.

    In order. What is not finite is the worst there is.
    """
    found: dict[int, float] = {}
    for values in read_json_lines(workdir / "metrics.jsonl"):
        if metric in values and values["step"] > 0:
            value = values[metric]
            found[values["step"]] = value if math.isfinite(value) else -math.inf
    return sorted(found.items())


def best_step(config: ConfigDict, workdir: Path) -> int | None:
    """Return the first step with the highest `checkpoint.best`; None where nothing says which."""
    if config.checkpoint.best is None:
        return None
    found = evaluations(workdir, config.checkpoint.best)
    finite = [(value, -step) for step, value in found if value > -math.inf]
    return -max(finite)[1] if finite else None


def is_over(config: ConfigDict, workdir: Path) -> bool:
    """Return whether `checkpoint.stop_after` evaluations in a row have brought no better step."""
    if config.checkpoint.stop_after is None:
        return False
    steps = [step for step, _ in evaluations(workdir, config.checkpoint.best)]
    best = best_step(config, workdir) or 0
    return sum(step > best for step in steps) >= config.checkpoint.stop_after
