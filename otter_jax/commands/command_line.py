"""How every program speaks: what is wrong with the input ends in one line."""

import argparse
import difflib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

# What bad input raises, in words for whoever gave it; anything else is a fault of ours.
REFUSALS = (ValueError, OSError, ModuleNotFoundError, FloatingPointError)


def fail(reason: str | Exception) -> NoReturn:
    """End the program with one line on standard error, and status 1."""
    sys.exit(f"otter_jax: {' '.join(str(reason).split())}")


class Terminated(KeyboardInterrupt):
    """A signal has come that is to leave things as Ctrl-C does.

    Attributes:
        number: the signal's.
    """

    def __init__(self, number: int):
        """Say nothing but which signal it was."""
        super().__init__()
        self.number = number


@contextmanager
def ending_in_one_line(when_stopped: str = "stopped") -> Iterator[None]:
    """Let a refusal or Ctrl-C in this block end the program with one line.

    Args:
        when_stopped: the line of one that was stopped, where what stopped it has none to say.
    """
    try:
        yield
    except BrokenPipeError:  # Whoever read what is printed has seen enough, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # For what is still to come.
        sys.exit(128 + signal.SIGPIPE)
    except REFUSALS as error:
        fail(error)
    except KeyboardInterrupt as stop:
        with suppress(OSError):  # The terminal may have been closed.
            print(f"\notter_jax: {str(stop) or when_stopped}", flush=True)
        if not hasattr(stop, "status"):  # No run was interrupted that has processes beside it.
            os._exit(128 + (stop.number if isinstance(stop, Terminated) else signal.SIGINT))
        from otter_jax.runs.interruption import leave

        leave(stop.status)


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """End the program on Ctrl-C in this block, which imports what is large, without unwinding it.

    Where an exception meets a compiled module that is being imported, some crash, and others make
    an ImportError of it that somebody else takes for a package that is missing.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        os.write(1, b"\notter_jax: stopped\n")
        os._exit(128 + number)

    # Another handler is somebody's own; outside the main thread there can be none.
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def hearing_termination() -> Iterator[None]:
    """Raise `Terminated` in this block on SIGTERM or SIGHUP, lest files or processes are left.

    SIGHUP comes when a terminal is closed, and where it is ignored, as under nohup, it stays so.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # A shell and the system may both send it.
        raise Terminated(number)

    numbers = [signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def path_of(text: str) -> Path:
    """Return the path that an argument names; an empty one would mean the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return Path(text).expanduser()


def make_folder(option: str, folder: Path) -> Path:
    """Return the folder that an option names, made if it is missing.

    Raises:
        ValueError: naming the option, where a file is in the way or no folder can be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = "it is a file" if folder.is_file() else f"no folder can be made ({error.strerror})"
        raise ValueError(f"{option}={folder}: {what}; name another folder") from None
    return folder


def unknown_flags(arguments: Sequence[str], known: Iterable[str]) -> str | None:
    """Return what is wrong with the first flag of a command line that is none; None if all are.

    Args:
        arguments: of the command line.
        known: names of the flags that there are, without dashes.
    """
    known = list(known)
    for argument in arguments:
        found = re.match(r"--?([a-zA-Z]\w*)(=|$)", argument)  # No key of the config, no number.
        if not found or {(name := found[1]), name.removeprefix("no")} & set(known):
            continue
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean --{near[0]}?" if near else "--help lists the flags"
        return f"unknown flag --{name}: {hint}"
    return None


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose refusals are one line too."""

    def error(self, message: str) -> NoReturn:
        """End the program with what is wrong and where the options are listed."""
        fail(f"{message}; {self.prog} --help lists the options")
