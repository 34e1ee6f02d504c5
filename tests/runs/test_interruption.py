"""Signals, kills and clocks: when they stop a run, and that a stopped run goes on exactly."""

import datetime
import gc
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import flags_for
from ml_collections import ConfigDict
from runs.test_processes import free_port

from otter_jax import config as config_lib
from otter_jax import train
from otter_jax.runs import interruption
from otter_jax.runs.checkpoints import Checkpoints
from otter_jax.runs.interruption import Interrupted, Interruption
from otter_jax.runs.workdir import refuse_in_use
from otter_jax.terminal import progress

ROOT = Path(__file__).parents[2]
SAME_FILES = ("metrics.jsonl", "results.json", "data.json")
FROZEN = {
    "model.image.frozen": True,
    "model.text.frozen": True,
    "data.augmentation": "none",
    "evaluate.every_steps": 4,
}
# Trained towers with batch norm: whatever a run keeps, it must keep.
STUDIED = {
    "total_steps": 1200,
    "log_every_steps": 1,
    "checkpoint.every_steps": 8,
    "evaluate.every_steps": 20,
}
STUDIED_SIGNALS = [signal.SIGKILL] * 20 + [signal.SIGTERM] * 5
KILLS_OF_TWO = 6


def tell(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def test_a_signal_is_noted_and_stops_where_the_run_looks() -> None:
    done = []
    with (
        pytest.raises(Interrupted, match="stopped by SIGTERM; the same") as stopped,
        Interruption() as interruption,
    ):
        interruption.look()
        tell()
        done.append("the step")
        interruption.look()
        done.append("more")
    assert done == ["the step"] and stopped.value.status == 143


def test_a_signal_in_a_callback_of_the_garbage_collector_is_not_swallowed() -> None:
    def on_collection(phase: str, facts: dict) -> None:
        if phase == "start" and not told:
            told.append(phase)
            tell()

    told: list[str] = []
    gc.callbacks.append(on_collection)
    try:
        with pytest.raises(Interrupted), Interruption() as interruption:
            gc.collect()
            interruption.look()
    finally:
        gc.callbacks.remove(on_collection)
    assert told == ["start"]


@pytest.mark.parametrize(
    ("step", "said"),
    [(7, "after step 7; the same command goes on from there"), (0, "before the first step;")],
)
def test_it_says_after_which_step(step: int, said: str) -> None:
    with (
        pytest.raises(Interrupted, match=f"stopped by SIGINT {said}") as stopped,
        Interruption() as interruption,
    ):
        interruption.look(step)
        tell(signal.SIGINT)
        interruption.look_alone()
    assert stopped.value.step == step and stopped.value.status == 130


def test_long_loops_look_between_their_items() -> None:
    done = []
    with pytest.raises(Interrupted), Interruption():
        for item in progress(range(5), 5, "items"):
            done.append(item)
            if item == 2:
                tell()
    assert done == [0, 1, 2]
    assert list(progress(range(2), 2, "afterwards")) == [0, 1]


def test_waiting_for_data_ends_with_a_signal() -> None:
    hangs = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        tell()
        hangs.wait()
        yield 2

    found = []
    with pytest.raises(Interrupted), Interruption() as interruption:
        found.extend(interruption.waiting(items()))
    hangs.set()
    assert found == [1]
    with Interruption() as interruption:
        assert list(interruption.waiting(iter("abc"))) == ["a", "b", "c"]
        with pytest.raises(ZeroDivisionError):
            list(interruption.waiting(1 / number for number in (1, 0)))


def test_a_second_sigint_does_not_wait() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt) as stopped, Interruption():
        tell(signal.SIGTERM)
        tell(signal.SIGTERM)  # Nothing new.
        done.append("still at it")
        tell(signal.SIGINT)
        done.append("never")
    assert done == ["still at it"] and not isinstance(stopped.value, Interrupted)


STUCK = """
import signal, sys, threading
from otter_jax.runs.interruption import Interruption, Interrupted

Interruption.may_end_process = True
with Interruption() as interruption:
    interruption.step, interruption.unsaved = 0, sys.argv[1] == "unsaved"
    interruption.before_end(lambda: print("last words", flush=True))
    lock = threading.Lock()
    lock.acquire()
    print("ready", flush=True)
    lock.acquire(timeout=float(sys.argv[2]))  # Like a compiler: it does not look.
    print("over", flush=True)
    interruption.look()
"""


