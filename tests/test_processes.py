"""Two real processes with four devices each train as one process with eight does."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from otter_jax import config as config_lib
from otter_jax import train

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys
from pathlib import Path
import jax
address, process, config, workdir = sys.argv[1:]
jax.distributed.initialize(address, 2, int(process))
from otter_jax import config as config_lib, train
train.train(config_lib.load(Path(config)), Path(workdir))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_two(config: Path, workdir: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(number), str(config), str(workdir)],
            env=os.environ | flags, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output[-3000:]


@pytest.mark.parametrize("frozen", [True, False])
def test_two_processes_equal_one(tiny_config: Callable, tmp_path: Path, frozen: bool) -> None:
    changes = {"data.augmentation": "none", "total_steps": 4}
    changes |= {f"model.{tower}.frozen": frozen for tower in ("image", "text")}
    config = tiny_config(**changes)
    train.train(config, tmp_path / "one")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_lib.as_dict(config)))
    start_two(path, tmp_path / "two")
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()]
        for name in ("one", "two")
    ]
    for one, two in zip(*lines, strict=True):
        assert one.keys() == two.keys()
        for key, value in one.items():
            if key.startswith("train/"):
                np.testing.assert_allclose(two[key], value, rtol=1e-4, err_msg=key)
    assert (tmp_path / "two" / "results.json").is_file()
    assert (tmp_path / "two" / "figures" / "soft_targets.png").is_file()
