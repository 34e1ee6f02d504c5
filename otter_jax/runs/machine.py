"""Where a run is computed: devices, processes and versions, a line for every start; its memory."""

import ctypes
import importlib.metadata
import os
import platform
import sys
from typing import Any

import jax

FILE = "machine.jsonl"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "ott-jax")


def describe_machine() -> dict[str, Any]:
    """Return devices, processes and versions, such as {"devices": 8, "device": "TPU v5e", ...}."""
    versions = {"python": platform.python_version(), "otter_jax": _version("otter_jax")}
    return {
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": versions | {name: _version(name) for name in PACKAGES},
    }


def give_back_freed_memory() -> None:
    """Have the C library give the system back what was freed, where it is glibc.

    Of what a compiler took, glibc keeps nearly all for later: 0.8 GiB after OTTER's step.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # Run from a checkout.
        return "not installed"
