"""Durations and progress."""

import pytest

from otter_jax.terminal import duration, progress


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_progress_passes_items_on(capsys: pytest.CaptureFixture) -> None:
    assert list(progress("abc", 3, "letters")) == ["a", "b", "c"]
    assert "letters: 3 in" in capsys.readouterr().out
