"""Signals: where they are heard, when they stop a run, and that a stopped run goes on exactly."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from otter_jax import config as config_lib
from otter_jax import interruption, train
from otter_jax.checkpoints import Checkpoints
from otter_jax.interruption import Interrupted, Interruption

ROOT = Path(__file__).parents[1]
SAME_FILES = ("metrics.jsonl", "results.json", "data.json")
FROZEN = {
    "model.image.frozen": True,
    "model.text.frozen": True,
    "data.augmentation": "none",
    "evaluate.every_steps": 4,
}


def tell(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def test_a_signal_stops_at_once_outside_a_step() -> None:
    with pytest.raises(Interrupted, match="stopped by SIGTERM") as stopped, Interruption():
        tell()
        pytest.fail("went on")
    assert stopped.value.status == 143


def test_a_signal_waits_for_the_end_of_a_step() -> None:
    done = []
    with pytest.raises(Interrupted) as stopped, Interruption() as interruption:
        with interruption.held(7):
            tell(signal.SIGINT)
            done.append("step")
        done.append("more")
    assert done == ["step"] and stopped.value.step == 7 and stopped.value.status == 130
    assert str(stopped.value).startswith("stopped by SIGINT after step 7;")


def test_a_second_sigint_does_not_wait() -> None:
    done = []
    with (
        pytest.raises(KeyboardInterrupt) as stopped,
        Interruption() as interruption,
        interruption.held(1),
    ):
        tell(signal.SIGTERM)
        tell(signal.SIGTERM)  # Nothing new.
        done.append("still at it")
        tell(signal.SIGINT)
        done.append("never")
    assert done == ["still at it"] and not isinstance(stopped.value, Interrupted)


def test_several_processes_count_where_they_look(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    monkeypatch.setattr(interruption.jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(
        interruption.multihost_utils,
        "reached_preemption_sync_point",
        lambda number: looks.append(number) or number == 4,
    )
    listener = Interruption()
    for step in (7, 8, 3):  # As after a rollback.
        with listener.held(step):
            pass
    with pytest.raises(Interrupted):
        listener.look()
    assert looks == [1, 2, 3, 4]


def test_whoever_listened_before_listens_again() -> None:
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *arguments: heard.append("outer"))
    try:
        with Interruption():
            assert signal.getsignal(signal.SIGTERM) is not before
        tell()
        assert heard == ["outer"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_the_main_thread_nothing_is_touched() -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []

    def listen() -> None:
        with Interruption():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert inside == [before]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test of this file puts an uninterrupted run, for all of them."""
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.mark.parametrize(
    ("moment", "saved_step"), [("step", 2), ("evaluation", 4), ("before", None), ("end", 6)]
)
def test_stopped_run_loses_no_step_and_goes_on_exactly(
    tiny_config: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Path,
    moment: str,
    saved_step: int | None,
) -> None:
    config = tiny_config(**FROZEN)
    train.train(config, whole)  # Once: it is finished then.
    tell_at(monkeypatch, moment)
    with pytest.raises(Interrupted):
        train.train(config, tmp_path)
    monkeypatch.undo()
    with Checkpoints(tmp_path / "checkpoints", create=True) as saved:
        assert saved.latest_step == saved_step
    assert not (tmp_path / "run.lock").exists()
    train.train(config, tmp_path)
    for name in SAME_FILES:
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name


