"""Each start of a run leaves a line on its machine; what was taken back leaves none."""

import importlib.metadata
from pathlib import Path

import jax

from otter_jax.runs.history import read_json_lines
from otter_jax.runs.machine import FILE
from otter_jax.runs.reporting import Reporter


def test_every_start_has_a_line(tmp_path: Path) -> None:
    for step in (0, 30, 20):  # The checkpoint of step 30 was damaged.
        Reporter(tmp_path, total_steps=40, resume_step=step, batch_size=8).__exit__(None)
    lines = read_json_lines(tmp_path / FILE)
    assert [line["step"] for line in lines] == [0, 20]
    assert lines[0]["devices"] == jax.device_count() == 8
    assert lines[0]["versions"]["numpy"] == importlib.metadata.version("numpy")
