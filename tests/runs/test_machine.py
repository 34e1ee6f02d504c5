"""Each start of a run leaves a line on its machine; what was taken back leaves none."""

import ctypes
import importlib.metadata
import platform
from pathlib import Path

import jax
import pytest

from otter_jax.json_files import read_json_lines
from otter_jax.runs.machine import FILE, give_back_freed_memory
from otter_jax.runs.reporting import Reporter


def test_every_start_has_a_line(tmp_path: Path) -> None:
    for step in (0, 30, 20):  # The checkpoint of step 30 was damaged.
        Reporter(tmp_path, total_steps=40, resume_step=step, batch_size=8).__exit__(None)
    lines = read_json_lines(tmp_path / FILE)
    assert [line["step"] for line in lines] == [0, 20]
    assert lines[0]["devices"] == jax.device_count() == 8
    assert lines[0]["versions"]["numpy"] == importlib.metadata.version("numpy")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries give it back")
def test_freed_memory_goes_back_to_the_system() -> None:
    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096

    blocks = [ctypes.create_string_buffer(b"x" * 2**16) for _ in range(3000)]  # 188 MiB.
    del blocks[:-1]  # The last one stands at the end, and so do all before it, for glibc.
    before = resident()
    give_back_freed_memory()
    assert before - resident() > 100 * 2**20
