"""A command whose memory comes in large pages, which is decided where its process starts.

On a CPU the memory of a step is new to it at every call, and Linux hands it out in pages of 4 KiB
unless the C library asks for 2 MiB: OTTER's step then takes 0.86 of the time, a frozen tower's
features 0.76. glibc reads whether it should ask from the environment, before Python runs.
"""

import glob
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "GLIBC_TUNABLES"
LARGE_PAGES = "glibc.malloc.hugetlb"
FIRST_GLIBC = (2, 35)  # That knows it.
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")


def use_large_pages() -> None:
    """Start this program anew, in the same process, with large pages, where these bring anything.

    Does nothing if the environment says anything of them, on machines with a GPU or TPU unless
    JAX_PLATFORMS is cpu, under a debugger, and where Python was not started to run this program.
    """
    if _runs_a_program() and _brings_anything(os.environ):
        told = os.environ.get(VARIABLE)
        asked = f"{told}:{LARGE_PAGES}=1" if told else f"{LARGE_PAGES}=1"
        os.execve(sys.executable, sys.orig_argv, {**os.environ, VARIABLE: asked})


def _runs_a_program() -> bool:
    """Return whether Python was started with these arguments: not in a notebook, nor in a test.

    A debugger would lose a program that starts anew.
    """
    program, *arguments = sys.orig_argv[-len(sys.argv) :]
    is_started = program in (sys.argv[0], "otter_jax") and arguments == sys.argv[1:]
    return is_started and sys.gettrace() is None and "pydevd" not in sys.modules


def _brings_anything(environment: Mapping[str, str]) -> bool:
    if sys.platform != "linux" or LARGE_PAGES in environment.get(VARIABLE, ""):
        return False
    on_cpu = environment.get("JAX_PLATFORMS") == "cpu" or not any(map(glob.glob, ACCELERATORS))
    # Large pages for whoever asks: elsewhere all have them, or nobody.
    return on_cpu and SETTING.is_file() and "[madvise]" in SETTING.read_text() and _has_glibc()


def _has_glibc() -> bool:
    name, version = platform.libc_ver()
    numbers = [int(each) for each in version.split(".")[:2] if each.isdigit()]
    return name == "glibc" and tuple(numbers) >= FIRST_GLIBC
