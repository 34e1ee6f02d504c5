"""Keeping compiled programs between starts, so that a run that resumes need not compile again.

This is JAX's persistent compilation cache. Its keys hold the program, the versions of JAX and of
the compiler, and the accelerator; not all that tells one processor from another, for which machine
code is made on a CPU. So every kind of processor has a folder of its own: a home folder may be
shared between machines.
"""

import hashlib
import os
import platform
from pathlib import Path

import jax

from otter_jax.terminal import say

MOST_BYTES = 4 * 2**30  # Then what has not been used for the longest time goes.
SHORTEST_SECONDS = 1.0  # Of compilation: what is quicker is not kept.


def keep_compiled_programs(where: str) -> None:
    """Have JAX keep what it compiles from here on, and use what it has kept.

    Somebody's own choice, JAX_COMPILATION_CACHE_DIR or jax_compilation_cache_dir, stays.

    Args:
        where: a folder; "auto" for one in the user's cache, and "none" to keep nothing.

    Raises:
        ValueError: `where` is empty.
    """
    if not where:
        raise ValueError("config.compiled_programs is empty: name a folder, auto or none")
    if jax.config.jax_compilation_cache_dir is not None or where == "none":
        return
    folder = (cache_folder() if where == "auto" else Path(where).expanduser()) / machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        say(f"compiled programs are not kept, {folder} cannot be written: {error}")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST_SECONDS)


def cache_folder() -> Path:
    """Return where programs keep what can be made again: $XDG_CACHE_HOME, or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "otter_jax" / "compiled"


def machine() -> str:
    """Return a name for all machines whose processors run the same machine code."""
    features = platform.machine()
    processors = Path("/proc/cpuinfo")
    if processors.is_file():  # Linux; elsewhere home folders are seldom shared.
        lines = processors.read_text(encoding="utf-8", errors="replace").splitlines()
        features += "".join(sorted({x for x in lines if x.startswith(("flags", "Features"))}))
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"
