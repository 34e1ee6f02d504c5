"""Shared fixtures: eight simulated devices, double precision on request, the --golden option."""

import os

# Before jax is imported: the sharded paths need several devices on any machine.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Iterator  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", default=None, help="folder of .npz files for test_golden.py")


@pytest.fixture
def double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield
