"""Programs that start themselves anew with large pages; convolutions on all cores."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from otter_jax.commands import cpu_settings

PROGRAM = """
import os, sys
from pathlib import Path
from otter_jax.commands import cpu_settings
cpu_settings.SETTING, cpu_settings.ACCELERATORS = Path(sys.argv[1]), (sys.argv[2],)
{before}
cpu_settings.use_large_pages()
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[3:], sys.flags.utf8_mode)
"""


def started(
    folder: Path, setting: str = "always [madvise] never", before: str = "", **environment: str
) -> tuple[bool, str]:
    """Run a program; return whether its process is still the one started, and what it says."""
    program, pages, device = (folder / name for name in ("program.py", "enabled", "device0"))
    program.write_text(PROGRAM.format(before=before))
    pages.write_text(setting)
    command = [sys.executable, "-Xutf8", program, pages, device, "two words", "--x=(1,)"]
    inherited = {name: text for name, text in os.environ.items() if name != "GLIBC_TUNABLES"}
    inherited.pop("JAX_PLATFORMS", None)
    process = subprocess.Popen(
        command, env=inherited | environment, stdout=subprocess.PIPE, text=True
    )
    said, _ = process.communicate(timeout=60)
    number, rest = said.split(" ", 1)
    return int(number) == process.pid, rest.strip()


needs_glibc = pytest.mark.skipif(
    not cpu_settings._has_glibc(), reason="large pages are asked for by glibc 2.35 and later"
)


@needs_glibc
def test_a_program_starts_anew_with_its_arguments(tmp_path: Path) -> None:
    arguments = "['two words', '--x=(1,)'] 1"
    assert started(tmp_path) == (True, f"glibc.malloc.hugetlb=1 {arguments}")
    told = "glibc.malloc.arena_max=4"
    expected = (True, f"{told}:glibc.malloc.hugetlb=1 {arguments}")
    assert started(tmp_path, GLIBC_TUNABLES=told) == expected


@needs_glibc
def test_what_the_environment_says_of_large_pages_is_left(tmp_path: Path) -> None:
    for told in ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=2:glibc.malloc.arena_max=4"):
        _, said = started(tmp_path, GLIBC_TUNABLES=told)
        assert said.startswith(f"{told} [")


@needs_glibc
@pytest.mark.parametrize("setting", ["[always] madvise never", "always madvise [never]"])
def test_where_nobody_is_asked_nothing_starts_anew(tmp_path: Path, setting: str) -> None:
    assert started(tmp_path, setting)[1].startswith("None [")


@needs_glibc
def test_a_machine_with_an_accelerator_keeps_its_pages_unless_the_cpu_is_wanted(
    tmp_path: Path,
) -> None:
    (tmp_path / "device0").touch()
    assert started(tmp_path)[1].startswith("None [")
    assert started(tmp_path, JAX_PLATFORMS="cpu")[1].startswith("glibc.malloc.hugetlb=1 [")


@needs_glibc
@pytest.mark.parametrize(
    "other",
    [
        "sys.argv = sys.argv[:4]",
        "sys.argv = ['main.py', *sys.argv[1:]]",
        "sys.settrace(lambda *_: None)",
        "sys.modules['pydevd'] = sys",
        "sys.argv, sys.orig_argv = sys.argv[:], []",
        "sys.executable = ''",
        "cpu_settings.SETTING = Path('/proc/1/nothing')",
    ],
)
def test_notebooks_debuggers_and_odd_starts_are_not_started_anew(
    tmp_path: Path, other: str
) -> None:
    assert started(tmp_path, before=other)[1].startswith("None [")


@needs_glibc
def test_a_program_that_sets_the_variable_itself_starts_anew_once(tmp_path: Path) -> None:
    _, said = started(tmp_path, before="os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.arena_max=4'")
    assert said.startswith("glibc.malloc.arena_max=4 [")


@needs_glibc
def test_a_program_that_is_piped_in_is_run(tmp_path: Path) -> None:
    program = PROGRAM.format(before="sys.argv[3:] = []")
    (tmp_path / "enabled").write_text("[madvise]")
    inherited = {name: text for name, text in os.environ.items() if name != "GLIBC_TUNABLES"}
    found = subprocess.run(
        [sys.executable, "-", tmp_path / "enabled", tmp_path / "device0"],
        input=program, env=inherited, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert " None []" in found.stdout


@needs_glibc
@pytest.mark.parametrize("program", [["main.py", "--help"], ["-m", "otter_jax", "--help"]])
def test_the_programs_of_the_package_run(program: list[str]) -> None:
    inherited = {name: text for name, text in os.environ.items() if name != "GLIBC_TUNABLES"}
    root = Path(cpu_settings.__file__).parents[2]
    found = subprocess.run(
        [sys.executable, *program], env=inherited, cwd=root, capture_output=True, text=True
    )
    assert found.returncode == 0 and "usage: " in found.stdout


CONVOLUTION = """
import os
from otter_jax.commands import cpu_settings
cpu_settings.convolve_on_all_cores(os.environ, number={number})
import jax, jax.numpy as jnp
convolve = jax.jit(lambda x, kernel: jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
program = convolve.lower(jnp.ones((4, 8, 8, 16)), jnp.ones((3, 3, 16, 16))).compile().as_text()
print("ynn_fusion" in program, os.environ.get("XLA_FLAGS"))
"""


def told(number: int, **environment: str) -> str | None:
    """Return what XLA is told of convolutions on so many cores."""
    cpu_settings.convolve_on_all_cores(environment, number)
    return environment.get("XLA_FLAGS")


def test_xla_reads_what_it_is_told_of_convolutions() -> None:
    other = "--xla_cpu_multi_thread_eigen=true"
    found = subprocess.run(
        [sys.executable, "-c", CONVOLUTION.format(number=2)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": other},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.strip() == f"False {other} {cpu_settings.ON_ALL_CORES}"


def test_convolutions_are_left_to_one_core_and_to_whoever_says_anything_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, other = cpu_settings.ON_ALL_CORES, f"{cpu_settings.LIBRARY}=LIBRARY_FUSION_TYPE_DOT"
    monkeypatch.setattr(cpu_settings, "ACCELERATORS", ())
    assert told(1) is None and told(2) == ours and told(2, XLA_FLAGS=ours) == ours
    assert told(2, XLA_FLAGS=other) == other
    assert told(2, XLA_FLAGS="/a/file of flags") == "/a/file of flags"
    assert told(2, XLA_FLAGS=" --a='x  y' ") == f"--a='x  y' {ours}"
    assert told(1, XLA_FLAGS=f"--a --b {ours}") == "--a --b"


def test_a_machine_with_an_accelerator_is_told_nothing_unless_the_cpu_is_wanted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cpu_settings, "ACCELERATORS", (str(tmp_path),))
    assert told(2) is None
    assert told(2, JAX_PLATFORMS="cpu") == cpu_settings.ON_ALL_CORES
