"""A thousand damaged pairs, and what should be said of each: for tests and for trying things out.

    python tests/data/corruption.py FOLDER [COUNT]

writes a folder of tar shards and prints how many records of each kind they hold.
"""

import dataclasses
import io
import random
import struct
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Members = list[tuple[str, bytes]]


@dataclasses.dataclass(frozen=True)
class Damage:
    """A kind of damage.

    Attributes:
        make: (key, a random source) -> the members of the damaged pair.
        skipped: The reason for which indexing leaves the pair out, or None.
        unreadable: Whether decoding its image must fail; None: it may.
    """

    make: Callable[[str, random.Random], Members]
    skipped: str | None = None
    unreadable: bool | None = False


def image_file(rng: random.Random, kind: str = "JPEG") -> bytes:
    """A small noisy image: damage anywhere in it is damage to its contents."""
    noise = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (40, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


def png_bomb(side: int = 30_000) -> bytes:
    """A valid PNG of a few hundred bytes that claims `side` x `side` pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(3 * side))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def flip_bits(data: bytes, rng: random.Random, count: int = 8) -> bytes:
    """The same bytes with some bits turned over."""
    damaged = bytearray(data)
    for _ in range(count):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def forge_header(archive: bytes, rng: random.Random) -> bytes:
    """The same tar with nonsense in one header, whose checksum is right."""
    damaged = bytearray(archive)
    start = 512 * rng.randrange(len(damaged) // 512)
    header = damaged[start : start + 512]
    first, length = rng.choice([(124, 12), (156, 1), (0, 100), (345, 155)])  # Size, kind, names.
    header[first : first + length] = bytes(rng.choices(b"07Lxg/.S\0\x80\xff", k=length))
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    damaged[start : start + 512] = header
    return bytes(damaged)


def _pair(key: str, image: bytes, caption: bytes = b"a cat", extension: str = "jpg") -> Members:
    return [(f"{key}.{extension}", image), (f"{key}.txt", caption)]


DAMAGES: dict[str, Damage] = {
    "none": Damage(lambda key, rng: _pair(key, image_file(rng))),
    "bit flips in a jpeg": Damage(
        lambda key, rng: _pair(key, flip_bits(image_file(rng), rng)), unreadable=None
    ),
    "bit flips in a png": Damage(
        lambda key, rng: _pair(key, flip_bits(image_file(rng, "PNG"), rng), extension="png"),
        unreadable=None,
    ),
    "cut png": Damage(
        lambda key, rng: _pair(key, image_file(rng, "PNG")[: rng.randrange(60, 2000)]),
        unreadable=True,
    ),
    "cut header": Damage(
        lambda key, rng: _pair(key, image_file(rng)[: rng.randrange(1, 100)]), unreadable=True
    ),
    "png bomb": Damage(lambda key, rng: _pair(key, png_bomb(), extension="png"), unreadable=True),
    "text named jpg": Damage(
        lambda key, rng: _pair(key, b"<html>404 Not Found</html>"), unreadable=True
    ),
    "png named webp": Damage(lambda key, rng: _pair(key, image_file(rng, "PNG"), extension="webp")),
    "nul bytes named jpg": Damage(lambda key, rng: _pair(key, bytes(5000)), unreadable=True),
    "empty image": Damage(lambda key, rng: _pair(key, b""), "no image"),
    "image with an unknown extension": Damage(
        lambda key, rng: _pair(key, image_file(rng), extension="xyz"), "no image"
    ),
    "empty caption": Damage(lambda key, rng: _pair(key, image_file(rng), b""), "empty caption"),
    "caption of nul": Damage(
        lambda key, rng: _pair(key, image_file(rng), bytes(20)), "empty caption"
    ),
    "caption with nul": Damage(lambda key, rng: _pair(key, image_file(rng), b"a\0 cat\0")),
    "caption of a megabyte": Damage(
        lambda key, rng: _pair(key, image_file(rng), rng.choice([b"cat ", "猫".encode()]) * 262_144)
    ),
    "caption not utf-8": Damage(
        lambda key, rng: _pair(key, image_file(rng), b"caf\xe9 \xff\xfe"), "caption not UTF-8"
    ),
    "absolute name": Damage(lambda key, rng: _pair(f"/etc/{key}", image_file(rng)), "unsafe name"),
    "name that leads out": Damage(
        lambda key, rng: _pair(f"../../{key}", image_file(rng)), "unsafe name"
    ),
    "key twice": Damage(
        lambda key, rng: _pair(key, image_file(rng)) + _pair(key, image_file(rng))[:1],
        "second member of its kind under one key",
    ),
}
KEEPS_THE_PAIR = {"key twice"}  # Although something of it is skipped.


def damaged_pairs(count: int, seed: int = 0) -> list[tuple[str, Members]]:
    """`count` pairs (kind of damage, members), every kind equally often."""
    rng = random.Random(seed)
    kinds = list(DAMAGES)
    chosen = [kinds[number % len(kinds)] for number in range(count)]
    return [(kind, DAMAGES[kind].make(f"{n:06d}", rng)) for n, kind in enumerate(chosen)]


def write_damaged_shards(folder: Path, count: int, seed: int = 0, per_shard: int = 100) -> Counter:
    """Write damaged pairs into tar shards; returns how many there are of each kind."""
    pairs = damaged_pairs(count, seed)
    for first in range(0, count, per_shard):
        with tarfile.open(folder / f"{first:06d}.tar", "w") as archive:
            for _, members in pairs[first : first + per_shard]:
                for name, data in members:
                    header = tarfile.TarInfo(name)
                    header.size = len(data)
                    archive.addfile(header, io.BytesIO(data))
    return Counter(kind for kind, _ in pairs)


def main() -> None:
    """Write shards into a folder."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for kind, number in write_damaged_shards(folder, int((*sys.argv, "1000")[2])).items():
        print(f"{number:6d} {kind}")


if __name__ == "__main__":
    main()
