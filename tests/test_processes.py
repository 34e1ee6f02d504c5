"""Two real processes with four devices each train as one process with eight does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from otter_jax import config as config_lib
from otter_jax import processes, train
from otter_jax.checkpoints import Checkpoints

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys
from pathlib import Path
from otter_jax import config as config_lib, interruption, processes, train
address, process, config, workdir = sys.argv[1:]
processes.join(address, 2, int(process))
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


# Each process has what it was given as the fingerprint of its data, and the second another NumPy.
AGREEMENT = """
import sys
from importlib import metadata
from pathlib import Path
from otter_jax import config as config_lib, processes
address, process, config, data = sys.argv[1:]
processes.join(address, 2, int(process))
facts = processes.facts(config_lib.load(Path(config)), data)
processes.refuse_differences(facts)
print("both are the same")
other = {"numpy": "1.0", "config.seed": "3", "fingerprint of config.data.train": "other"}
try:
    processes.refuse_differences(facts | (other if process == "1" else {}))
except ValueError as error:
    print(error)
"""


def start_two(*arguments: Path | Sequence[Path], program: str = PROGRAM) -> list[subprocess.Popen]:
    """Starts both with these arguments; a list has one for each of them."""
    address = f"127.0.0.1:{free_port()}"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHONPATH": str(ROOT)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, address, str(number)]
            + [str(each if isinstance(each, Path) else each[number]) for each in arguments],
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
    config = tiny_config(**changes, fsdp=not frozen)
    config.model.text.overrides.vocab_size = 2048  # So that there is an array worth splitting.
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


def test_what_differs_between_processes_is_named(tiny_config: Callable, tmp_path: Path) -> None:
    config = write_config(tiny_config(seed=5), tmp_path)
    for said in outputs(start_two(config, Path("data"), program=AGREEMENT)):
        same, differing = said.splitlines()[-2:]
        assert same == "both are the same"
        assert differing == (
            "the processes differ in config.seed (5 on 0; 3 on 1), fingerprint of "
            f"config.data.train (data on 0; other on 1), numpy ({np.__version__} on 0; 1.0 on 1): "
            "they must be started with the same command, packages and data"
        )


@pytest.mark.parametrize(
    ("key", "first", "second"),
    [
        ("seed", "the processes differ in config.seed (0 on 0; 1 on 1)", None),
        ("data.train", "process 1 has stopped:", "csv:/nowhere.csv"),
    ],
)
def test_both_end_where_one_is_started_otherwise(
    tiny_config: Callable, tmp_path: Path, key: str, first: str, second: str | None
) -> None:
    configs = []
    for number, changes in enumerate(({}, {key: second or 1})):
        (tmp_path / str(number)).mkdir()
        configs.append(write_config(tiny_config(**changes), tmp_path / str(number)))
    said = outputs(start_two(configs, tmp_path / "run"), status=1)
    assert first in said[0]
    assert (second or first) in said[1]
    assert not (tmp_path / "run").exists()


def test_nobody_to_join_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*processes.COORDINATOR, *processes.LAUNCHERS):
        monkeypatch.delenv(name, raising=False)
    # Why JAX cannot join depends on whether an earlier test has made it compute.
    with pytest.raises(ValueError, match=r"cannot be found \(.*: nothing; needed"):
        processes.join()
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "here:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ValueError, match=r"'two'.*JAX_COORDINATOR_ADDRESS=here:1234, JAX_NUM_PRO"):
        processes.join(process_id=0)


def test_determinism_is_asked_of_xla_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_other=1")
    for _ in range(2):
        processes.make_deterministic()
    assert os.environ["XLA_FLAGS"] == "--xla_other=1 --xla_gpu_deterministic_ops=true"


def test_determinism_that_xla_was_not_asked_for_is_refused(
    tiny_config: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(deterministic=True)
    monkeypatch.setenv("XLA_FLAGS", "")
    processes.refuse_not_deterministic(config)  # On a CPU it need not be asked.
    monkeypatch.setattr(processes.jax, "default_backend", lambda: "gpu")
    with pytest.raises(ValueError, match="set XLA_FLAGS=--xla_gpu_deterministic_ops=true before"):
        processes.refuse_not_deterministic(config)
    processes.make_deterministic()
    processes.refuse_not_deterministic(config)


def test_a_single_process_agrees_with_itself() -> None:
    assert processes.exchange("words") == ["words"]
    processes.refuse_differences({"a": "1"})
    with pytest.raises(OSError, match="gone"), processes.refusing_together():
        raise OSError("gone")
