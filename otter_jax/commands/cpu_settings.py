"""What makes commands faster on a CPU, and has to be decided before JAX, or even Python, starts.

Convolutions on all cores: XLA gives a convolution to YNNPACK, which computes many shapes on one
core alone (findings/xla_cpu_convolutions_on_one_core.sh). Its other way uses all there are, though
one core is a little slower with it.

Large pages: the memory of a step is new to it at every call, and Linux hands it out in pages of
4 KiB unless the C library asks for 2 MiB: OTTER's step then takes 0.86 of the time, a frozen
tower's features 0.76. glibc reads whether it should ask from the environment, before Python runs.
"""

import contextlib
import glob
import os
import platform
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

FLAGS, LIBRARY = "XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type"
ON_ALL_CORES = f"{LIBRARY}=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
VARIABLE = "GLIBC_TUNABLES"
LARGE_PAGES = "glibc.malloc.hugetlb"
STARTED_ANEW = "OTTER_JAX_STARTED_ANEW"  # So that it happens once, whatever becomes of the other.
FIRST_GLIBC = (2, 35)  # That knows it.
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")


def use_cpu_well() -> None:
    """Do both, where they bring anything; a program calls it before it does anything else."""
    convolve_on_all_cores(os.environ, len(all_cores()))
    use_large_pages()


def convolve_on_all_cores(environment: MutableMapping[str, str], number: int) -> None:
    """Have XLA compute convolutions on all cores of a CPU, as many as `number` says.

    Nothing happens if the environment says anything of it or names a file of flags, or on machines
    with a GPU or TPU unless JAX_PLATFORMS is cpu. A program with one core takes back what it
    inherits from one with several.
    """
    told = environment.get(FLAGS, "").strip()
    if number == 1 and ON_ALL_CORES in told.split():
        environment[FLAGS] = told.replace(ON_ALL_CORES, "").strip()
        return
    are_flags = not told or told.startswith("--")
    if number > 1 and are_flags and LIBRARY not in told and _on_cpu(environment):
        environment[FLAGS] = f"{told} {ON_ALL_CORES}".strip()


def all_cores() -> list[int]:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def use_large_pages() -> None:
    """Start this program anew, in the same process, with large pages, where these bring anything.

    Nothing happens if the environment says anything of large pages, on machines with a GPU or TPU
    unless JAX_PLATFORMS is cpu, under a debugger, and where Python was not started to run this
    program.
    """
    with contextlib.suppress(OSError, ValueError):  # It would only have been faster.
        if _can_start_anew() and _brings_anything(os.environ):
            told = os.environ.get(VARIABLE)
            asked = f"{told}:{LARGE_PAGES}=1" if told else f"{LARGE_PAGES}=1"
            environment = {**os.environ, VARIABLE: asked, STARTED_ANEW: "1"}
            os.execve(sys.executable, sys.orig_argv, environment)


def _can_start_anew() -> bool:
    """Return whether these arguments start the same program: not in a notebook, nor piped in.

    A debugger or an interactive session would lose a program that starts anew.
    """
    if not sys.argv or not sys.orig_argv or not sys.executable:
        return False
    program, *arguments = sys.orig_argv[-len(sys.argv) :]
    is_started = program in (sys.argv[0], "otter_jax") and arguments == sys.argv[1:]
    is_watched = sys.gettrace() is not None or "pydevd" in sys.modules or sys.flags.inspect
    is_here = Path(sys.argv[0]).is_file() and os.path.samefile(sys.executable, "/proc/self/exe")
    return is_started and is_here and not is_watched


def _brings_anything(environment: Mapping[str, str]) -> bool:
    is_told = STARTED_ANEW in environment or LARGE_PAGES in environment.get(VARIABLE, "")
    if sys.platform != "linux" or is_told:
        return False
    # Large pages for whoever asks: elsewhere all have them, or nobody.
    return _on_cpu(environment) and "[madvise]" in SETTING.read_text() and _has_glibc()


def _on_cpu(environment: Mapping[str, str]) -> bool:
    return environment.get("JAX_PLATFORMS") == "cpu" or not any(map(glob.glob, ACCELERATORS))


def _has_glibc() -> bool:
    name, version = platform.libc_ver()
    numbers = [int(each) for each in version.split(".")[:2] if each.isdigit()]
    return name == "glibc" and tuple(numbers) >= FIRST_GLIBC
