"""Stopping on a signal (SIGTERM, SIGINT), or where a machine is about to be taken away.

A signal's handler notes it, and nothing else: an exception out of a handler would come up wherever
Python happens to be, in a callback that swallows it or beside a compiler's thread that goes on. The
run looks at what was noted wherever it can stop: after each step, between the items of every long
loop, while it waits for data. There `Interrupted` is raised, and leaves all as it should be left.

A run may be far from such a place, in a compiler that takes minutes. Where no step could be lost, a
program does not wait for that: a thread ends it after `GRACE` seconds, as `kill -9` would, which
whatever a run writes has to survive anyway. Only programs ask for that (`may_end_process`), since a
notebook would not forgive it.

Several processes must stop after the same step, whichever of them was told: there JAX's preemption
service, which listens for SIGTERM itself, finds a place that all of them can still reach: the end
of a step, or in an evaluation the next set.
"""

import contextlib
import os
import queue
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any, ClassVar, NoReturn, TypeVar

import jax
from jax.experimental import multihost_utils

from otter_jax import terminal

Item = TypeVar("Item")

SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE = 2.0  # Seconds to come to a place to stop, where nothing is lost without.
POLL = 0.2  # Seconds between two looks while waiting.


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
        stopped = f"stopped by {self.signal.name}"
        if self.step is None:
            return f"{stopped}; the same command goes on"
        if self.step == 0:
            return (
                f"{stopped} before the first step; features of frozen towers that were computed "
                "are kept, and the same command goes on"
            )
        return f"{stopped} after step {self.step}; the same command goes on from there"


class Interruption(AbstractContextManager):
    """Listens to SIGTERM and SIGINT; leaving restores whoever listened before.

    A second SIGINT ends a program at once; elsewhere it is a plain KeyboardInterrupt. Outside the
    main thread, where Python does not let anyone listen, signals do what they did.

    Attributes:
        may_end_process: whether this process is a run and nothing else, so that it may be ended
            where it is far from a place to stop.
        step: the last step that was taken, once it is known.
        unsaved: whether stopping at once would lose a step.
    """

    may_end_process: ClassVar[bool] = False

    def __init__(self) -> None:
        """Prepare to listen; `with` begins."""
        self.step: int | None = None
        self.unsaved = False
        self._received: int | None = None
        self._leaving = False
        self._looks = 0
        self._together = jax.distributed.is_initialized()
        self._last_words: list[Callable[[], None]] = []
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> "Interruption":
        """Begin to listen."""
        if threading.current_thread() is not threading.main_thread():
            return self
        # Between several processes SIGTERM belongs to JAX's service, and SIGINT is passed on.
        for number in (signal.SIGINT,) if self._together else SIGNALS:
            before = signal.signal(number, self._receive)
            # None: it was set outside Python, which cannot set it again.
            self._undo.callback(signal.signal, number, signal.SIG_DFL if before is None else before)
        if not self._together:
            self._undo.enter_context(terminal.between_items(self.look_alone))
        if self.may_end_process and not self._together:
            self._watch()
        return self

    def __exit__(self, *exception: object) -> None:
        """Cease to listen."""
        self._leaving = True
        self._undo.close()

    def before_end(self, call: Callable[[], None]) -> None:
        """Have something called before the process is ended from beside, in another thread."""
        self._last_words.append(call)

    def look(self, step: int | None = None) -> None:
        """Raise `Interrupted` if it is time to stop; note the step that has just been taken.

        Where there are several processes, each must come by here as often as the others.
        """
        self.step = self.step if step is None else step
        if self._must_stop():
            self._leaving = True
            raise Interrupted(self._received or signal.SIGTERM, self.step)

    def look_alone(self) -> None:
        """Do the same where several processes need not come by together; they go on."""
        if not self._together:
            self.look()

    def waiting(self, items: Iterator[Item]) -> Iterator[Item]:
        """Pass items on; where one takes long, a signal is not kept waiting for it."""
        if self._together:
            yield from items
            return
        wanted, found = queue.SimpleQueue(), queue.SimpleQueue()
        threading.Thread(target=_fetch, args=(items, wanted, found), daemon=True).start()
        try:
            while True:
                wanted.put(True)
                item, error = self._next(found)
                if error is not None:
                    raise error
                yield item
        except StopIteration:
            return
        finally:
            wanted.put(False)

    def _next(self, found: queue.SimpleQueue) -> tuple[Any, Exception | None]:
        while True:
            try:
                return found.get(timeout=POLL)
            except queue.Empty:
                self.look_alone()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """Note a signal; of the second SIGINT whoever listened before is told."""
        if self._received is None:
            self._received = number
            if number == signal.SIGINT:  # Not with print, which may be what was interrupted.
                what = "saving what is finished" if self.unsaved else "stopping"
                os.write(2, f"\notter_jax: {what}; once more breaks this off\n".encode())
            if self._together:
                os.kill(os.getpid(), signal.SIGTERM)
        elif number == signal.SIGINT and not self.may_end_process:
            raise KeyboardInterrupt

    def _must_stop(self) -> bool:
        if not self._together:
            return self._received is not None
        self._looks += 1  # JAX agrees on one of these numbers, so that none may be left out.
        try:
            return multihost_utils.reached_preemption_sync_point(self._looks)
        except RuntimeError:  # JAX was told to do without its preemption service.
            return False

    def _watch(self) -> None:
        """Start the thread that ends the process.

        Signals reach it through a pipe, into which C writes them: their handlers have to wait for
        whatever the main thread is in.
        """
        reads, writes = os.pipe()
        os.set_blocking(writes, False)
        before = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._end_when_told, args=(reads,), daemon=True)
        thread.start()

        def stop() -> None:
            signal.set_wakeup_fd(before)
            os.write(writes, b"\0")
            thread.join()
            os.close(reads)
            os.close(writes)

        self._undo.callback(stop)

    def _end_when_told(self, reads: int) -> None:
        told: list[int] = []
        pipe = select.poll()
        pipe.register(reads, select.POLLIN)
        while True:
            if not pipe.poll(1000 * GRACE if told else None):
                if not (self._leaving or self.unsaved):
                    self._end(told[0])
                continue
            (number,) = os.read(reads, 1)
            if number == 0:  # No signal: the end.
                return
            if told and number == signal.SIGINT:
                self._end(number, broken_off=True)
            if number in SIGNALS:
                told.append(number)

    def _end(self, number: int, *, broken_off: bool = False) -> NoReturn:
        """End the process from beside: nothing is finalized while a thread may compile."""
        words = "broken off; the same command goes on from the last checkpoint"
        words = words if broken_off else str(Interrupted(number, self.step))
        for call in self._last_words:
            with contextlib.suppress(Exception):
                call()
        os.write(1, f"\notter_jax: {words}\n".encode())
        os._exit(128 + number)


def _fetch(items: Iterator[Item], wanted: queue.SimpleQueue, found: queue.SimpleQueue) -> None:
    """Put an item into `found`, or the exception instead, each time that one is wanted."""
    while wanted.get():
        try:
            found.put((next(items), None))
        except Exception as error:
            found.put((None, error))


def leave(status: int) -> NoReturn:
    """End a program that was interrupted, with this exit status; it waits for no thread."""
    if jax.distributed.is_initialized():
        sys.exit(status)  # JAX takes leave of the other processes.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
