"""Durations, progress, bars, what is said while something lasts, and a clock without compiling."""

import contextlib
import os
import pty
import time
from collections.abc import Callable, Iterator

import jax
import pytest

from otter_jax import terminal
from otter_jax.terminal import (
    Stopwatch,
    Task,
    between_items,
    duration,
    heard,
    progress,
    say,
    working,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_progress_passes_items_on(capsys: pytest.CaptureFixture) -> None:
    assert list(progress("abc", 3, "letters")) == ["a", "b", "c"]
    assert capsys.readouterr().out == "letters: 3 in 0 s\n"  # Too short for a rate.


def test_progress_counts_what_an_item_stands_for(capsys: pytest.CaptureFixture) -> None:
    assert list(progress(["abc", "", "de"], 5, "letters", count=len)) == ["abc", "", "de"]
    assert capsys.readouterr().out == "letters: 5 in 0 s\n"


def test_what_is_asked_for_is_called_between_items() -> None:
    called = []
    with between_items(lambda: called.append(len(called))):
        assert list(progress("ab", 2, "letters")) == ["a", "b"]
    assert list(progress("ab", 2, "letters")) == ["a", "b"]
    assert called == [0, 1]
    with between_items(lambda: called.append("heard")):
        assert list(heard("ab")) == ["a", "b"]
    assert called == [0, 1, "heard", "heard"]


def compile_for(seconds: float) -> None:
    """Have JAX report what it reports after compiling."""
    jax.monitoring.record_event_duration_secs(terminal.COMPILED, seconds)


def test_compiling_is_no_part_of_a_rate(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: now)
    for number, _ in enumerate(progress(range(40), 40, "images")):
        now += 1.0
        if number == 5:
            now += 60.0
            compile_for(60.0)
    out = capsys.readouterr().out
    assert "images: 17 of 40, 1.0 a second, 23 s left" in out
    assert out.endswith("images: 40 in 40 s (1.0 a second), and 1 min 00 s to compile\n")
    compile_for(60.0)  # Nobody listens any more.


def test_jax_reports_what_it_compiles() -> None:
    with Stopwatch() as clock:
        jax.jit(lambda x: x * 3 + len("of this test alone")).lower(1.0).compile()
    assert clock.compiling > 0


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_what_lasts_is_said_and_for_how_long(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(terminal, "WORTH_A_WORD", 0.1)
    with working("compiling the train step"):
        time.sleep(seconds)
    expected = ["compiling the train step ...", "compiling the train step: 0 s"]
    assert capsys.readouterr().out.splitlines() == (expected if seconds else [])


@contextlib.contextmanager
def on_a_screen(monkeypatch: pytest.MonkeyPatch, kind: str) -> Iterator[Callable[[], str]]:
    """Make standard output a terminal, 80 letters wide; give what was written on it by now."""
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setenv("COLUMNS", "80")
    with os.fdopen(theirs, "w", buffering=1) as file, contextlib.redirect_stdout(file):

        def read() -> str:
            said = b""
            while not said.endswith(b"after\r\n"):  # The last line; it comes in pieces.
                said += os.read(ours, 65536)
            return said.decode()

        yield read
    os.close(ours)


def test_a_terminal_has_a_bar_a_task_and_lines_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with on_a_screen(monkeypatch, "xterm") as screen:
        with Task("training", 20, 5) as outer:
            assert outer.is_shown
            outer.advance()
            outer.show(note="0.5 loss")
            assert list(progress(iter("ab"), 2, "[b]images")) == ["a", "b"]
            say("a line")
            Task._display.refresh()
        say("after")
        said = screen()
    assert "training" in said and "6 of 20" in said and "0.5 loss" in said
    assert "[b]images: 2 in 0 s" in said and "a line" in said
    assert said.endswith("after\r\n") and Task._display is None
    assert said.rfind("\x1b[?25h") > said.rfind("\x1b[?25l")  # The cursor is there again.


def test_a_terminal_that_cannot_move_its_cursor_has_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    with on_a_screen(monkeypatch, "dumb") as screen:
        with Task("training", 20) as task:
            assert not task.is_shown
            task.show(3, "nothing")
        say("after")
        assert screen() == "after\r\n"
