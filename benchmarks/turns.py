"""Sides that take turns, each in a process of its own.

In one process a side's threads would still be waiting for work on the cores that the next side
needs: PyTorch's do so for longer than a small step takes.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Run = Callable[[], None]  # Takes one step.


def serve(make: Callable[[], Run]) -> None:
    """Take a step for each line that comes in; answer with its seconds and the peak in GiB.

    The peak is the most that the process ever had in RAM, compilation included, less what it had
    before `make`.
    """
    import torch  # noqa: F401 - all sides have both libraries, and count neither.
    import transformers  # noqa: F401

    imported = memory("VmRSS")
    run = make()
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(time.perf_counter() - start, memory("VmHWM") - imported, flush=True)


def memory(name: str) -> float:
    """Return what the process has (VmRSS) or has had at most (VmHWM) in RAM, in GiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(name))
    return int(line.split()[1]) / 2**20


class Side:
    """A side in its process, which runs the calling script with arguments that make it serve."""

    def __init__(self, *arguments: str) -> None:
        """Start it."""
        self.process = subprocess.Popen(
            [sys.executable, sys.argv[0], *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.seconds: list[float] = []
        self.peak = 0.0

    def steps(self, number: int) -> None:
        """Have it take some steps, one after the other, and note their mean and the peak."""
        total = 0.0
        for _ in range(number):
            print(file=self.process.stdin, flush=True)
            seconds, self.peak = map(float, self.process.stdout.readline().split())
            total += seconds
        self.seconds.append(total / number)


def take_turns(sides: Mapping[str, Side], rounds: int, steps: int = 1) -> None:
    """Have each side take some steps in every round; the first round only warms up."""
    for _ in range(rounds + 1):
        for side in sides.values():
            side.steps(steps)
    for side in sides.values():
        side.seconds = side.seconds[1:]
