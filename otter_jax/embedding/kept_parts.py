"""Parts of arrays that take long to compute, kept on disk until the whole is there."""

import contextlib
import shutil
import time
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from otter_jax.terminal import say

StoredArrays = dict[str, np.ndarray]

SECONDS = 5.0  # Between two writes: what a killed process loses of its work.
DAMAGE = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError)


class KeptParts(contextlib.AbstractContextManager):
    """Parts of some arrays, one behind the other; an exception has the last ones written too.

    A file is named by how many rows all arrays together have before it. So processes that compute
    the same do not mix what they have cut at different places.
    """

    def __init__(self, folder: Path):
        """Read what the folder has; it is made when there is something to write."""
        self._folder = folder
        self._written = 0  # Rows.
        self.known: list[StoredArrays] = list(self._read())
        self._pending: list[StoredArrays] = []
        self._last_write = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        """Write what has come since the last write, where the whole will not be there."""
        if kind is not None:
            with contextlib.suppress(OSError):  # It would hide what went wrong first.
                self._write()
            with contextlib.suppress(OSError):
                self._folder.rmdir()  # Of an empty one nobody has use.

    def add(self, part: StoredArrays) -> None:
        """Add the next part."""
        self._pending.append(part)
        if time.monotonic() - self._last_write >= SECONDS:
            self._write()

    def whole(self) -> StoredArrays:
        """Return all parts as one."""
        return join([*self.known, *self._pending])

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self) -> Iterator[StoredArrays]:
        while (part := read_arrays(self._path())) is not None:
            yield part
            self._written += count_rows(part)

    def _write(self) -> None:
        if part := join(self._pending):
            write_arrays(self._path(), part)
            self.known.append(part)
            self._written += count_rows(part)
        self._pending, self._last_write = [], time.monotonic()

    def _path(self) -> Path:
        return self._folder / f"{self._written:012d}.npz"


def join(parts: Sequence[StoredArrays]) -> StoredArrays:
    """Return arrays of the same names behind each other; nothing of no parts."""
    names = parts[0] if parts else ()
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def count_rows(arrays: StoredArrays) -> int:
    """Return how many rows all arrays have together."""
    return sum(map(len, arrays.values()))


def read_arrays(path: Path) -> StoredArrays | None:
    """Return the arrays of an .npz file, or None where there is none that is whole.

    The format has a checksum of each array.
    """
    if not path.is_file():
        return None
    try:
        with np.load(path) as stored:
            return dict(stored)
    except DAMAGE as error:
        say(f"{path} is damaged ({' '.join(str(error).split())}): it is computed again")
        return None


def write_arrays(path: Path, arrays: StoredArrays) -> None:
    """Write an .npz file; a reader finds a whole file or none, whoever writes it meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")  # Others may write it too.
    try:
        with partial.open("wb") as file:
            np.savez(file, **arrays)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
