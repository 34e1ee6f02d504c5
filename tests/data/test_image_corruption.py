"""Thousands of damaged files: each gives an image or a counted reason, soon, and no trace."""

import io
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from otter_jax.data import images

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
SECONDS = 5.0  # Thousands of times what a file of this size takes.


def picture(file_format: str, **options: object) -> bytes:
    """96 x 72 soft blots of colour."""
    blots = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = cv2.resize(blots, (96, 72), interpolation=cv2.INTER_CUBIC)
    buffer = io.BytesIO()
    Image.fromarray(smooth).save(buffer, file_format, **options)
    return buffer.getvalue()


PICTURES = {
    **{name: picture(name) for name in FORMATS},
    "progressive JPEG": picture("JPEG", progressive=True),
    "TIFF, LZW": picture("TIFF", compression="tiff_lzw"),
}


def outcome(data: bytes, **options: int) -> str:
    """Say "image", or the reason why there is none; anything else fails."""
    start = time.monotonic()
    try:
        array = images.decode(data, **options)
    except images.ImageError as error:
        assert error.reason in images.REASONS
        assert "\n" not in str(error)
        found = error.reason
    else:
        assert array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size
        found = "image"
    assert time.monotonic() - start < SECONDS
    return found


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    array = np.frombuffer(data, np.uint8).copy()
    positions = rng.integers(0, len(array), rng.integers(1, 20))
    array[positions] ^= np.left_shift(1, rng.integers(0, 8, len(positions))).astype(np.uint8)
    return array.tobytes()


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: rng.integers(len(data))]


def spliced(data: bytes, rng: np.random.Generator) -> bytes:
    """The beginning of one file and the end of another, or of the same."""
    other = list(PICTURES.values())[rng.integers(len(PICTURES))] if rng.random() < 0.5 else data
    return data[: rng.integers(len(data))] + other[rng.integers(len(other)) :]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage", [flipped, cut, spliced])
def test_a_thousand_damaged_files(
    damage: Callable[[bytes, np.random.Generator], bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    rng = np.random.default_rng(0)
    found: Counter[str] = Counter()
    for number in range(1008):
        data = list(PICTURES.values())[number % len(PICTURES)]
        options = {"at_least": 20} if number % 2 else {}
        found[outcome(damage(data, rng), **options)] += 1
    assert found.total() == 1008
    assert not list(tmp_path.iterdir())
    if damage is cut:  # All but the few whose very end was cut, or no more than the header left.
        assert found["truncated"] > 800 and found["image"] < 30
    else:
        assert found["image"] > 200 and found["damaged"] > 100


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(PICTURES)), st.data())
def test_any_edit(name: str, data: st.DataObject) -> None:
    damaged = bytearray(PICTURES[name])
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.integers(0, len(damaged)))
        length = data.draw(st.sampled_from([0, 1, 2, 4, 64, 10_000]))
        damaged[start : start + length] = data.draw(st.binary(max_size=6))
    outcome(bytes(damaged))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF\xff\0\0\0WEBPVP8 ",
                        b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"P6\n", b"%!PS-Adobe-3.0 EPSF-3.0"]),
       st.binary(max_size=200))  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_any_bytes_after_a_signature(signature: bytes, data: bytes) -> None:
    outcome(signature + data)


def png_of(width: int, height: int, rows: bytes) -> bytes:
    """A grey PNG that says it is of this size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 0, 0, 0, 0])
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def bomb(name: str) -> bytes:
    """A small file that says it is of 60,000 x 60,000 pixels, or near it."""
    if name == "PNG":
        return png_of(60_000, 60_000, bytes(10_000_000))  # 10 KB.
    data = bytearray(PICTURES[name])
    if name == "JPEG":
        start = data.index(b"\xff\xc0") + 5
        data[start : start + 4] = (60_000).to_bytes(2) * 2
    elif name == "GIF":
        data[6:10] = (60_000).to_bytes(2, "little") * 2
    elif name == "BMP":
        data[18:26] = (60_000).to_bytes(4, "little") * 2
    elif name == "PPM":
        data = bytearray(b"P6 60000 60000 255\n")
    return bytes(data)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "GIF", "BMP", "PPM"])
def test_bombs_are_refused_before_they_are_unpacked(name: str) -> None:
    start = time.monotonic()
    assert outcome(bomb(name)) == "too many pixels"
    assert time.monotonic() - start < 1.0


@pytest.mark.filterwarnings("ignore")
def test_more_data_than_the_size_says() -> None:
    assert outcome(png_of(8, 8, bytes(50_000_000))) in ("image", "damaged")
