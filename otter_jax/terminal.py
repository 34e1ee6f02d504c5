"""What a program says on the screen: lines, durations, and how far a long loop has come."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import jax
import jax.monitoring

Item = TypeVar("Item")

COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX's event, with its seconds.
WORTH_A_RATE = 1.0  # Seconds: what takes less has none.
WORTH_A_WORD = 2.0  # Seconds.
CLEAR = "\r\033[K"  # Has a terminal begin its line anew.
_callbacks: list[Callable[[], None]] = []


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


def progress(
    items: Iterable[Item],
    total: int,
    label: str,
    count: Callable[[Item], int] = lambda item: 1,
) -> Iterator[Item]:
    """Pass items on and show how many are done, how fast, and the time left.

    On a terminal one line is rewritten; elsewhere a line appears about every ten seconds. Rates
    leave out what was spent on compiling meanwhile. Where items are gathered into batches, it is
    the batches' results that are to be passed on: an item that is handed over is not yet done.

    Args:
        items: what is passed on.
        total: how many there are, as `count` counts them.
        label: what they are called.
        count: says for how many an item stands.
    """
    shown = time.perf_counter()
    live = _is_live()
    done = 0
    with Stopwatch() as clock:
        for item in heard(items):
            done += count(item)
            yield item
            now = time.perf_counter()
            if now - shown > (0.2 if live else 10.0) and done < total:
                shown, rate = now, done / max(clock.seconds, 1e-9)
                left = duration((total - done) / rate)
                line = f"{label}: {done} of {total}, {_per_second(rate)}, {left} left"
                print(f"{CLEAR}{line}", end="", flush=True) if live else say(line)
    if live:
        print(CLEAR, end="")
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
    live, over, start = _is_live(), threading.Event(), time.perf_counter()

    def tell() -> None:
        wait = WORTH_A_WORD
        while not over.wait(wait) and (live or wait == WORTH_A_WORD):
            wait = 1.0
            line = f"{on} ... {duration(time.perf_counter() - start)}"
            print(f"{CLEAR}{line}", end="", flush=True) if live else say(f"{on} ...")

    telling = threading.Thread(target=tell, daemon=True)
    telling.start()
    try:
        yield
    finally:
        over.set()
        telling.join()
    if (seconds := time.perf_counter() - start) > WORTH_A_WORD:
        say(f"{CLEAR if live else ''}{on}: {duration(seconds)}")


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


def _is_live() -> bool:
    return sys.stdout.isatty() and jax.process_index() == 0


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
