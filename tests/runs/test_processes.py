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
from conftest import flags_for, write_shard
from ml_collections import ConfigDict

from otter_jax import config as config_lib
from otter_jax import train
from otter_jax.runs import processes
from otter_jax.runs.checkpoints import Checkpoints

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
from otter_jax import config as config_lib, evaluate, train
from otter_jax.runs import interruption, processes
address, process, config, workdir = sys.argv[1:]
processes.join(address, 2, int(process))
try:
    train.train(config_lib.load_config(Path(config)), Path(workdir))
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
from otter_jax import config as config_lib
from otter_jax.runs import processes
address, process, config, data = sys.argv[1:]
processes.join(address, 2, int(process))
facts = processes.facts(config_lib.load_config(Path(config)), {"config.data.train": data})
processes.refuse_differences(facts)
print("both are the same")
other = {"numpy": "1.0", "config.seed": "3", "fingerprint of config.data.train": "other"}
try:
    processes.refuse_differences(facts | (other if process == "1" else {}))
except ValueError as error:
    print(error)
"""


def start_two(
    *arguments: Path | Sequence[Path], program: str = PROGRAM, around_second: Sequence[str] = ()
) -> list[subprocess.Popen]:
    """Start both with these arguments; a list has one for each of them.

    The second one is started by the command `around_second`.
    """
    address = f"127.0.0.1:{free_port()}"
    variables = flags_for(devices=4) | {"PYTHONPATH": str(ROOT)}
    wrappers = ((), around_second)
    return [
        subprocess.Popen(
            [*wrappers[number], sys.executable, "-c", program, address, str(number)]
            + [str(each if isinstance(each, Path) else each[number]) for each in arguments],
            env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(2)
    ]  # fmt: skip


def outputs(processes: list[subprocess.Popen], status: int = 0) -> list[str]:
    """Return what the processes have said at their end, which must be with this exit status."""
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


# As PROGRAM, but the second process gets SIGTERM while it evaluates the first set after a step.
EVALUATING = PROGRAM.replace(
    "processes.join(address, 2, int(process))",
    """processes.join(address, 2, int(process))
import os, signal
from otter_jax.evaluation.pair_set import PairSet
evaluate, evaluated = PairSet.evaluate, []
def note(self, *arguments):
    evaluated.append(self.name)
    if len(evaluated) == 3 and process == "1":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)  # The service that listens tells the others.
    return evaluate(self, *arguments)
PairSet.evaluate = note""",
).replace("import sys", "import sys, time")


def test_a_signal_during_an_evaluation_is_heeded_at_the_next_set(
    tiny_config: Callable, tmp_path: Path, shape_pairs: list
) -> None:
    sets = []
    for number in range(2):
        write_shard(tmp_path / f"{number}.tar", shape_pairs[:16])
        sets.append(f"webdataset:{tmp_path / f'{number}.tar'}")
    changes = {"data.augmentation": "none", "evaluate.sets": tuple(sets)}
    changes |= {"model.image.frozen": True, "model.text.frozen": True}
    changes |= {"evaluate.every_steps": 2, "checkpoint.every_steps": 100}
    config = write_config(tiny_config(**changes), tmp_path)
    for said in outputs(start_two(config, tmp_path / "run", program=EVALUATING), status=143):
        assert "stopped by SIGTERM after step 2;" in said.splitlines()[-1]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [
        0,
        2,
    ]  # Two sets before training; none after step 2.
    with Checkpoints(tmp_path / "run" / "checkpoints") as saved:
        assert saved.latest_step == 2


@pytest.mark.parametrize(("share", "status"), [(0.1, 0), (0.05, 1)])
def test_bad_records_of_all_processes_count(
    tiny_config: Callable, tmp_path: Path, shape_pairs: list, share: float, status: int
) -> None:
    broken = [(b"broken", "a red bar")] * 4
    write_shard(tmp_path / "0.tar", [*shape_pairs[:44], *broken])
    changes = {"data.train": f"webdataset:{tmp_path / '0.tar'}", "data.max_bad_share": share}
    changes |= {"total_steps": 3, "log_every_steps": 3, "evaluate.sets": ()}  # One epoch.
    changes |= {"model.image.frozen": True, "model.text.frozen": True, "data.cache_features": False}
    config = write_config(tiny_config(**changes), tmp_path)
    said = outputs(start_two(config, tmp_path / "run"), status=status)
    if status:
        assert all("4 of 48 records (8.3%) cannot be used" in each for each in said)
    found = json.loads((tmp_path / "run" / "data.json").read_text())["train"]
    assert list(found["unreadable"]) == [f"{n:05d} (record {n})" for n in range(44, 48)]


def test_both_refuse_to_evaluate_where_one_is_started_otherwise(
    tiny_config: Callable, tmp_path: Path
) -> None:
    changes = {"data.augmentation": "none", "total_steps": 1}
    changes |= {"model.image.frozen": True, "model.text.frozen": True}
    train.train(tiny_config(**changes), tmp_path / "run")
    configs = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        other = tiny_config(**changes, **{"evaluate.batch_size": 8 + 8 * number})
        configs.append(write_config(other, tmp_path / str(number)))
    program = PROGRAM.replace("train.train", "evaluate.evaluate")
    for said in outputs(start_two(configs, tmp_path / "run", program=program), status=1):
        assert "the processes differ in config.evaluate.batch_size (8 on 0; 16 on 1)" in said


def test_what_processes_have_found_is_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.merge({"a": "1"}) == {"a": "1"}
    monkeypatch.setattr(processes.jax, "process_count", lambda: 3)
    others = ["", '{"a": "2", "b": "3"}']
    monkeypatch.setattr(processes, "exchange", lambda said: [said, *others])
    assert processes.merge({"a": "1"}) == {"a": "1", "b": "3"}
    assert processes.merge({}) == {"a": "2", "b": "3"}


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


def test_flags_are_added_to_flags_but_not_to_the_name_of_a_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XLA_FLAGS", " --a='x  y'")
    processes.add_flag("--b=1")
    processes.add_flag("--b=1")
    assert os.environ["XLA_FLAGS"] == "--a='x  y' --b=1"
    monkeypatch.setenv("XLA_FLAGS", "/folder/flags")
    with pytest.raises(ValueError, match="XLA_FLAGS=/folder/flags names a file"):
        processes.add_flag("--b=1")


def test_a_single_process_agrees_with_itself() -> None:
    assert processes.exchange("words") == ["words"]
    processes.refuse_differences({"a": "1"})
    with pytest.raises(OSError, match="gone"), processes.refusing_together():
        raise OSError("gone")
