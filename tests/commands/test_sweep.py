"""A sweep runs every combination once, goes on where one fails, and compares what has finished."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from otter_jax import config as config_lib
from otter_jax.commands import main, sweep
from otter_jax.runs.interruption import Interrupted


def test_every_combination_has_a_name_and_flags() -> None:
    found = sweep.combinations(["objective.name=infonce,otter", "data.weights=(1.0,2.0)"], [0, 3])
    assert len(found) == 4
    assert found[1] == (
        "objective.name=infonce,data.weights=(1.0,2.0),seed=3",
        ["--config.objective.name=infonce", "--config.data.weights=(1.0,2.0)", "--config.seed=3"],
    )


@pytest.mark.parametrize(
    ("text", "seeds"), [("0..2", [0, 1, 2]), ("4", [4]), ("3,1", [3, 1]), ("7..7", [7])]
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert sweep.parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds=a"], "--seeds=a: write 0..4, or 0,1,2"),
        (["--seeds=4..2"], "--seeds=4..2: write"),
        (["--set", "batch_size"], "--set batch_size: write KEY=VALUE,VALUE"),
        (["--sets=x"], "unknown argument '--sets=x'"),
        (["--set", "foo=1,2"], "unknown config key foo"),
        (["--set", "batch_size=8", "--config.batch_size=9"], "batch_size is given twice"),
        (["--set", "seed=1,2"], "write --seeds=0..4"),
        (["--seeds=0..99999999999"], "at most 10000 in one sweep"),
        (["--at_once=0"], "--at_once=0: it must be 1 to "),
        (["--at_once=100000"], "--at_once=100000: it must be 1 to "),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        main.main(["sweep", "--config=quickstart", *arguments])
    assert not list(tmp_path.iterdir())


def leave_what_training_leaves(command: list[str], results: dict) -> int:
    """Stand in for a run's training: `compare` reads no more than this."""
    flags = dict(each.removeprefix("--").split("=", 1) for each in command if "=" in each)
    config = config_lib.default_config()
    config.objective.name = flags["config.objective.name"]
    config.seed = int(flags["config.seed"])
    workdir = Path(flags["workdir"])
    (workdir / "config.json").write_text(json.dumps(config_lib.as_dict(config)))
    (workdir / "results.json").write_text(json.dumps(results))
    return 0


def test_a_sweep_without_evaluation_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(
        sweep.Children, "call", lambda self, command: leave_what_training_leaves(command, {})
    )
    main.main(["sweep", "--config=quickstart", f"--workdir={tmp_path}",
               "--set", "objective.name=infonce,kd", "--config.evaluate.sets=()"])  # fmt: skip
    assert (
        "there is nothing to compare: none of these runs was evaluated" in capsys.readouterr().out
    )


