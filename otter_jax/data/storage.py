"""Files by path, on a disk or, through fsspec, in a store such as gs:// or s3://.

Stores are read by range requests: one for a member of a record, none for the rest of a shard. The
members of a record are asked for together; for more records at a time, load by more threads.
"""

import contextlib
import glob
import itertools
import math
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

State = tuple[int, str]  # A file's size in bytes and version, as `state_of` gives them.
Span = tuple[int, int]  # (offset, size) in bytes.

MAX_FILES = 1_000_000  # That a pattern may stand for; the largest public sets have a third of it.

_MOST_DIGITS = 18
_SAMPLE = 256


class Reader(Protocol):
    """A file open for reads that leave no position behind."""

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset` on; ValueError if the file is shorter."""
        ...

    def read_all(self, spans: Sequence[Span]) -> list[bytes]:
        """Return the bytes of some spans; a store is asked for all of them at the same time."""
        ...


def is_remote(path: str) -> bool:
    """Return whether a path names an object in a store instead of a file on a disk."""
    return "://" in path


@contextlib.contextmanager
def open_reader(path: str, state: State | None = None) -> Iterator[Reader]:
    """Open a file for the length of a few reads.

    Args:
        path: The file.
        state: What `state_of` said when the file was indexed. A store is not asked again, which
            would take as long as the read; there only a file that has become shorter is noticed.

    Raises:
        ValueError: If the file is in another state than that.
    """
    if is_remote(path):
        yield _RemoteReader(path)
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if state is not None and _local_state(os.fstat(descriptor)) != state:
            raise ValueError(f"{path}: has changed since it was indexed; restart the run")
        yield _LocalReader(path, descriptor)
    finally:
        os.close(descriptor)


def sample(file: Reader, offset: int, size: int) -> bytes:
    """Return some bytes from the middle and the end of a span, to tell its contents by.

    Two images that are compressed to the same size hardly ever agree there.
    """
    length = min(_SAMPLE, size)
    middle = offset + (size - length) // 2
    return file.read(middle, length) + file.read(offset + size - length, length)


class _LocalReader:
    def __init__(self, path: str, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._descriptor, size, offset) if size else b""
        return _of_full_size(data, size, self._path)

    def read_all(self, spans: Sequence[Span]) -> list[bytes]:
        return [self.read(*span) for span in spans]


class _RemoteReader:
    def __init__(self, path: str) -> None:
        self._path = path
        self._system, self._name = _file_system(path)

    def read(self, offset: int, size: int) -> bytes:
        return self.read_all([(offset, size)])[0]

    def read_all(self, spans: Sequence[Span]) -> list[bytes]:
        wanted = [(offset, offset + size) for offset, size in spans if size]
        starts, ends = map(list, zip(*wanted, strict=True)) if wanted else ([], [])
        names = [self._name] * len(wanted)
        with _naming(self._path):
            found = iter(self._system.cat_ranges(names, starts, ends, on_error="raise"))
        return [_of_full_size(next(found) if size else b"", size, self._path) for _, size in spans]


def _of_full_size(data: bytes, size: int, path: str) -> bytes:
    if len(data) != size:
        raise ValueError(f"{path}: shorter than when it was indexed; restart the run")
    return data


def state_of(path: str) -> State:
    """Return a file's size in bytes and a text that changes when its contents do.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is a folder, or what would be waited for without end: a pipe, a device.
    """
    if not is_remote(path):
        refuse_no_file(path)
        return _local_state(os.stat(path))
    system, name = _file_system(path)
    with _naming(path):
        info = system.info(name)
    names = ("ETag", "etag", "blob_id", "mtime", "LastModified", "last_modified", "updated",
             "created")  # fmt: skip
    return int(info["size"]), next((str(info[key]) for key in names if info.get(key)), "")


def refuse_no_file(path: str) -> None:
    """Refuse what is there but no file with contents to seek in, such as a pipe (ValueError)."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is no regular file but a folder, a pipe or a device")


def exists(path: str) -> bool:
    """Return whether there is such a file."""
    try:
        state_of(path)
    except FileNotFoundError:
        return False
    return True


def _local_state(status: os.stat_result) -> State:
    return status.st_size, str(status.st_mtime_ns)


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[str]:
    """Give a path on this machine's disk: that of a temporary copy, if the file is remote."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="otter_jax_") as folder:
        system, name = _file_system(path)
        copy = os.path.join(folder, "copy")
        with _naming(path):
            system.get_file(name, copy)
        yield copy


def find_files(pattern: str, suffix: str) -> list[str]:
    """Return the files a pattern stands for: braces first, then folders and globs.

    Args:
        pattern: A file, a folder, a glob, any of them with brace ranges `{000..331}` or `{a,b}`.
        suffix: Which files of a folder are meant, such as ".tar".

    Raises:
        FileNotFoundError: If a glob or a folder matches nothing.
        ValueError: If a brace range runs backwards, or is longer than any data set is.
    """
    found: list[str] = []
    for expanded in _expand_braces(pattern):
        folder = _is_folder(expanded)
        found += _match(f"{expanded.rstrip('/')}/*{suffix}" if folder else expanded, suffix)
    return found


def _is_folder(path: str) -> bool:
    if not is_remote(path):
        return os.path.isdir(path)
    if glob.has_magic(path):
        return False
    system, name = _file_system(path)
    with _naming(path):
        return bool(system.isdir(name))


def _match(pattern: str, suffix: str) -> list[str]:
    """Return the files a glob matches, sorted; a name without wildcards stands for itself."""
    if not glob.has_magic(pattern) or (not is_remote(pattern) and os.path.exists(pattern)):
        return [pattern]
    if is_remote(pattern):
        system, name = _file_system(pattern)
        with _naming(pattern):
            matches = sorted(system.unstrip_protocol(match) for match in system.glob(name))
    else:
        matches = sorted(glob.glob(pattern))
    if not matches:
        kind = suffix.removeprefix(".")
        compressed = not is_remote(pattern) and glob.glob(f"{pattern}.*")
        hint = (
            f", only {os.path.basename(compressed[0])}, which must be uncompressed first"
            if compressed
            else ""
        )
        raise FileNotFoundError(f"{pattern}: no {kind} shard matches{hint}")
    return matches


def _file_system(path: str) -> tuple[Any, str]:
    """Return the fsspec file system of a remote path, and the path's name in it."""
    scheme = path.partition("://")[0]
    try:
        import fsspec
        from fsspec.core import url_to_fs
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{path}: stores are read through fsspec, which is not installed"
        ) from None
    if scheme not in fsspec.available_protocols():
        raise ValueError(f"{path}: unknown kind of store {scheme}://")
    try:
        return url_to_fs(path)
    except ImportError as error:
        raise ModuleNotFoundError(f"{path}: {scheme}:// needs another package: {error}") from None


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Make an OSError that names the path of what a store's client raises, of types of its own."""
    try:
        yield
    except (OSError, ValueError, ImportError, MemoryError):
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or "no reason given"
        raise OSError(f"{path}: {type(error).__name__}: {said:.200}") from error


def _expand_braces(pattern: str) -> list[str]:
    """Expand `{000..331}` and `{a,b}` the way a shell does, leading zeros kept."""
    pieces = re.split(r"\{([^{}]*)\}", pattern)  # literal, choice, literal, choice, ..., literal
    choices = [[p] if i % 2 == 0 else _brace_choices(p) for i, p in enumerate(pieces)]
    if math.prod(map(len, choices)) > MAX_FILES:
        raise ValueError(f"{pattern:.100}: its braces stand for more than {MAX_FILES:,} files")
    return ["".join(combination) for combination in itertools.product(*choices)]


def _brace_choices(text: str) -> Sequence[str]:
    limits = re.fullmatch(r"([0-9]+)\.\.([0-9]+)", text)
    if limits is None:
        return text.split(",")
    first, last = limits.groups()
    if max(len(first), len(last)) > _MOST_DIGITS or int(last) - int(first) >= MAX_FILES:
        raise ValueError(f"shard range {{{text:.60}}} has more than {MAX_FILES:,} files")
    if int(first) > int(last):
        raise ValueError(f"shard range {{{text}}} runs backwards; write {{{last}..{first}}}")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
