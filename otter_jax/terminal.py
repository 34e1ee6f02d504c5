"""What a program says on the screen: lines, durations, and how far a long loop has come."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import jax
import jax.monitoring
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.progress import Task as ShownTask
from rich.table import Column
from rich.text import Text

Item = TypeVar("Item")

COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX's event, with its seconds.
WORTH_A_RATE = 1.0  # Seconds: what takes less has none.
WORTH_A_WORD = 1.0  # Seconds.
_callbacks: list[Callable[[], None]] = []


def say(line: str = "") -> None:
    """Print a line, from the first process only."""
    if jax.process_index() == 0:
        print(f"{line}\n", end="", flush=True)  # At once: threads may speak at the same time.


def duration(seconds: float) -> str:
    """Return 12 s, 3 min 05 s, 2 h 07 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


class Task(contextlib.AbstractContextManager):
    """A line of its own on a terminal, with a bar, for as long as something goes on.

    Whatever is printed meanwhile appears above it. Where standard output is no terminal, or one
    that cannot move its cursor, there is no bar, and `is_shown` is false.
    """

    _display: Progress | None = None  # One for all tasks: two could not share the screen.

    def __init__(self, label: str, total: int | None = None, done: int = 0):
        """Show the line.

        Args:
            label: what goes on.
            total: how many items there are; None where that is not known.
            done: how many of them are done already.
        """
        self._number = None
        if not _can_draw():
            return
        if Task._display is None:
            Task._display = _make_display()
            Task._display.start()
            Task._display.console.show_cursor()  # Else a program that is killed leaves none.
        self._number = Task._display.add_task(label, total=total, completed=done, note="")

    @property
    def is_shown(self) -> bool:
        """Whether there is a bar."""
        return self._number is not None

    def show(self, done: int | None = None, note: str = "") -> None:
        """Say how many items are done, where that is known, and what else there is to say."""
        if self.is_shown:
            Task._display.update(self._number, completed=done, note=note)

    def advance(self) -> None:
        """Say that one more is done."""
        if self.is_shown:
            Task._display.advance(self._number)

    def __exit__(self, *exception: object) -> None:
        """Remove the line."""
        self.close()

    def close(self) -> None:
        """Remove the line, once."""
        if not self.is_shown:
            return
        Task._display.remove_task(self._number)
        self._number = None
        if not Task._display.tasks:
            Task._display.stop()
            Task._display = None


def progress(
    items: Iterable[Item],
    total: int,
    label: str,
    count: Callable[[Item], int] = lambda item: 1,
) -> Iterator[Item]:
    """Pass items on and show how many are done, how fast, and the time left.

    On a terminal there is a bar; elsewhere a line appears about every ten seconds. Rates
    leave out what was spent on compiling meanwhile. Where items are gathered into batches, it is
    the batches' results that are to be passed on: an item that is handed over is not yet done.

    Args:
        items: what is passed on.
        total: how many there are, as `count` counts them.
        label: what they are called.
        count: says for how many an item stands.
    """
    shown = time.perf_counter()
    done = 0
    with Stopwatch() as clock, Task(label, total) as task:
        for item in heard(items):
            done += count(item)
            yield item
            now = time.perf_counter()
            if now - shown > (0.2 if task.is_shown else 10.0) and done < total:
                shown, rate = now, done / max(clock.seconds, 1e-9)
                note = f"{_per_second(rate)}, {duration((total - done) / rate)} left"
                if task.is_shown:
                    task.show(done, note)
                else:
                    say(f"{label}: {done} of {total}, {note}")
    rate = f" ({_per_second(done / clock.seconds)})" if clock.seconds > WORTH_A_RATE else ""
    say(f"{label}: {done} in {duration(clock.seconds)}{rate}{clock.note}")


def heard(items: Iterable[Item]) -> Iterator[Item]:
    """Pass items on, and call between them what is to be called, see `between_items`."""
    for item in items:
        yield item
        for call in _callbacks:
            call()


@contextlib.contextmanager
def between_items(call: Callable[[], None]) -> Iterator[None]:
    """Have something called between the items of every long loop: of `progress`, `heard`."""
    _callbacks.append(call)
    try:
        yield
    finally:
        _callbacks.remove(call)


@contextlib.contextmanager
def working(on: str) -> Iterator[None]:
    """Say what is going on in a block that lasts, and for how long.

    What is over in `WORTH_A_WORD` seconds is not mentioned. On a terminal the seconds are counted;
    elsewhere a line says that it has begun.

    Args:
        on: such as "compiling the train step".
    """
    over, start = threading.Event(), time.perf_counter()

    def tell() -> None:
        if over.wait(WORTH_A_WORD):
            return
        with Task(on) as task:
            if not task.is_shown:
                say(f"{on} ...")
            while task.is_shown and not over.wait(1.0):
                task.show(note=duration(time.perf_counter() - start))

    telling = threading.Thread(target=tell, daemon=True)
    telling.start()
    try:
        yield
    finally:
        over.set()
        telling.join()
    if (seconds := time.perf_counter() - start) > WORTH_A_WORD:
        say(f"{on}: {duration(seconds)}")


class Stopwatch(contextlib.AbstractContextManager):
    """Counts seconds, and apart from them those that XLA compiles in, in whichever thread.

    Attributes:
        compiling: seconds spent on compiling.
    """

    def __init__(self) -> None:
        """Prepare; `with` starts it."""
        self.compiling = 0.0
        self._start, self._end = time.perf_counter(), None

    def __enter__(self) -> "Stopwatch":
        """Start."""
        self._start = time.perf_counter()
        jax.monitoring.register_event_duration_secs_listener(self._hear)
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop."""
        self._end = time.perf_counter()
        jax.monitoring.unregister_event_duration_listener(self._hear)

    @property
    def seconds(self) -> float:
        """Seconds without those of compiling, until now or until the end."""
        return (self._end or time.perf_counter()) - self._start - self.compiling

    @property
    def note(self) -> str:
        """What compiling took, where that is worth a word."""
        worth = self.compiling > WORTH_A_RATE
        return f", and {duration(self.compiling)} to compile" if worth else ""

    def _hear(self, event: str, seconds: float, **facts: object) -> None:
        if event == COMPILED:
            self.compiling += seconds


def _per_second(rate: float) -> str:
    return f"{rate:,.0f} a second" if rate >= 10 else f"{rate:.1f} a second"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, its first column flush left and the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _can_draw() -> bool:
    """Return whether standard output is a terminal that can rewrite its lines."""
    dumb = os.environ.get("TERM", "").lower() in ("", "dumb", "unknown")
    return sys.stdout.isatty() and not dumb and jax.process_index() == 0


class _Count(ProgressColumn):
    """How many items are done, where it is known of how many."""

    def render(self, task: ShownTask) -> Text:
        """Return 5 of 20."""
        return Text("" if task.total is None else f"{task.completed:.0f} of {task.total:.0f}")


def _make_display() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
        _Count(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(highlight=False),
        transient=True,
        expand=True,
        refresh_per_second=5,
    )
