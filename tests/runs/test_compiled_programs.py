"""Compiled programs are kept between starts, in a folder of the kind of processor."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from otter_jax.runs import compiled_programs

# A program that compiles something before, as notebooks do, then something to be kept.
PROGRAM = """
import sys
import jax
from otter_jax.runs import compiled_programs
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
jax.jit(lambda x: x + 1)(1.0)
compiled_programs.SHORTEST_SECONDS = 0.0
compiled_programs.keep_compiled_programs(sys.argv[1])
jax.jit(lambda x: jax.numpy.sin(x) @ x)(jax.numpy.ones((3, 3)))
print(sum("cache_hits" in name for name in hits))
"""


def start(folder: Path, **environment: str) -> int:
    """Run the program in a process; return how many programs it found compiled."""
    own = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    done = subprocess.run(
        command, env=own | environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_a_second_start_finds_what_the_first_compiled(tmp_path: Path) -> None:
    folder = tmp_path / "compiled"
    assert start(folder) == 0
    (kept,) = folder.iterdir()
    assert kept.name == compiled_programs.machine()
    assert start(folder) > 0


def test_what_is_damaged_is_compiled_again(tmp_path: Path) -> None:
    folder = tmp_path / "compiled"
    start(folder)
    for path in folder.rglob("*-cache"):
        path.write_bytes(path.read_bytes()[:40])
    start(folder)


def test_a_choice_of_the_users_own_stays(tmp_path: Path) -> None:
    start(tmp_path / "ours", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "theirs"))
    assert not (tmp_path / "ours").exists()


def test_a_folder_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", None, raising=False)
    (tmp_path / "file").write_text("no folder")
    compiled_programs.keep_compiled_programs(str(tmp_path / "file"))
    assert f"compiled programs are not kept, {tmp_path / 'file'}" in capsys.readouterr().out


def test_processors_of_other_features_have_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for flags in ("avx2", "avx2 avx512f", "avx2"):
        text = f"processor: 0\nflags\t\t: {flags}\nprocessor: 1\nflags\t\t: {flags}\n"
        monkeypatch.setattr(Path, "is_file", lambda path: True)
        monkeypatch.setattr(Path, "read_text", lambda path, text=text, **_: text)
        names.add(compiled_programs.machine())
    assert len(names) == 2
