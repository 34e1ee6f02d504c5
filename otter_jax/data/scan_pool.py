"""Scanning of many files by several processes, with the results in order.

The processes are started as programs of their own: a fork would carry the threads of JAX with it,
and multiprocessing would run a script that has no `if __name__ == "__main__"` a second time.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from otter_jax.data import storage

T = TypeVar("T")

_WORTH_A_PROCESS = 64 << 20  # Bytes; less is scanned before a process has started.
_MOST_PROCESSES = 16
_FILES_AT_A_TIME = 8  # So that a process lives much longer than it takes to start.


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
    """
    if processes is None:
        worth = sum(storage.state_of(path)[0] for path in paths) // _WORTH_A_PROCESS
        processes = min(os.cpu_count() or 1, _MOST_PROCESSES, len(paths), worth)
    if processes < 2:
        yield from map(scan, paths)
        return
    size = min(_FILES_AT_A_TIME, -(-len(paths) // processes))
    chunks = [paths[first : first + size] for first in range(0, len(paths), size)]
    with ThreadPoolExecutor(processes) as pool:
        try:
            for results in pool.map(lambda chunk: _scan_elsewhere(scan, chunk), chunks):
                yield from results
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _scan_elsewhere(scan: Callable[[str], T], paths: Sequence[str]) -> list[T]:
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import _serve; _serve()"],
        input=pickle.dumps((scan, paths)),
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if done.returncode:
        raise OSError(f"{paths[0]}: the process that indexed it died ({done.returncode})")
    results = pickle.loads(done.stdout)
    if isinstance(results, Exception):
        raise results
    return results


def _serve() -> None:
    """Answer the one question that standard input holds."""
    scan, paths = pickle.load(sys.stdin.buffer)
    try:
        results = [scan(path) for path in paths]
    except Exception as error:  # Whatever it is, it is raised where it was asked for.
        results = error
    pickle.dump(results, sys.stdout.buffer)
