"""What a program says on the screen: lines, durations, and how far a long loop has come."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax

Item = TypeVar("Item")


def say(line: str = "") -> None:
    """Print a line, from the first process only."""
    if jax.process_index() == 0:
        print(line, flush=True)


def duration(seconds: float) -> str:
    """Return 12 s, 3 min 05 s, 2 h 07 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def progress(items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    """Pass items on and shows how many are done, how fast, and the time left.

    On a terminal one line is rewritten; elsewhere a line appears about every ten seconds.
    """
    start = shown = time.perf_counter()
    live = sys.stdout.isatty() and jax.process_index() == 0
    done = 0
    for done, item in enumerate(items, start=1):
        yield item
        now = time.perf_counter()
        if now - shown > (0.2 if live else 10.0) and done < total:
            shown, rate = now, done / (now - start)
            left = duration((total - done) / rate)
            line = f"{label}: {done} of {total}, {rate:.0f} a second, {left} left"
            print(f"\r\033[K{line}", end="", flush=True) if live else say(line)
    elapsed = time.perf_counter() - start
    if live:
        print("\r\033[K", end="")
    say(f"{label}: {done} in {duration(elapsed)} ({done / max(elapsed, 1e-9):.0f} a second)")
