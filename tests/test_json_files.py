"""JSON files are whole, and those of lines go on where a run resumes."""

import json
import os
from pathlib import Path

import pytest

from otter_jax.json_files import JsonLines, read_json, read_json_lines, write_json


def test_resumed_lines_have_no_twin_and_no_half(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path, resume_step=-1)
    for step in (0, 2, 4, 6):
        lines.write(step, {"train/loss": step / 2})
    lines.close()
    with path.open("a") as file:
        file.write('{"step": 8, "train/')  # A run that was killed while it wrote.
    lines = JsonLines(path, resume_step=4)
    lines.write(6, {"train/loss": 3.0})
    lines.close()
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == [0, 2, 4, 6]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, as on Linux")
def test_full_disk_names_the_file(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl", resume_step=-1)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, lines._file.fileno())
    os.close(full)
    with pytest.raises(OSError, match=r"metrics\.jsonl cannot be written: No space left on device"):
        lines.write(1, {"train/loss": 1.0})


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert read_json(path) == {"a": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_lines_that_are_damaged_are_named_wherever_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_json_lines(path) == []
    path.write_bytes(b'{"step": 1}\n\0\0\0\n')  # As after a loss of power.
    for read in (read_json_lines, lambda name: JsonLines(name, resume_step=1)):
        with pytest.raises(
            ValueError,
            match=r"metrics.jsonl is damaged: line 2 is no JSON object.*; remove the line",
        ):
            read(path)
    path.write_bytes(b'{"step": 1}\n')  # As it says.
    assert read_json_lines(path) == [{"step": 1}]
