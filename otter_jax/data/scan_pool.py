"""Scanning of many files by several processes, with the results in order.

The processes are started as programs of their own: a fork would carry the threads of JAX with it,
and multiprocessing would run a script that has no `if __name__ == "__main__"` a second time.
"""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import TypeVar

from otter_jax.data import storage

T = TypeVar("T")

_WORTH_A_PROCESS = 64 << 20  # Bytes; less is scanned before a process has started.
_MOST_PROCESSES = 16
_FILES_AT_A_TIME = 8  # So that a process lives much longer than it takes to start.
# Signals are ignored before anything is imported, which may take a while.
_PROGRAM = f"""
import signal
for name in {{"SIGINT", "SIGTERM", "SIGHUP"}} & set(dir(signal)):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
from {__name__} import _serve
_serve()
"""


def scan_in_order(
    scan: Callable[[str], T], paths: Sequence[str], processes: int | None = None
) -> Iterator[T]:
    """Yield `scan(path)` of every path in order, large amounts by several processes.

    Args:
        scan: A function of a module, that can be imported and whose results can be pickled.
        paths: The files.
        processes: How many; None: as many as there are cores, and as the files are worth.

    Raises:
        Exception: What `scan` raises.
        OSError: If a process dies, as it does where memory runs out.

    The processes leave Ctrl-C, SIGTERM and SIGHUP to this one: when it breaks off, whatever the
    reason, they are ended before the exception goes on.
    """
    if processes is None:
        worth = sum(storage.state_of(path)[0] for path in paths) // _WORTH_A_PROCESS
        processes = min(os.cpu_count() or 1, _MOST_PROCESSES, len(paths), worth)
    if processes < 2:
        yield from map(scan, paths)
        return
    size = min(_FILES_AT_A_TIME, -(-len(paths) // processes))
    chunks = [paths[first : first + size] for first in range(0, len(paths), size)]
    workers = _Workers()
    with ThreadPoolExecutor(processes) as pool:
        try:
            for results in pool.map(lambda chunk: workers.scan(scan, chunk), chunks):
                yield from results
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            workers.end()


class _Workers:
    """The processes that are at work; may be used from several threads."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._ended = False

    def scan(self, scan: Callable[[str], T], paths: Sequence[str]) -> list[T]:
        """Return the results of some files, found by a process of their own."""
        with self._start() as process:
            answer, _ = process.communicate(pickle.dumps((scan, paths)))
        with self._lock:
            self._running.discard(process)
        if process.returncode:
            raise OSError(f"{paths[0]}: the process at work on it died ({process.returncode})")
        results = pickle.loads(answer)
        if isinstance(results, Exception):
            raise results
        return results

    def _start(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._ended:
                raise CancelledError
            process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            )
            self._running.add(process)
        return process

    def end(self) -> None:
        """End those that are left; none is started any more."""
        with self._lock:
            self._ended = True
            for process in self._running:
                process.kill()  # They ignore anything milder.


def _serve() -> None:
    """Answer the one question that standard input holds."""
    scan, paths = pickle.load(sys.stdin.buffer)
    try:
        results = [scan(path) for path in paths]
    except Exception as error:  # Whatever it is, it is raised where it was asked for.
        results = error
    pickle.dump(results, sys.stdout.buffer)