@pytest.mark.parametrize(
    ("state", "seconds", "signals", "status", "said"),
    [
        ("saved", 60, [signal.SIGTERM], 143, "last words, stopped by SIGTERM before the first"),
        ("saved", 60, [signal.SIGINT], 130, "last words, stopped by SIGINT before the first"),
        ("unsaved", 60, [signal.SIGTERM, signal.SIGINT], 130, "last words, broken off"),
        ("unsaved", 3, [signal.SIGTERM], 1, "over, Interrupted"),
    ],
)
def test_a_program_ends_where_it_does_not_look(
    state: str, seconds: int, signals: list, status: int, said: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, state, str(seconds)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    since = time.monotonic()
    for number in signals:
        process.send_signal(number)
        time.sleep(0.1)
    output = process.communicate(timeout=30)[0]
    assert time.monotonic() - since < 10  # It is to be 5, on a machine that has time.
    assert process.returncode == status, output
    for words in said.split(", "):
        assert words in output


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
        listener.look_alone()
        listener.look(step)
    with pytest.raises(Interrupted, match="after step 3"):
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
    """Return where the first test of this file puts an uninterrupted run, for all of them."""
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
    """Have SIGTERM arrive while step 2 is reported, in an evaluation, or among the pictures."""
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


@pytest.mark.parametrize("days", [-1, 365])
def test_a_wall_clock_that_jumps_changes_nothing(
    tiny_config: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    whole: Path,
    days: int,
) -> None:
    config = tiny_config(**FROZEN)
    train.train(config, whole)  # Once: it is finished then.
    left = {"process": 1, "host": "here", "user": "me", "started": "2999-01-01T00:00:00+00:00"}
    (tmp_path / "run.lock").write_text(json.dumps(left))
    report, reported = train.Reporter.step, []

    def jump(self: train.Reporter, step: int, metrics: dict) -> None:
        if not reported:
            set_clocks(monkeypatch, datetime.timedelta(days=days))
        report(self, step, metrics)
        reported.append(step)
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()} of"):
            refuse_in_use(tmp_path)

    monkeypatch.setattr(train.Reporter, "step", jump)
    train.train(config, tmp_path)
    assert reported == [2, 4, 6]
    said = capsys.readouterr().out
    assert "was left by process 1 of me on here, started 2999" in said and " 0 s left" in said
    for name in SAME_FILES:
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name
    kept = [{path.name for path in (each / "checkpoints").iterdir()} for each in (tmp_path, whole)]
    assert kept[0] == kept[1] == {"3", "6", "frozen"}
    timings = [json.loads(line) for line in (tmp_path / "timings.jsonl").open()]
    seconds, rates = (
        [each[name] for each in timings if name in each]
        for name in ("time/wall_seconds", "time/steps_per_second")
    )
    assert 0 < seconds[0] < seconds[1] < seconds[2] < 3600 and min(rates) > 1 / 3600


def set_clocks(monkeypatch: pytest.MonkeyPatch, change: datetime.timedelta) -> None:
    """Set the wall clock, as far as Python's own code asks for it; the others go on."""
    seconds, nanoseconds = time.time, time.time_ns

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return super().now(tz) + change

    monkeypatch.setattr(datetime, "datetime", Clock)
    monkeypatch.setattr(time, "time", lambda: seconds() + change.total_seconds())
    monkeypatch.setattr(
        time, "time_ns", lambda: nanoseconds() + 10**9 * round(change.total_seconds())
    )


def main_command(config: ConfigDict, tmp_path: Path) -> list[str]:
    """Return the command of main.py on a config; the workdir is to be added."""
    return [sys.executable, "main.py", f"--config={write_config(config, tmp_path)}"]


def write_config(config: ConfigDict, folder: Path) -> Path:
    """Write a config file that gives these values."""
    values, path = folder / "values.json", folder / "config_of_values.py"
    values.write_text(json.dumps(config_lib.as_dict(config)))
    path.write_text(
        '"""These values."""\nfrom pathlib import Path\nfrom otter_jax import config\n\n'
        f"def get_config():\n    return config.load_config(Path({str(values)!r}))\n"
    )
    return path


