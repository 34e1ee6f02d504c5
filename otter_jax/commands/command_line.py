"""How every program speaks: what is wrong with the input ends in one line."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

# What bad input raises, in words for whoever gave it; anything else is a fault of ours.
REFUSALS = (ValueError, OSError, ModuleNotFoundError, FloatingPointError)


def fail(reason: str | Exception) -> NoReturn:
    """End the program with one line on standard error, and status 1."""
    sys.exit(f"otter_jax: {' '.join(str(reason).split())}")


@contextmanager
def ending_in_one_line() -> Iterator[None]:
    """Let a refusal or Ctrl-C in this block end the program with one line."""
    try:
        yield
    except REFUSALS as error:
        fail(error)
    except KeyboardInterrupt as stop:
        print(f"\notter_jax: {str(stop) or 'stopped'}", flush=True)
        if not hasattr(stop, "status"):  # No run was interrupted that has processes beside it.
            os._exit(130)
        from otter_jax.runs.interruption import leave

        leave(stop.status)


def path_of(text: str) -> Path:
    """Return the path that an argument names; an empty one would mean the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return Path(text).expanduser()


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose refusals are one line too."""

    def error(self, message: str) -> NoReturn:
        """End the program with what is wrong and where the options are listed."""
        fail(f"{message}; {self.prog} --help lists the options")
