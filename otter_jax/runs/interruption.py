"""Stopping on a signal (SIGTERM, SIGINT), or where a machine is about to be taken away.

Inside `Interruption` a signal becomes an `Interrupted` exception: at once where nothing can be
lost, and at the end of the block where a step is under way. Several processes must stop after the
same step, whichever of them was told: there JAX's preemption service, which listens for SIGTERM
itself, finds a place that all of them can still reach: the end of a step, or in an evaluation the
next set.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop.

    Attributes:
        signal: which signal asked.
        step: the step after which the run stopped, once that is known.
        status: the exit status that a shell expects, 143 or 130.
    """

    def __init__(self, number: int, step: int | None = None):
        """Take the number of the signal."""
        super().__init__(number, step)
        self.signal, self.step = signal.Signals(number), step
        self.status = 128 + number

    def __str__(self) -> str:
        """Return one line: what stopped the run, after which step, and how it goes on."""
        if self.step is None:
            return f"stopped by {self.signal.name}; the same command goes on from the last step"
        return (
            f"stopped by {self.signal.name} after step {self.step}; "
            "the same command goes on from there"
        )


class Interruption(AbstractContextManager):
    """Listens to SIGTERM and SIGINT; leaving restores whoever listened before.

    A second SIGINT is a plain KeyboardInterrupt, wherever it comes. Outside the main thread, where
    Python does not let anyone listen, signals do what they did.
    """

    def __init__(self) -> None:
        """Prepare to listen; `with` begins."""
        self._before: dict[int, Any] = {}
        self._received: int | None = None
        self._held = False
        self._looks = 0
        self._together = jax.distributed.is_initialized()

    def __enter__(self) -> "Interruption":
        """Begin to listen."""
        if threading.current_thread() is threading.main_thread():
            # Between several processes SIGTERM belongs to JAX's service, and SIGINT is passed on.
            heard = (signal.SIGINT,) if self._together else SIGNALS
            self._before = {number: signal.signal(number, self._receive) for number in heard}
        return self

    def __exit__(self, *exception: object) -> None:
        """Cease to listen."""
        for number, handler in self._before.items():
            # None: it was set outside Python, which cannot set it again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self._received = number
        if number == signal.SIGINT:  # Not with print, which may be what was interrupted.
            os.write(2, b"\notter_jax: saving what is finished; once more breaks this off\n")
        if self._together:
            os.kill(os.getpid(), signal.SIGTERM)
        elif not self._held:
            raise Interrupted(number)

    @contextmanager
    def held(self, step: int) -> Iterator[None]:
        """Protect a step from signals: `Interrupted` is raised when the block is over.

        Where there are several processes, each must come by here at every step.
        """
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.look(step)

    def look(self, step: int | None = None) -> None:
        """Raise `Interrupted` if it is time to stop; a lone process is told so without looking.

        Where there are several processes, each must come by here as often as the others.
        """
        if self._must_stop():
            raise Interrupted(self._received or signal.SIGTERM, step)

    def _must_stop(self) -> bool:
        if not self._together:
            return self._received is not None
        self._looks += 1  # JAX agrees on one of these numbers, so that none may be left out.
        try:
            return multihost_utils.reached_preemption_sync_point(self._looks)
        except RuntimeError:  # JAX was told to do without its preemption service.
            return False