def tell_at(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Has SIGTERM arrive while step 2 is reported, in an evaluation, or among the pictures."""
    if moment == "step":
        report = train.Reporter.step

        def during_step(self: train.Reporter, step: int, metrics: dict) -> None:
            tell()
            report(self, step, metrics)

        monkeypatch.setattr(train.Reporter, "step", during_step)
    elif moment == "end":
        monkeypatch.setattr(train, "draw", lambda *arguments: tell())
    else:
        evaluate, wanted = train.Parts.evaluate, 1 if moment == "before" else 2
        calls: list[None] = []

        def during_evaluation(self: train.Parts, variables: object) -> dict:
            calls.append(None)
            if len(calls) == wanted:
                tell()
            return evaluate(self, variables)

        monkeypatch.setattr(train.Parts, "evaluate", during_evaluation)


def main_command(config: ConfigDict, tmp_path: Path) -> list[str]:
    """main.py on a config; the workdir is to be added."""
    return [sys.executable, "main.py", f"--config={write_config(config, tmp_path)}"]


def write_config(config: ConfigDict, folder: Path) -> Path:
    """A config file that gives these values."""
    values, path = folder / "values.json", folder / "config_of_values.py"
    values.write_text(json.dumps(config_lib.as_dict(config)))
    path.write_text(
        '"""These values."""\nfrom pathlib import Path\nfrom otter_jax import config\n\n'
        f"def get_config():\n    return config.load(Path({str(values)!r}))\n"
    )
    return path


def start(command: list[str], workdir: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [*command, f"--workdir={workdir}"],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition: Callable[[], object], process: subprocess.Popen) -> None:
    """Waits until something is so of a running process."""
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def lines_of(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_killed_and_stopped_again_and_again(tiny_config: Callable, tmp_path: Path) -> None:
    """One run: stopped in a step, killed in a step, killed in a save."""
    changes = {"total_steps": 240, "log_every_steps": 1, "evaluate.every_steps": 40}
    config = tiny_config(**FROZEN | changes | {"checkpoint.every_steps": 25})
    command, workdir = main_command(config, tmp_path), tmp_path / "run"
    other = start(command, tmp_path / "whole")
    process = start(command, workdir)
    wait_for(lambda: lines_of(workdir) > 10, process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate()[0]
    assert process.returncode == 143, output[-3000:]
    last = output.splitlines()[-1]
    assert last.startswith("otter_jax: stopped by SIGTERM after step "), last
    assert last.endswith("; the same command goes on from there")
    step = int(last.split("step ")[1].split(";")[0])
    # Every step, and the evaluations before this one; perhaps its own.
    assert lines_of(workdir) - step - 1 in ((step - 1) // 40, step // 40)

    process = start(command, workdir)
    wait_for(lambda: lines_of(workdir) > 60, process)
    kill(process)
    assert f"resuming after step {step}" in process.communicate()[0]

    process = start(command, workdir)
    # The one killed before may have left an unfinished save behind: whose it is, the lock says.
    wait_for(lambda: holds(workdir, process) and is_saving(workdir), process)
    process.send_signal(signal.SIGSTOP)  # Else it could have ended before the second one looks.
    second = start(command, workdir)
    output = second.communicate()[0]
    assert second.returncode == 1 and f"is in use by process {process.pid} of" in output, output
    kill(process)

    process = start(command, workdir)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    assert "was left by process" in output
    other.communicate(timeout=300)
    assert_equal_runs(workdir, tmp_path / "whole")


def holds(workdir: Path, process: subprocess.Popen) -> bool:
    return f'"process": {process.pid},' in (workdir / "run.lock").read_text()


def is_saving(workdir: Path) -> bool:
    return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp"))


def assert_equal_runs(one: Path, other: Path) -> None:
    for name in SAME_FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert parameters(one) == parameters(other)


def kill(process: subprocess.Popen) -> None:
    assert process.poll() is None, process.communicate()[0][-3000:]
    process.kill()
    process.wait()


def parameters(workdir: Path) -> list[bytes]:
    import jax
    import numpy as np

    from otter_jax.encoder import load

    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(load(workdir).variables)]


@pytest.mark.slow
def test_twenty_kills_and_five_stops_at_random_moments(
    tiny_config: Callable, tmp_path: Path
) -> None:
    """One run, interrupted 25 times; `-s` shows the table."""
    changes = {"total_steps": 1200, "log_every_steps": 1, "evaluate.every_steps": 20}
    config = tiny_config(**FROZEN | changes | {"checkpoint.every_steps": 8})
    command, workdir, whole = main_command(config, tmp_path), tmp_path / "run", tmp_path / "whole"
    start(command, whole).communicate(timeout=600)
    wanted = (whole / "metrics.jsonl").read_bytes()
    rng = random.Random(0)
    signals = [signal.SIGKILL] * 20 + [signal.SIGTERM] * 5
    moments = ["step", "save", "evaluation"] * 8 + ["step"]
    rng.shuffle(signals)
    rows = []
    for number, moment in zip(signals, moments, strict=True):
        process = start(command, workdir)
        wait_for_moment(moment, workdir, process, rng)
        process.send_signal(number)
        output = process.communicate(timeout=300)[0]
        assert process.returncode in (-signal.SIGKILL, 143), output[-3000:]
        resumed = re.search(r"resuming after step (\d+)", output)
        equal = wanted.startswith(complete_lines(workdir))
        rows.append(
            (number.name, moment, resumed[1] if resumed else "-", last_step(workdir), equal)
        )
    process = start(command, workdir)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output[-3000:]
    print("\nsignal   moment      resumed from  until step  metrics equal")
    for name, moment, resumed, until, equal in rows:
        print(f"{name}  {moment:10}  {resumed:>12}  {until:>10}  {equal}")
    assert all(equal for *_, equal in rows)
    assert_equal_runs(workdir, whole)


def wait_for_moment(
    moment: str, workdir: Path, process: subprocess.Popen, rng: random.Random
) -> None:
    """Waits for a moment of this kind in a process that has just been started."""
    opened = process_started_writing(workdir, process)
    wait_for(lambda: lines_of(workdir) > opened + rng.randrange(1, 12), process)
    if moment == "save":
        wait_for(lambda: is_saving(workdir), process)
    elif moment == "evaluation":
        wait_for(lambda: last_step(workdir) % 20 == 0, process)
        time.sleep(rng.random() / 50)


def process_started_writing(workdir: Path, process: subprocess.Popen) -> int:
    """How many lines metrics.jsonl has when this process goes on with it."""
    lock = workdir / "run.lock"
    wait_for(lambda: lock.exists() and f": {process.pid}," in lock.read_text(), process)
    return lines_of(workdir)


def complete_lines(workdir: Path) -> bytes:
    return b"".join((workdir / "metrics.jsonl").read_bytes().rpartition(b"\n")[:2])


def last_step(workdir: Path) -> int:
    return json.loads(complete_lines(workdir).splitlines()[-1])["step"]
