"""Who may write to a workdir: one run at a time, and only the run that it belongs to."""

import json
import multiprocessing
import os
import signal
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from otter_jax.runs import workdir as workdirs
from otter_jax.runs.workdir import (
    WorkdirLock,
    claimed,
    read_finished,
    refuse_in_use,
    refuse_other_data,
    refuse_unwritable,
)


def hold(folder: str, ready: "multiprocessing.synchronize.Event") -> None:
    """Start another process, which holds a folder until it is killed."""
    with WorkdirLock(Path(folder) / "run.lock"):
        ready.set()
        signal.pause()


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with WorkdirLock(path):
        owner = json.loads(path.read_text())
        assert owner["process"] == os.getpid() and {"host", "user", "started"} < set(owner)
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()} of .* on .*, start"):
            WorkdirLock(path)
        with pytest.raises(ValueError, match="in use by"):
            refuse_in_use(tmp_path)
        assert json.loads(path.read_text()) == owner
    assert not path.exists()
    refuse_in_use(tmp_path)
    with WorkdirLock(path):
        assert path.exists()


def test_a_killed_owner_is_named_and_succeeded(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(str(tmp_path), ready))
    process.start()
    assert ready.wait(60)
    with pytest.raises(ValueError, match=f"in use by process {process.pid} "):
        refuse_in_use(tmp_path)
    process.kill()
    process.join()
    refuse_in_use(tmp_path)
    with WorkdirLock(tmp_path / "run.lock"):
        pass
    assert f"was left by process {process.pid} of" in capsys.readouterr().out


@pytest.mark.parametrize("contents", ["", "{", "[]", '{"process": 1}'])
def test_unreadable_owners_are_another_run(
    tmp_path: Path, capsys: pytest.CaptureFixture, contents: str
) -> None:
    (tmp_path / "run.lock").write_text(contents)
    with WorkdirLock(tmp_path / "run.lock"):
        assert ("left by another run" in capsys.readouterr().out) == bool(contents)


def test_without_locks_it_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(workdirs.fcntl, "flock", refuse)
    with WorkdirLock(tmp_path / "run.lock"):
        assert "cannot be locked (Function not implemented)" in capsys.readouterr().out


def test_an_owner_that_leaves_between_opening_and_locking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lock = tmp_path / "run.lock", workdirs.fcntl.flock
    path.write_text("{}")
    removals = [path]

    def lock_after_removal(*arguments: object) -> None:
        if removals:
            removals.pop().unlink()
        lock(*arguments)

    monkeypatch.setattr(workdirs.fcntl, "flock", lock_after_removal)
    with WorkdirLock(path) as held:
        held.check()
        assert json.loads(path.read_text())["process"] == os.getpid()


def test_a_folder_that_was_removed_or_replaced_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with WorkdirLock(path) as lock:
        lock.check()
        path.unlink()
        with pytest.raises(FileNotFoundError, match="was removed, or replaced, while in use"):
            lock.check()
        with WorkdirLock(path) as other:
            other.check()
            with pytest.raises(FileNotFoundError, match="replaced"):
                lock.check()
        path.write_text("of a third run")
    assert path.read_text() == "of a third run"


def test_a_claim_that_is_refused_leaves_no_lock(tiny_config: Callable, tmp_path: Path) -> None:
    with claimed(tiny_config(), tmp_path):
        assert (tmp_path / "config.json").is_file()
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 2}\n')
    with (
        pytest.raises(ValueError, match="seed: 0 -> 1"),
        claimed(tiny_config(seed=1), tmp_path),
    ):
        pytest.fail("another config")
    assert not (tmp_path / "run.lock").exists()


def test_where_nothing_was_trained_another_config_begins_anew(
    tiny_config: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    left = ("metrics.jsonl", "data.json", "features/of_a_tower.npz", "checkpoints/0/variables")

    def leave() -> None:
        for name in left:
            (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / name).touch()
        (tmp_path / "metrics.jsonl").write_text('{"step": 0, "eval/set/hit@1": 0.5}\n')

    def what_is_left() -> set[str]:
        return {name for name in left if (tmp_path / name).exists()}

    with claimed(tiny_config(), tmp_path):
        leave()
    with claimed(tiny_config(log_every_steps=2), tmp_path):  # The same.
        assert what_is_left() == set(left)
    assert "begins anew" not in capsys.readouterr().out
    with claimed(tiny_config(seed=1), tmp_path):
        assert what_is_left() == {"features/of_a_tower.npz"}
    assert "nothing was trained" in capsys.readouterr().out
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(ValueError, match="seed: 1 -> 0"), claimed(tiny_config(), tmp_path):
        pytest.fail("trained by another config")


def test_a_place_where_no_folder_can_be_made_is_refused(tmp_path: Path) -> None:
    refuse_unwritable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())  # Nothing is left of the trial.
    (tmp_path / "file").touch()
    for path in ("file", "file/x"):
        with pytest.raises(ValueError, match=f"^--workdir=.*/{path}: .*/file is a file; name"):
            refuse_unwritable(tmp_path / path)
    if Path("/proc").is_dir():  # Its permissions promise what it does not keep.
        with pytest.raises(ValueError, match=r"^--workdir=/proc/x"):
            refuse_unwritable(Path("/proc/x"))


@pytest.mark.parametrize(
    "contents", ["", "[]", "{}", '{"train": 1}', '{"train": {}}', '{"train": {"fingerprint": 1}}']
)
def test_a_damaged_note_on_the_data_is_named(
    tiny_config: Callable, tmp_path: Path, contents: str
) -> None:
    pairs = types.SimpleNamespace(name="pairs", fingerprint="0123")
    (tmp_path / "data.json").write_text(contents)
    with (
        pytest.raises(ValueError, match=r"data\.json is damaged"),
        claimed(tiny_config(), tmp_path, pairs),  # Nothing was trained yet.
    ):
        pytest.fail("claimed")
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"data\.json is damaged"):
        refuse_other_data(pairs, tmp_path)


def test_results_that_are_no_object_are_no_unfinished_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    assert read_finished(tmp_path, 3) is None
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match=r"results\.json is damaged: it should hold an object"):
        read_finished(tmp_path, 3)
    (tmp_path / "results.json").write_text('{"last_step": 3}')
    assert read_finished(tmp_path, 4) == {"last_step": 3}
