"""Whose a workdir is: one config, one collection of pairs, and one run at a time."""

import contextlib
import datetime
import fcntl
import getpass
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TextIO

import jax
from ml_collections import ConfigDict

from otter_jax import config as config_lib
from otter_jax import sharding
from otter_jax.data.sources import Source
from otter_jax.json_files import read_json_lines, read_json_object, write_json
from otter_jax.terminal import say

# What a run writes before its first step that hangs on its config or data; features/ has names of
# its own for both.
OF_NO_USE_TO_ANOTHER = ("metrics.jsonl", "timings.jsonl", "machine.jsonl", "data.json", "trust.npz",
                        "divergence.json", "checkpoints", "tensorboard", "tokenizer")  # fmt: skip


@contextlib.contextmanager
def claimed(
    config: ConfigDict, workdir: Path, source: Source | None = None
) -> Iterator["WorkdirLock"]:
    """Make the workdir, write config.json, and hold the lock while the context lasts.

    What a run of another config or of other pairs left, in which nothing was trained, is removed.

    Raises:
        ValueError: if the workdir cannot be made or written, belongs to another config, or another
            run is under way in it, which is named.
    """
    if not workdir.parent.exists():
        say(f"making the missing folder {workdir.parent}")
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(WorkdirLock(workdir / "run.lock"))
            refuse_other_run(config, workdir)  # Again: another run may just have made it.
            _clear_for(config, source, workdir)
            write_json(workdir / "config.json", config_lib.as_dict(config))
        except OSError as error:
            raise ValueError(f"--workdir={workdir} cannot be written: {error.strerror}") from error
        yield lock


