"""Runs one config with several values and seeds, then compares the runs.

    otter-jax sweep --config=quickstart --seeds=0..4 --set objective.name=infonce,otter

Every combination is a run in a workdir of its own, WORKDIR/objective.name=otter,seed=0. What is
finished is not run again and what was interrupted goes on, so the same command resumes. Further
--config.KEY=VALUE are for all runs. Features of frozen towers are shared. A run that fails is
named, and the others go on. SIGTERM is passed on to the runs, which save, and ends the sweep.

On a CPU, small towers gain little from a second core: --at_once=4 has four runs go on side by side,
each on a quarter of the cores, and writes what they say to output.txt in their workdirs; before
them the first one computes what all share of frozen towers. How many cores a run has may change the
last digits of its numbers.
"""

import argparse
import itertools
import os
import queue
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from otter_jax.commands import compare
from otter_jax.commands.command_line import Parser, path_of
from otter_jax.commands.cpu_settings import all_cores
from otter_jax.config import describe_unknown_key
from otter_jax.evaluation.comparison import NotEvaluatedError
from otter_jax.preset_files import find_preset
from otter_jax.runs.interruption import Interrupted
from otter_jax.runs.workdir import refuse_unwritable

MOST_SEEDS = 10_000


class Children:
    """The processes that are running; no more are started once they were told to stop."""

    def __init__(self) -> None:
        """Begin without any."""
        self._running: set[subprocess.Popen] = set()
        self.is_over = False

    def call(self, command: Sequence[str], **files: Any) -> int:
        """Run a process to its end; return its exit status."""
        with subprocess.Popen(command, **files) as process:
            self._running.add(process)
            if self.is_over:  # The signal came while it was starting.
                process.terminate()
            try:
                return process.wait()
            finally:
                self._running.discard(process)

    @contextmanager
    def hearing_sigterm(self) -> Iterator[None]:
        """Pass SIGTERM on to all of them, and leave this block, once they have ended.

        Raises:
            Interrupted: where the signal has come.
        """

        def stop(number: int, frame: FrameType | None) -> None:
            self.is_over = True
            for process in tuple(self._running):
                process.terminate()
            raise Interrupted(number)

        before = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def main(arguments: Sequence[str]) -> None:
    """Run what the command line says, and compare what has finished.

    Raises:
        ValueError: for values or seeds that are none, or where a run has failed.
    """
    options, given = parse_sweep(arguments)
    config, colon, argument = options.config.partition(":")
    if not Path(config).is_file():
        options.config = f"{find_preset(config)}{colon}{argument}"
    folder = (
        options.workdir or Path("runs") / f"sweep_{Path(options.config.partition(':')[0]).stem}"
    )
    refuse_unwritable(folder)
    refuse_unknown_keys([*(f"--config.{each}" for each in options.set), *given])
    runs = {
        name: [f"--config={options.config}", *given, *changes]
        for name, changes in combinations(options.set, parse_seeds(options.seeds))
    }
    if options.at_once > 1:
        refuse_accelerators(options.at_once)
    children = Children()
    with children.hearing_sigterm():
        failed = run_all(folder, runs, options.at_once, children)
    finished = [str(folder / name) for name in runs if (folder / name / "results.json").is_file()]
    if finished:
        try:
            compare.main([*finished, f"--output={folder}"])
        except NotEvaluatedError as reason:
            say(f"there is nothing to compare: {reason}")
    if failed:
        raise ValueError(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")


def refuse_unknown_keys(flags: Sequence[str]) -> None:
    """Refuse keys that no config has, or that are given twice, before any run (ValueError)."""
    keys = [flag.removeprefix("--config.").partition("=")[0] for flag in flags]
    for key in keys:
        if wrong := describe_unknown_key(key):
            raise ValueError(wrong)
        if keys.count(key) > 1:
            raise ValueError(f"{key} is given twice")
    if "seed" in keys:
        raise ValueError("seed: write --seeds=0..4")


def parse_sweep(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of the command line, and the config's keys for all runs."""
    parser = Parser(
        prog="otter-jax sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="a preset's name, or a file")
    parser.add_argument("--seeds", default="0", help="0..4 or 0,1,2; default: 0")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE,VALUE",
        help="values of a config key, each with all others; repeatable",
    )
    parser.add_argument(
        "--workdir", type=path_of, help="folder of the runs; default: runs/sweep_NAME"
    )
    parser.add_argument(
        "--at_once",
        type=int,
        default=1,
        metavar="N",
        help="runs side by side, on a CPU; default: 1",
    )
    options, rest = parser.parse_known_args(arguments)
    if not 1 <= options.at_once <= len(all_cores()):
        parser.error(
            f"--at_once={options.at_once}: it must be 1 to {len(all_cores())}, as there are cores"
        )
    for argument in rest:
        if not re.match(r"--config\.[\w.]+=", argument):
            parser.error(f"unknown argument {argument!r}")
    return options, rest


def refuse_accelerators(at_once: int) -> None:
    """Refuse runs side by side where they would share accelerators (ValueError).

    A process that begins with JAX's devices keeps them, so that another one is asked.
    """
    asked = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    platform = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    if platform not in ("cpu", ""):  # Without an answer the runs themselves say what is wrong.
        raise ValueError(
            f"--at_once={at_once}: a run here takes all of the {platform}; begin a sweep for each "
            "device instead, with other seeds or values (CUDA_VISIBLE_DEVICES=0, 1, ...), or set "
            "JAX_PLATFORMS=cpu"
        )


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of `0..4` (both ends) or `0,1,2` (ValueError if they are none)."""
    if found := re.fullmatch(r"(\d+)\.\.(\d+)", text):
        first, last = int(found[1]), int(found[2])
        if last - first >= MOST_SEEDS:
            raise ValueError(f"--seeds={text}: at most {MOST_SEEDS} in one sweep")
        seeds = list(range(first, last + 1))
    elif re.fullmatch(r"\d+(,\d+)*", text):
        seeds = [int(each) for each in text.split(",")]
    else:
        seeds = []
    if not seeds:
        raise ValueError(f"--seeds={text}: write 0..4, or 0,1,2")
    return seeds


def combinations(choices: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, list[str]]]:
    """Return a name and the flags of every combination of values and seeds.

    Raises:
        ValueError: for a choice that is not KEY=VALUE,VALUE.
    """
    axes = []
    for choice in choices:
        key, equals, values = choice.partition("=")
        if not equals or not values or not re.fullmatch(r"[\w.]+", key):
            raise ValueError(f"--set {choice}: write KEY=VALUE,VALUE")
        # A tuple is one value, whatever commas it has.
        found = [values] if values.startswith("(") else values.split(",")
        axes.append([(key, value) for value in found])
    axes.append([("seed", str(seed)) for seed in seeds])
    return [
        (
            ",".join(f"{key}={value}".replace("/", "_") for key, value in chosen),
            [f"--config.{key}={value}" for key, value in chosen],
        )
        for chosen in itertools.product(*axes)
    ]


def say(line: str) -> None:
    """Print a line; `terminal.say` would ask JAX, and so take the devices that the runs need."""
    print(f"{line}\n", end="", flush=True)  # At once: threads may speak at the same time.


def run_all(
    folder: Path, runs: Mapping[str, Sequence[str]], at_once: int, children: Children
) -> list[str]:
    """Train what is not finished, some at a time; return the names of those that failed.

    The first goes alone where nothing is known of frozen towers yet, and the others use what it
    has computed.
    """
    left = []
    for number, name in enumerate(runs, start=1):
        if (folder / name / "results.json").is_file():
            say(f"run {number} of {len(runs)}: {name} is finished")
        else:
            left.append((name, f"run {number} of {len(runs)}: {name}"))

    def run(name: str, title: str, output: str | None) -> bool:
        said_in = f", its output in {folder / name / output}" if output else ""
        say(f"{title}{said_in}")
        try:
            is_good = run_one(folder, name, runs[name], children, output) == 0
        except OSError as error:
            is_good, said_in = False, f": {error}"
        if not is_good and not children.is_over:
            say(f"{name} failed{said_in}")
        return is_good

    features_are_known = any(folder.glob("features/*"))
    alone = len(left) if at_once == 1 else int(not features_are_known)
    workers = max(1, min(at_once, len(left) - alone))
    # A run's last digits depend on its cores: all have as many, the first as well.
    shares: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
    first, *_ = divided = equal_shares(all_cores(), at_once)
    for share in divided:
        shares.put(share)
    # In threads, since a child that is interrupted has a quarter of a second from the main thread.
    pool = ThreadPoolExecutor(1, initializer=lambda: use_cores(first))
    good = _all(pool, run, [(*each, None) for each in left[:alone]])
    pool = ThreadPoolExecutor(workers, initializer=lambda: use_cores(shares.get()))
    good += _all(pool, run, [(*each, "output.txt") for each in left[alone:]])
    return [name for (name, _), is_good in zip(left, good, strict=True) if not is_good]


def _all(
    pool: ThreadPoolExecutor, run: Callable[..., bool], given: Sequence[tuple[Any, ...]]
) -> list[bool]:
    """Return what calls in threads give; an interrupt waits for those that have begun, and save."""
    with pool:
        running = [pool.submit(run, *each) for each in given]
        try:
            return [each.result() for each in running]
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise


def equal_shares(cores: Sequence[int], number: int) -> list[set[int]]:
    """Divide cores into so many shares of as many each; what is left over is in none."""
    size = len(cores) // number
    return [set(cores[each::number][:size]) for each in range(number)]


def use_cores(cores: set[int]) -> None:
    """Keep this thread, and the processes that it starts, on some cores, where this is possible."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def run_one(
    folder: Path, name: str, changes: Sequence[str], children: Children, output: str | None = None
) -> int:
    """Train in a process of its own, lest one run leave something to the next.

    Args:
        folder: of the sweep.
        name: of the run, and of its workdir.
        changes: flags of the run.
        children: the processes that are running, which it joins.
        output: a file in the workdir that what it says is added to; None for the terminal.

    Returns:
        The process's exit status.
    """
    workdir, shared = folder / name, folder / "features"
    workdir.mkdir(parents=True, exist_ok=True)
    shared.mkdir(exist_ok=True)
    link = workdir / "features"
    if link.is_symlink() and not link.exists():  # Of an earlier place of the sweep.
        link.unlink()
    if not link.exists():
        link.symlink_to(Path("..", "features"), target_is_directory=True)
    command = [sys.executable, "-m", "otter_jax", "train", f"--workdir={workdir}", *changes]
    if output is None:
        return children.call(command)
    with (workdir / output).open("a") as file:
        return children.call(command, stdout=file, stderr=file)
