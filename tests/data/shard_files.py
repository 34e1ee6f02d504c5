"""Tar shards written member by member, for tests."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

from otter_jax.data.sources import Source

Members = Iterable[tuple[str, bytes]]


def tar_bytes(members: Members, tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    """An archive of files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


def pair(key: str, caption: bytes = b"a cat", extension: str = "jpg") -> list[tuple[str, bytes]]:
    """The members of a pair, as img2dataset writes them."""
    metadata = json.dumps({"key": key}).encode()
    image = f"pixels of {key}".encode()
    return [(f"{key}.{extension}", image), (f"{key}.json", metadata), (f"{key}.txt", caption)]


def write(path: Path, *pairs: Members) -> Path:
    """Write a shard of some pairs."""
    path.write_bytes(tar_bytes(member for members in pairs for member in members))
    return path


def keys(source: Source) -> list[str]:
    """The keys of all records."""
    return [source[i].key for i in range(len(source))]
