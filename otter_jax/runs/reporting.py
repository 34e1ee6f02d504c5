"""What a run says: lines on the screen, metrics.jsonl, timings.jsonl, TensorBoard, final tables.

metrics.jsonl holds only what the config and the seed determine, so that two runs can be compared
byte for byte; whatever depends on the machine goes to timings.jsonl.
"""

import math
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from otter_jax.json_files import JsonLines, read_json, read_json_lines
from otter_jax.runs.machine import FILE as MACHINE_FILE
from otter_jax.runs.machine import describe_machine
from otter_jax.terminal import Task, aligned, duration, say

OTHERS = ("before", "chance")  # Keys of results.json that are no sets, but hold theirs.
MOST_SHOWN = 6  # Metrics of a set in a line.


class Costs(Protocol):
    """What each step of a run takes."""

    flops: float
    peak: float | None  # FLOP/s that all devices have together, where that is known.

    def metrics(self) -> dict[str, float]:
        """Return what timings.jsonl keeps of it."""
        ...


def read_evaluation(path: Path, step: int) -> dict[str, dict[str, float]]:
    """Return `{set: {metric: value}}` of one step in metrics.jsonl; empty where it has none."""
    results: dict[str, dict[str, float]] = {}
    for values in read_json_lines(path):
        if values["step"] != step:
            continue
        for name, value in values.items():
            if name.startswith("eval/"):
                name, _, metric = name.removeprefix("eval/").rpartition("/")
                results.setdefault(name, {})[metric] = value
    return results


def remark_on_metrics(path: Path, resume_step: int) -> str | None:
    """Return what whoever resumes a run should know of its metrics.jsonl; None if all is well.

    Whether lines are missing at its end is told by timings.jsonl, to which every reported step adds
    a line as well, after that of metrics.jsonl.

    Args:
        path: metrics.jsonl, before the lines of later steps are dropped.
        resume_step: the step of the checkpoint that is gone on from; 0 where there is none.

    Raises:
        ValueError: as `read_json_lines`.
    """
    last = max((line["step"] for line in read_json_lines(path)), default=0)
    if resume_step <= 0:
        anew = "no checkpoint of a trained step is there: training begins anew, and the lines"
        return f"{anew} up to step {last} come again" if last > 0 else None
    if not path.is_file():
        return f"{path.name} is missing: the lines up to step {resume_step} are lost"
    timings = read_json_lines(path.with_name("timings.jsonl"))
    if any(last < each["step"] <= resume_step and "time/wall_seconds" in each for each in timings):
        checkpoint = f"though the checkpoint is of step {resume_step}"
        return f"{path.name} ends at step {last}, {checkpoint}: lines are missing"
    return None