def start(command: list[str], workdir: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [*command, f"--workdir={workdir}"],
        cwd=ROOT,
        env=os.environ | flags_for(devices=1),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition: Callable[[], object], process: subprocess.Popen) -> None:
    """Wait until something is so of a running process."""
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

    from otter_jax.embedding.encoder import load

    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(load(workdir).variables)]


PHASES = ("compile", "features", "trust", "evaluation", "pictures")
STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}
OF_A_RUN = ("metrics.jsonl", "results.json", "data.json", "trust.npz")


def phases_config(make: Callable, folder: Path) -> Path:
    """Write a config whose run goes through all phases; return its file."""
    frozen = FROZEN | {"evaluate.batch_size": 8, "objective.pair_weight": "estimated"}
    config = make(**frozen, **{"objective.name": "infonce", "trust.neighbors": 5})
    path = folder / "phases.json"
    path.write_text(json.dumps(config_lib.as_dict(config)))
    return path


def interrupt(phase: str, number: int, config: Path, workdir: Path) -> float:
    """Start a run, send it a signal in a phase, and return the seconds until it has ended."""
    program = Path(__file__).with_name("slow_phases.py")
    process = subprocess.Popen(  # On this process's devices: random weights are the same bits.
        [sys.executable, str(program), phase, str(config), str(workdir)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while (line := process.stdout.readline()) != f"in {phase}\n":
        assert line, "the phase did not come"
    time.sleep(0.5)
    since = time.monotonic()
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == STATUS[number], output[-3000:]
    if number != signal.SIGKILL:
        said = "after step 6" if phase == "pictures" else "before the first step"
        assert f"otter_jax: stopped by {signal.Signals(number).name} {said}" in output
        assert not (workdir / "run.lock").exists()
    return time.monotonic() - since


def kept_features(workdir: Path) -> dict[str, bytes]:
    """Return the files of whole features; parts are not left behind."""
    assert all(path.suffix == ".npz" for path in (workdir / "features").iterdir())
    return {path.name: path.read_bytes() for path in (workdir / "features").iterdir()}


def test_stopped_in_features_and_in_the_compiler(tiny_config: Callable, tmp_path: Path) -> None:
    """What two batches have given is kept; XLA is not waited for; all is as if never stopped."""
    config, workdir, whole = phases_config(tiny_config, tmp_path), tmp_path / "run", tmp_path / "w"
    train.train(config_lib.load_config(config), whole)
    assert interrupt("features", signal.SIGTERM, config, workdir) < 10
    (parts,) = (path for path in (workdir / "features").iterdir() if path.is_dir())
    assert len(list(parts.iterdir())) == 1
    assert interrupt("compile", signal.SIGINT, config, workdir) < 10
    train.train(config_lib.load_config(config), workdir)
    for name in OF_A_RUN:
        assert (workdir / name).read_bytes() == (whole / name).read_bytes(), name
    assert kept_features(workdir) == kept_features(whole)


@pytest.mark.slow
def test_interrupted_in_every_phase_by_every_signal(tiny_config: Callable, tmp_path: Path) -> None:
    """30 times; `-s` shows the table."""
    config, whole = phases_config(tiny_config, tmp_path), tmp_path / "whole"
    train.train(config_lib.load_config(config), whole)
    print("\nphase       signal   status  seconds until it had ended  equal afterwards")
    for phase, number, again in itertools.product(PHASES, STATUS, range(2)):
        workdir = tmp_path / f"{phase}{number}"  # Twice in the same.
        seconds = interrupt(phase, number, config, workdir)
        assert seconds < 5
        equal = "-"
        if again:
            train.train(config_lib.load_config(config), workdir)
            equal = all((workdir / n).read_bytes() == (whole / n).read_bytes() for n in OF_A_RUN)
            assert equal and kept_features(workdir) == kept_features(whole)
        print(f"{phase:10}  {number.name:7}  {STATUS[number]:6}  {seconds:26.1f}  {equal}")


@pytest.mark.slow
def test_killed_and_stopped_at_random_moments(tiny_config: Callable, tmp_path: Path) -> None:
    """One run, interrupted 25 times; `-s` shows the table."""
    config = tiny_config(**STUDIED)
    command, workdir, whole = main_command(config, tmp_path), tmp_path / "run", tmp_path / "whole"
    finish(start(command, whole))
    wanted = (whole / "metrics.jsonl").read_bytes()
    rng = random.Random(0)
    rows = []
    for number, moment in zip(
        rng.sample(STUDIED_SIGNALS, len(STUDIED_SIGNALS)),
        itertools.cycle(["step", "save", "evaluation"]),
        strict=False,
    ):
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
    finish(start(command, workdir))
    print("\nsignal   moment      resumed from  until step  metrics equal")
    for name, moment, resumed, until, equal in rows:
        print(f"{name}  {moment:10}  {resumed:>12}  {until:>10}  {equal}")
    assert all(equal for *_, equal in rows)
    assert_equal_runs(workdir, whole)


@pytest.mark.slow
def test_one_of_two_processes_killed_at_random_moments(
    tiny_config: Callable, tmp_path: Path
) -> None:
    """One run of two processes, one of which is killed 6 times; `-s` shows the table."""
    config = tiny_config(**STUDIED | {"total_steps": 400})
    command, workdir, whole = main_command(config, tmp_path), tmp_path / "run", tmp_path / "whole"
    finish(*start_two(command, whole))
    wanted = (whole / "metrics.jsonl").read_bytes()
    rng = random.Random(0)
    rows = []
    for _ in range(KILLS_OF_TWO):
        both, killed = start_two(command, workdir), rng.randrange(2)
        wait_for_lines(rng.randrange(1, 30), workdir, both[0])
        time.sleep(rng.random() / 5)
        moment = what_goes_on(workdir)
        kill(both[killed])
        since = time.monotonic()
        output = both[1 - killed].communicate(timeout=300)[0]
        assert both[1 - killed].returncode != 0, output[-3000:]
        equal = wanted.startswith(complete_lines(workdir))
        rows.append((killed, moment, last_step(workdir), time.monotonic() - since, equal))
    finish(*start_two(command, workdir))
    print("\nkilled  moment      until step  other ended after  metrics equal")
    for killed, moment, until, seconds, equal in rows:
        print(f"{killed:6}  {moment:10}  {until:10}  {seconds:15.0f} s  {equal}")
    assert all(equal for *_, equal in rows)
    assert_equal_runs(workdir, whole)


def start_two(command: list[str], workdir: Path) -> list[subprocess.Popen]:
    """Start a run of two processes on this machine."""
    together = [f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=2"]
    return [start([*command, *together, f"--process_id={n}"], workdir) for n in range(2)]


def finish(*processes: subprocess.Popen) -> None:
    """Wait until these processes have come to the end of their run."""
    for process in processes:
        output = process.communicate(timeout=1800)[0]
        assert process.returncode == 0, output[-3000:]


def what_goes_on(workdir: Path) -> str:
    """Return what a run seems to be at, as far as its files tell."""
    if is_saving(workdir):
        return "save"
    return "evaluation" if last_step(workdir) % STUDIED["evaluate.every_steps"] == 0 else "step"


def wait_for_moment(
    moment: str, workdir: Path, process: subprocess.Popen, rng: random.Random
) -> None:
    """Wait for a moment of this kind in a process that has just been started."""
    wait_for_lines(rng.randrange(1, 12), workdir, process)
    if moment == "save":
        wait_for(lambda: is_saving(workdir), process)
    elif moment == "evaluation":
        wait_for(lambda: last_step(workdir) % 20 == 0, process)
        time.sleep(rng.random() / 50)


def wait_for_lines(number: int, workdir: Path, process: subprocess.Popen) -> None:
    """Wait until a process that has just been started has added more lines to metrics.jsonl."""
    wait_for(lambda: (workdir / "run.lock").exists() and holds(workdir, process), process)
    opened = lines_of(workdir)
    wait_for(lambda: lines_of(workdir) > opened + number, process)


def complete_lines(workdir: Path) -> bytes:
    return b"".join((workdir / "metrics.jsonl").read_bytes().rpartition(b"\n")[:2])


def last_step(workdir: Path) -> int:
    return json.loads(complete_lines(workdir).splitlines()[-1])["step"]
