"""Two real processes with four devices each train as one process with eight does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from otter_jax import config as config_lib
from otter_jax import train
from otter_jax.checkpoints import Checkpoints

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys
from pathlib import Path
import jax
address, process, config, workdir = sys.argv[1:]
jax.distributed.initialize(address, 2, int(process))
from otter_jax import config as config_lib, interruption, train
try:
    train.train(config_lib.load(Path(config)), Path(workdir))
except interruption.Interrupted as stopped:
    print(stopped)
    sys.exit(stopped.status)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_two(config: Path, workdir: Path) -> list[subprocess.Popen]:
    address = f"127.0.0.1:{free_port()}"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHONPATH": str(ROOT)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(number), str(config), str(workdir)],
            env=os.environ | flags, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(2)
    ]  # fmt: skip


def outputs(processes: list[subprocess.Popen], status: int = 0) -> list[str]:
    """What the processes have said at their end, which must be with this exit status."""
    said = []
    for process in processes:
        said.append(process.communicate(timeout=300)[0])
        assert process.returncode == status, said[-1][-3000:]
    return said


def write_config(config: ConfigDict, folder: Path) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(config_lib.as_dict(config)))
    return path


@pytest.mark.parametrize("frozen", [True, False])
def test_two_processes_equal_one(tiny_config: Callable, tmp_path: Path, frozen: bool) -> None:
    changes = {"data.augmentation": "none", "total_steps": 4}
    changes |= {f"model.{tower}.frozen": frozen for tower in ("image", "text")}
    config = tiny_config(**changes)
    train.train(config, tmp_path / "one")
    outputs(start_two(write_config(config, tmp_path), tmp_path / "two"))
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


def test_a_signal_to_one_of_two_stops_both_after_the_same_step(
    tiny_config: Callable, tmp_path: Path
) -> None:
    changes = {"data.augmentation": "none", "total_steps": 100_000, "log_every_steps": 10}
    changes |= {"model.image.frozen": True, "model.text.frozen": True}
    processes = start_two(write_config(tiny_config(**changes), tmp_path), tmp_path / "run")
    while "train/loss" not in read_text(tmp_path / "run" / "metrics.jsonl"):
        assert all(each.poll() is None for each in processes), outputs(processes)
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGINT)
    first = outputs(processes[:1], status=143)[0].splitlines()[-1]
    second = outputs(processes[1:], status=130)[0].splitlines()[-1]
    step = int(first.split("step ")[1].split(";")[0])
    assert first == f"stopped by SIGTERM after step {step}; the same command goes on from there"
    assert f"after step {step};" in second
    with Checkpoints(tmp_path / "run" / "checkpoints") as saved:
        assert saved.latest_step == step


def read_text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