class Reporter(AbstractContextManager):
    """Writes metrics of steps and evaluations to every place; the first process alone does."""

    def __init__(
        self,
        workdir: Path,
        *,
        total_steps: int,
        resume_step: int,
        batch_size: int,
        wandb_project: str | None = None,
    ):
        """Open the files of `workdir`, and drop what they say of steps after `resume_step`."""
        self._files: list[Any] = []
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._opened = time.perf_counter()
        self._last = (resume_step, self._opened)
        self._waited = 0.0
        self._task = Task("training", total_steps, resume_step)
        self._done, self._peak_flops = 0.0, None  # Operations since the clock was started.
        self._tensorboard = self._wandb = None
        if jax.process_index() == 0:
            from tensorboardX import SummaryWriter

            if remark := remark_on_metrics(workdir / "metrics.jsonl", resume_step):
                say(remark)
            self._metrics = JsonLines(workdir / "metrics.jsonl", resume_step)
            self._timings = JsonLines(workdir / "timings.jsonl", resume_step)
            self._tensorboard = SummaryWriter(
                str(workdir / "tensorboard"), purge_step=resume_step + 1
            )
            machine = JsonLines(workdir / MACHINE_FILE, resume_step)
            machine.write(resume_step, describe_machine())
            self._files = [self._metrics, self._timings, self._tensorboard, machine]
            if wandb_project is not None:
                self._wandb = start_wandb(wandb_project, workdir)

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        """Close the files."""
        self._task.close()
        for file in self._files:
            try:
                file.close()
            except OSError:
                if kind is None:  # Else it would hide what went wrong first.
                    raise
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(kind is not None))

    def sync(self) -> None:
        """Wait until all lines are on disk, so that a checkpoint never knows more than they do."""
        if self._tensorboard is not None:
            self._metrics.sync()

    def waiting(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Pass batches on and add up the time that was spent waiting for them."""
        batches = iter(batches)
        while True:
            start = time.perf_counter()
            batch = next(batches)
            self._waited += time.perf_counter() - start
            yield batch
            self._task.advance()

    def start_clock(self, step: int) -> None:
        """Count rate, waits and time left from after `step`; so compilation is left out."""
        self._last, self._waited, self._done = (step, time.perf_counter()), 0.0, 0.0

    def costs(self, step: int, costs: Costs) -> None:
        """Report what steps of a batch's shape take, when the first of them comes."""
        self._peak_flops = costs.peak
        self._write(step, {}, costs.metrics())
        say(str(costs))

    def took(self, costs: Costs) -> None:
        """Count what a step has taken."""
        self._done += costs.flops

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Report the metrics of a train step, and on the screen its rate and the time left.

        On a terminal that can, they stand beside a bar; elsewhere a line is added.

        What is not finite is shown, but not written: JSON has no such numbers.
        """
        values = {f"train/{name}": float(np.asarray(metrics[name])) for name in sorted(metrics)}
        timings = self._timings_since(step)
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._write(step, finite, timings)
        parts = [f"{values['train/loss']:.4f} loss"]
        parts += [
            f"{value:.4f} {name.removeprefix('train/loss_')}"
            for name, value in values.items()
            if name.startswith("train/loss_")
        ]
        parts.append(f"temperature {values['train/temperature']:.4f}")
        pace = []
        if rate := timings.get("time/steps_per_second"):
            left = duration((self._total_steps - step) / rate)
            pace = [f"{rate:.1f} steps/s" if rate >= 1 else f"{rate:.2g} steps/s", f"{left} left"]
        self._task.show(step, "  ".join([parts[0], *pace]))
        if step == self._total_steps:
            self._task.close()  # The last line stays, and evaluation has bars of its own.
        if not self._task.is_shown:
            say(f"step {step:>6} of {self._total_steps}  {'  '.join([*parts, *pace])}")

    def evaluation(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Report `{set: {metric: value}}` measured after `step` updates, if it is of any set.

        It is shown as well, but that of the last step, of which there will be a table.
        """
        if step < self._total_steps:
            for name, metrics in results.items():
                first = list(metrics.items())[:MOST_SHOWN]
                found = "  ".join(f"{metric} {percent(value)}" for metric, value in first)
                say(f"step {step:>6} of {self._total_steps}  evaluated on {name}  {found}")
        flat = {
            f"eval/{name}/{metric}": value
            for name, metrics in results.items()
            for metric, value in metrics.items()
        }
        if flat:
            self._write(step, flat, {})

    def _timings_since(self, step: int) -> dict[str, float]:
        (last_step, last_time), now = self._last, time.perf_counter()
        timings = {"time/wall_seconds": now - self._opened}
        if memory := jax.local_devices()[0].memory_stats():  # None on a CPU.
            timings["memory/device_peak_gib"] = memory.get("peak_bytes_in_use", 0) / 2**30
        if step > last_step:  # Else it is the first step, which compiles.
            elapsed = max(now - last_time, 1e-9)
            rate = (step - last_step) / elapsed
            timings |= {
                "time/steps_per_second": rate,
                "time/images_per_second": rate * self._batch_size,
                "time/data_wait": self._waited / elapsed,
            }
            if self._done:
                timings["time/model_flops_per_second"] = self._done / elapsed
            if self._done and self._peak_flops:
                timings["time/model_flops_utilization"] = self._done / elapsed / self._peak_flops
        self.start_clock(step)
        return timings

    def _write(self, step: int, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None:
        if self._tensorboard is None:
            return
        if metrics:
            self._metrics.write(step, metrics)
        if timings:
            self._timings.write(step, timings)
        for name, value in (metrics | timings).items():
            # TensorBoard knows fewer characters than our names have, and says so every time.
            self._tensorboard.add_scalar(re.sub(r"[^\w./-]", "_", name), value, step)
        if self._wandb is not None:
            self._wandb.log({**metrics, **timings}, step=step)


def start_wandb(project: str, workdir: Path) -> Any:
    """Start a run at Weights & Biases; if the workdir has one already, that one goes on."""
    import wandb

    known = workdir / "wandb_id"
    if not known.is_file():
        known.write_text(secrets.token_hex(8), encoding="utf-8")
    return wandb.init(
        project=project,
        id=known.read_text(encoding="utf-8"),
        name=workdir.name,
        dir=workdir,
        config=read_json(workdir / "config.json"),
        resume="allow",
    )


def sets_of(results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Yield the sets of results.json and their metrics, without what stands beside them."""
    return ((k, each) for k, each in results.items() if k not in OTHERS and isinstance(each, dict))


def results_table(results: Mapping[str, Any]) -> str:
    """Return the final table: every metric after training, before it, by chance, and the change.

    Args:
        results: results.json; `chance` and `before` have the same form as the rest. The change is
            in points.
    """
    rows = [("", "after", "before", "chance", "change")]
    for name, metrics in sets_of(results):
        for metric, value in metrics.items():
            before, chance = (
                results.get(key, {}).get(name, {}).get(metric) for key in ("before", "chance")
            )
            change = "-" if before is None else f"{100 * (value - before):+.1f}"
            shares = map(percent, (value, before, chance))
            rows.append((f"{name}  {metric}", *shares, change))
    return "\n".join(aligned(rows))


def percent(value: float | None) -> str:
    """Return a share as 12.3 %; a dash where it is not known."""
    return "-" if value is None else f"{100 * value:.1f} %"
