"""What to do about a loss that is not finite, or has exploded: stop, skip the step, or roll back.

The step itself says on the device which it was, and then keeps the state as it was before. That is
looked at one step late, while the next one runs, so that the device never waits. What happened is
kept in divergence.json, from which a resumed run knows what the run it goes on with has done.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from otter_jax.json_files import read_json, write_json
from otter_jax.terminal import say
from otter_jax.training.step import VERDICT

Event = dict[str, Any]


class DivergedError(FloatingPointError):
    """Training cannot go on from where it is; `rolls_back` says whether it should from before."""

    def __init__(self, reason: str, *, rolls_back: bool):
        """From one line that says what is wrong."""
        super().__init__(reason)
        self.rolls_back = rolls_back


class DivergenceWatch:
    """Looks at the steps of a run, each while the next one runs."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        *,
        checkpoint: int,
        last_checkpoint: Callable[[], int],
        records_of: Callable[[int], list[dict[str, Any]]],
    ):
        """Take up what divergence.json says of steps up to the checkpoint.

        Args:
            config: the run's; `on_nan` and `max_nan_steps` say what to do, and how often, and
                `max_loss_ratio` what the step has called exploded.
            workdir: the run's.
            checkpoint: the step of the checkpoint that the run goes on from; 0 for none.
            last_checkpoint: the step of the last one there is, for a rollback.
            records_of: the records of the batch at a step, to be written down.
        """
        self._action, self._most = config.on_nan, config.max_nan_steps
        self._max_ratio = config.max_loss_ratio
        self._path = workdir / "divergence.json"
        self._records_of = records_of
        self._checkpoint, self._last_checkpoint = checkpoint, last_checkpoint
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        events = read_json(self._path) if self._path.is_file() else []
        # Others come again, as the same steps do.
        self._events: list[Event] = [e for e in events if _known_at(e, checkpoint)]

    @property
    def skipped(self) -> int:
        """How many steps have been left out."""
        return sum(event["action"] == "skip" for event in self._events)

    @property
    def start(self) -> int:
        """The step to go on after: the checkpoint's, or the last of those that it passes over."""
        return max(
            (e["step"] for e in self._events if e.get("from") == self._checkpoint),
            default=self._checkpoint,
        )

    def look(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Note a step that has been started, and judge the one before.

        Raises:
            DivergedError: if training cannot go on.
        """
        self.settle()
        self._pending = (step, metrics)

    def settle(self) -> None:
        """Judge the step that was noted last; raises as `look`."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        if not bool(metrics["finite"]) or bool(metrics["exploded"]):
            self._judge(step, {name: float(np.asarray(metrics[name])) for name in sorted(metrics)})

    def _reason(self, metrics: dict[str, float]) -> str:
        if not metrics["finite"]:
            return "the loss, a gradient or an update is not finite"
        mean = metrics["mean_loss"]
        ratio = metrics["loss"] / max(mean, 1.0)
        return (
            f"exploded to {ratio:.4g} times its running mean {mean:.4g}, or 1 if that is more; "
            f"config.max_loss_ratio={self._max_ratio:g}"
        )

    def _way_on(self, metrics: dict[str, float]) -> str:
        way = "--config.on_nan=skip"
        if self._action != "stop":
            way = f"a config.max_nan_steps above {self._most}"
        if not metrics["finite"]:
            return f"{way} here"
        return f"{way} here, or --config.max_loss_ratio=0 where a loss may well rise like this"

    def _judge(self, step: int, metrics: dict[str, float]) -> None:
        happened = len(self._events) + 1
        action = self._action if happened <= self._most else "stop"
        reason = self._reason(metrics)
        event = {"step": step, "reason": reason, "action": action, "metrics": _readable(metrics)}
        if action == "rollback":
            event["from"] = self._last_checkpoint()
        event["records"] = self._records_of(step)
        self._events.append(event)
        write_json(self._path, self._events)
        losses = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items() if k.startswith("loss"))
        what = f"training has diverged at step {step} ({losses}: {reason})"
        if action == "skip":
            say(f"{what}: its update is left out, {happened} of at most {self._most}")
        elif action == "rollback":
            raise DivergedError(
                f"{what}: back to the checkpoint of step {event['from']}, to go on from it at step "
                f"{step + 1}, {happened} of at most {self._most}",
                rolls_back=True,
            )
        else:
            raise DivergedError(
                f"{what}{_exceeded(self._action, self._most)}: its update was left out, earlier "
                f"checkpoints are kept, and {self._path} names the batch; try a lower "
                f"config.optimizer.learning_rate in another workdir, or {self._way_on(metrics)}",
                rolls_back=False,
            )


def _known_at(event: Event, checkpoint: int) -> bool:
    """Return whether a run that goes on from a checkpoint has been through this."""
    return event["action"] != "stop" and event.get("from", event["step"]) <= checkpoint


def _readable(metrics: dict[str, float]) -> dict[str, float | str]:
    """Return numbers that JSON has, and the names of the others."""
    return {
        name: value if math.isfinite(value) else str(value)
        for name, value in metrics.items()
        if name not in VERDICT
    }


def _exceeded(action: str, most: int) -> str:
    return "" if action == "stop" else f", once more than config.max_nan_steps={most} allows"