def test_runs_go_on_share_features_and_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The training itself is replaced by what it leaves: `compare` reads no more."""
    started = []

    def train(self: sweep.Children, command: list[str]) -> int:
        flags = dict(each.removeprefix("--").split("=", 1) for each in command if "=" in each)
        name, workdir = flags["config.objective.name"], Path(flags["workdir"])
        started.append((name, flags["config.seed"], (workdir / "features").resolve()))
        if name == "kd":
            return 1
        return leave_what_training_leaves(command, {"set": {"hit@1": 0.5}})

    monkeypatch.setattr(sweep.Children, "call", train)
    command = ["sweep", "--config=quickstart", f"--workdir={tmp_path}", "--seeds=0,1",
               "--set", "objective.name=infonce,kd", "--config.batch_size=8"]  # fmt: skip
    for _ in range(2):  # The second time, only what failed is run again.
        with pytest.raises(SystemExit, match=r"2 of 4 runs failed: objective\.name=kd,seed=0, "):
            main.main(command)
    assert [name for name, *_ in started] == ["infonce", "infonce", "kd", "kd", "kd", "kd"]
    assert {features for *_, features in started} == {tmp_path / "features"}
    assert "50.0 ± 0.0" in (tmp_path / "comparison.md").read_text()
    assert "objective.name=infonce,seed=1 is finished" in capsys.readouterr().out


def test_runs_side_by_side_share_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """All but the first, which computes features, wait for each other: they must be at once."""
    here, meeting, started = threading.local(), threading.Barrier(2, timeout=60), []

    def train(self: sweep.Children, command: list[str], **files: object) -> int:
        if files:
            meeting.wait()
            print("said", file=files["stdout"])
        started.append((getattr(here, "cores", None), bool(files)))
        (tmp_path / "features" / "known").touch()
        return leave_what_training_leaves(command, {"set": {"hit@1": 0.5}})

    monkeypatch.setattr(sweep.Children, "call", train)
    monkeypatch.setattr(sweep, "all_cores", lambda: [0, 1, 2, 5])
    monkeypatch.setattr(sweep, "use_cores", lambda cores: setattr(here, "cores", cores))
    main.main(["sweep", "--config=quickstart", f"--workdir={tmp_path}", "--seeds=0..4",
               "--at_once=2", "--set", "objective.name=infonce"])  # fmt: skip
    assert started[0] == ({0, 2}, False)
    assert len(started) == 5 and all(with_files for _, with_files in started[1:])
    assert {frozenset(cores) for cores, _ in started[1:]} == {frozenset({0, 2}), frozenset({1, 5})}
    said = [path.parent.name for path in tmp_path.glob("*/output.txt")]
    assert sorted(said) == [f"objective.name=infonce,seed={seed}" for seed in range(1, 5)]
    assert "seed=1, its output in " in capsys.readouterr().out


def test_all_runs_have_as_many_cores() -> None:
    assert sweep.equal_shares([0, 1, 2, 5], 1) == [{0, 1, 2, 5}]
    assert sweep.equal_shares([0, 1, 2, 5, 7], 2) == [{0, 2}, {1, 5}]
    assert sweep.equal_shares([3, 4], 2) == [{3}, {4}]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are chosen under Linux")
def test_a_thread_hands_its_cores_to_what_it_starts() -> None:
    before, (core, *_) = os.sched_getaffinity(0), sweep.all_cores()
    command = [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"]
    found = []

    def work() -> None:
        sweep.use_cores({core})
        found.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [f"{{{core}}}\n"] and os.sched_getaffinity(0) == before


def test_an_interrupt_waits_for_runs_that_have_begun() -> None:
    done = []

    def run(name: str) -> bool:
        if name == "first":
            time.sleep(0.3)  # Until the main thread waits.
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.0)  # Longer than the main thread would leave a child.
        done.append(name)
        return True

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            sweep._all(ThreadPoolExecutor(1), run, [("first",), ("second",)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == ["first"]


def test_sigterm_is_passed_on_to_what_runs_and_nothing_more_is_started(tmp_path: Path) -> None:
    children, told = sweep.Children(), tmp_path / "told"
    child = (
        "import pathlib, signal, sys, time\n"
        f"told = pathlib.Path({str(told)!r})\n"
        "signal.signal(signal.SIGTERM, lambda *_: (told.touch(), sys.exit(143)))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(60)\n"
    )
    statuses = []

    def run(name: str) -> bool:
        statuses.append(children.call([sys.executable, "-c", child]))
        return True

    def tell() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=tell, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="the same command"), children.hearing_sigterm():
        sweep._all(ThreadPoolExecutor(1), run, [("first",), ("second",)])
    assert told.exists() and statuses == [143]
    assert signal.getsignal(signal.SIGTERM) is before
    # One that was being started when the signal came ends as well.
    assert children.call([sys.executable, "-c", "import time; time.sleep(60)"]) == -signal.SIGTERM


def test_a_sweep_leaves_the_devices_to_its_runs(tmp_path: Path) -> None:
    """Without a platform of that name, whoever asks JAX for its devices fails."""
    code = (
        "import pathlib\n"
        "from otter_jax.commands import sweep\n"
        "sweep.Children.call = lambda self, command: 0\n"
        f"print(sweep.run_all(pathlib.Path({str(tmp_path)!r}), {{'a': []}}, 1, sweep.Children()))\n"
    )
    environment = os.environ | {"JAX_PLATFORMS": "none_such"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert run.stdout == "run 1 of 1: a\n[]\n", run.stderr


def test_runs_side_by_side_are_refused_on_accelerators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jax.py").write_text("def default_backend():\n    return 'gpu'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sweep, "all_cores", lambda: [0, 1])
    with pytest.raises(SystemExit, match="--at_once=2: a run here takes all of the gpu; begin a"):
        main.main(["sweep", "--config=quickstart", f"--workdir={tmp_path / 'w'}", "--at_once=2"])
    assert not (tmp_path / "w").exists()


def test_a_run_that_cannot_begin_has_failed_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(
        sweep.Children, "call", lambda self, command: leave_what_training_leaves(command, {})
    )
    (tmp_path / "objective.name=infonce,seed=0").write_text("a file, and no folder")
    with pytest.raises(SystemExit, match=r"1 of 2 runs failed: objective\.name=infonce,seed=0$"):
        main.main(["sweep", "--config=quickstart", f"--workdir={tmp_path}", "--seeds=0,1",
                   "--set", "objective.name=infonce"])  # fmt: skip
    assert "objective.name=infonce,seed=0 failed: " in capsys.readouterr().out
    assert (tmp_path / "objective.name=infonce,seed=1" / "results.json").is_file()


def test_a_sweep_that_was_moved_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, children = iter([1, 0, 0]), sweep.Children()
    monkeypatch.setattr(sweep.Children, "call", lambda self, command: next(codes))
    old, new = tmp_path / "old", tmp_path / "new"
    assert sweep.run_all(old, {"seed=0": []}, 1, children) == ["seed=0"]
    shutil.move(old, new)
    assert sweep.run_all(new, {"seed=0": []}, 1, children) == []
    assert (new / "seed=0" / "features").resolve() == new / "features"
    (new / "seed=0" / "features").unlink()
    (new / "seed=0" / "features").symlink_to(old / "features")  # As earlier versions did.
    assert sweep.run_all(new, {"seed=0": []}, 1, children) == []
    assert (new / "seed=0" / "features").resolve() == new / "features"