class WorkdirLock(AbstractContextManager):
    """A folder in the hands of this run, until the context is left or the process ends.

    The lock is the kernel's (`flock`), which frees it however the process ends; the file only says
    who holds it, and no clock is asked. Of several processes the first one holds it for all.
    """

    def __init__(self, path: Path):
        """Take the lock `path`, a file of the folder (ValueError naming who has it already)."""
        self._path = path
        self._file: TextIO | None = None
        refusal = None
        if jax.process_index() == 0:
            try:
                self._take()
            except (ValueError, OSError) as error:
                refusal = error
        # The others have nothing to lock, but must not wait for a process that has given up.
        if sharding.first_process_says(refusal is not None):
            raise refusal or ValueError(f"{path.parent} is in use")

    def __exit__(self, *exception: object) -> None:
        """Let go of the folder."""
        self.release()

    def release(self) -> None:
        """Let go of the folder, once."""
        if self._file is None:
            return
        if self._is_ours():
            with contextlib.suppress(OSError):
                self._path.unlink()  # Still locked: whoever opened it meanwhile will look again.
        self._file.close()
        self._file = None

    def check(self) -> None:
        """Refuse to go on in a folder that was removed meanwhile (FileNotFoundError)."""
        if self._file is not None and not self._is_ours():
            raise FileNotFoundError(f"{self._path.parent} was removed, or replaced, while in use")

    def _is_ours(self) -> bool:
        """Return whether the file that is open is still the one of that name."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def _take(self) -> None:
        self._file = _open_locked(self._path)
        while not self._is_ours():  # Its owner has removed it between opening and locking.
            self._file.close()
            self._file = _open_locked(self._path)
        if left := self._file.read():
            say(f"{self._path.parent} was left by {_describe(left)}: taking it over")
        self._file.truncate(0)
        json.dump(_owner(), self._file, indent=2)
        self._file.flush()


def _open_locked(path: Path) -> TextIO:
    """Open and lock the lock's file (ValueError naming its owner where it is not free)."""
    file = path.open("a+", encoding="utf-8")
    file.seek(0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with file:
            raise ValueError(
                f"{path.parent} is in use by {_describe(file.read())}: "
                "wait for it, end it, or choose another folder"
            ) from None
    except OSError as error:
        say(f"{path} cannot be locked ({error.strerror}): see that no other run uses its folder")
    return file


def _owner() -> dict[str, Any]:
    """Describe this process, for people to read."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # In a container a user may have no name.
        user = str(os.getuid())
    started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    return {"process": os.getpid(), "host": socket.gethostname(), "user": user, "started": started}


def _describe(owner: str) -> str:
    """Return the contents of the lock's file, in words."""
    try:
        return "process {process} of {user} on {host}, started {started}".format(
            **json.loads(owner)
        )
    except (KeyError, TypeError, ValueError):  # It is just being written.
        return "another run"


def refuse_in_use(workdir: Path) -> None:
    """Refuse a workdir in which a run is under way, before much is built for it (ValueError)."""
    path = workdir / "run.lock"
    if path.is_file() and jax.process_count() == 1:
        _open_locked(path).close()


def refuse_other_config(
    config: ConfigDict, workdir: Path, ignore: tuple[str, ...] = config_lib.BOOKKEEPING_KEYS
) -> None:
    """Refuse to touch a workdir that another config wrote (ValueError naming the keys)."""
    path = workdir / "config.json"
    if path.is_file() and (
        differing := config_lib.differences(config_lib.load_config(path), config, ignore)
    ):
        raise ValueError(
            f"--workdir={workdir} was written by another config ({'; '.join(differing)}): "
            "choose another workdir or the same values"
        )


def refuse_other_run(config: ConfigDict, workdir: Path) -> None:
    """Refuse to train where another config has trained (ValueError naming the keys)."""
    if not is_untrained(workdir):
        refuse_other_config(config, workdir)


def is_untrained(workdir: Path) -> bool:
    """Return whether no step of a run is left in its workdir, so that it is free for another."""
    lines = read_json_lines(workdir / "metrics.jsonl")
    return last_saved_step(workdir) == 0 and not any(each["step"] > 0 for each in lines)


def last_saved_step(workdir: Path) -> int:
    """Return the last step that has a checkpoint, whole or not; 0 where there is none."""
    names = (path.name for path in (workdir / "checkpoints").glob("[0-9]*"))
    return max((int(name.partition(".")[0]) for name in names), default=0)


def _is_of(config: ConfigDict, source: Source | None, workdir: Path) -> bool:
    """Return whether a workdir, or what there is of it, is of this config and these pairs."""
    path, data = workdir / "config.json", workdir / "data.json"
    if path.is_file() and config_lib.differences(config_lib.load_config(path), config):
        return False
    if source is None or not data.is_file():
        return True
    return _read_fingerprint(data) == source.fingerprint


def _clear_for(config: ConfigDict, source: Source | None, workdir: Path) -> None:
    """Remove what another run has written before its first step."""
    of_another = is_untrained(workdir) and not _is_of(config, source, workdir)
    if not sharding.first_process_says(of_another):
        return
    say(f"nothing was trained in {workdir} before: it begins anew, with the features it has")
    if jax.process_index() == 0:
        for name in OF_NO_USE_TO_ANOTHER:
            path = workdir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    sharding.first_process_says(True)  # The others wait until it is done.


def refuse_unwritable(folder: Path, option: str = "--workdir") -> None:
    """Refuse a folder that cannot be made or written, without making it.

    Args:
        folder: where something is to be written.
        option: what names it on the command line, for the error.

    Raises:
        ValueError: naming what is in the way.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise ValueError(f"{option}={folder}: {place} is a file; name another folder")
    if not os.access(place, os.W_OK):
        raise ValueError(f"{option}={folder}: no permission to write in {place}")
    if place == folder.absolute():
        return
    try:  # Some file systems, such as /proc, say yes and mean no.
        tempfile.TemporaryDirectory(dir=place).cleanup()
    except OSError as error:
        raise ValueError(
            f"{option}={folder}: no folder can be made in {place} ({error.strerror})"
        ) from None


def refuse_other_data(source: Source, workdir: Path) -> None:
    """Refuse to go on with other pairs than a run began with (ValueError)."""
    path = workdir / "data.json"
    if not path.is_file() or is_untrained(workdir):
        return
    before = _read_fingerprint(path)
    if before != source.fingerprint:
        raise ValueError(
            f"the pairs of {source.name} have changed since {workdir} was started (now "
            f"{len(source)}, fingerprint {source.fingerprint[:12]}, was "
            f"{before[:12]}): choose another workdir or the same data"
        )


def _read_fingerprint(path: Path) -> str:
    """Return the fingerprint of the pairs that a data.json tells of (ValueError if it has none)."""
    train = read_json_object(path).get("train")
    fingerprint = train.get("fingerprint") if isinstance(train, dict) else None
    if not isinstance(fingerprint, str):
        raise ValueError(
            f"{path} is damaged: it should hold the fingerprint of the pairs, under `train`"
        )
    return fingerprint


def read_finished(workdir: Path, total_steps: int) -> dict[str, Any] | None:
    """Return the results of a run that has come to its end, or None."""
    path = workdir / "results.json"
    found = read_json_object(path) if path.is_file() else None
    last = (found or {}).get("last_step", total_steps)  # A run may have stopped early.
    return found if (workdir / "checkpoints" / str(last)).is_dir() else None
