"""Thousands of damaged files of every form that data come in: for tests and for trying things out.

    python tests/data/mutations.py [COUNT]

opens COUNT of them and prints what became of each form.
"""

import dataclasses
import io
import json
import random
import signal
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from otter_jax.data import images
from otter_jax.data.records import RecordError, read_in_order
from otter_jax.data.sources import Source, open_source, remarks
from otter_jax.data.templates import read_templates

SECONDS = 20  # More is a hang.
REFUSALS = (ValueError, OSError, ModuleNotFoundError)  # What commands print as one line.
PNG = cv2.imencode(".png", np.full((6, 8, 3), 99, np.uint8))[1].tobytes()
_TOKENS = (b"\0", b"\xff", b'"', b"'", b"\n", b"\r", b",", b"\t", b"[", b"{", b"\\", b"|", b":",
           b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\xbd", b"\xe2\x80\xa8", b"9" * 40, b"-1", b"../",
           b"null", b"[" * 3000, b"x" * 200_000, b"", b"\x1c", b"PAR1", b"://")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Form:
    """A form of data.

    Attributes:
        name: The file's.
        whole: Its contents, undamaged.
        open: Opens it at a path and returns a number of records, or None.
        records: How many records a damaged file has, where that can be told otherwise.
        in_place: Whether bytes only change: what a footer points to would else never be read.
    """

    name: str
    whole: bytes
    open: Callable[[Path], int | None]
    records: Callable[[bytes], int | None] = lambda data: None
    in_place: bool = False


def read_pairs(source: Source) -> int:
    """Read and decode all pairs as training does; the number of records there are."""
    remarks(source)
    readable = unreadable = 0
    for _, record in read_in_order(source, range(len(source))):
        try:
            if isinstance(record, RecordError):
                raise record
            assert record.caption and "\0" not in record.caption and len(record.caption) <= 10_000
            record.caption.encode()
            images.decode(record.image)
            readable += 1
        except (RecordError, images.ImageError) as error:
            assert str(error) and "\n" not in str(error)
            unreadable += 1
    assert readable + unreadable == len(source)
    return len(source) + sum(source.skipped.values())


def open_pairs(spec: str) -> Callable[[Path], int]:
    """What opens a file by a SPEC, in which {} is its path."""
    return lambda path: read_pairs(open_source(spec.format(path)))


def plain_rows(data: bytes) -> int | None:
    """The rows of a table without quotes, lone returns and cells that are too long."""
    if b'"' in data or b"\r" in data or len(data) > 100_000:
        return None
    return sum(1 for line in data.split(b"\n")[1:] if line)


def json_rows(data: bytes) -> int:
    """The lines that are not blank."""
    return sum(1 for line in data.split(b"\n") if line.strip())


def make_tar() -> bytes:
    """Five pairs with metadata."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(5):
            metadata = json.dumps({"captions": [f"caption {number}", "another"]}).encode()
            for suffix, data in (("png", PNG), ("txt", b"a cat"), ("json", metadata)):
                header = tarfile.TarInfo(f"{number:03d}.{suffix}")
                header.size = len(data)
                archive.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


def make_parquet(*, inside: bool) -> bytes:
    """Six rows, with images inside or by their names."""
    import pyarrow
    from pyarrow import parquet

    image = [{"bytes": PNG, "path": "a.png"}] * 6 if inside else ["a.png", "b.png", "gone"] * 2
    captions = [["one", "two"], ["three"], [], None, ["four"], ["five"]]
    buffer = io.BytesIO()
    table = pyarrow.table({"image": image, "captions": captions})
    parquet.write_table(table, buffer, row_group_size=2)
    return buffer.getvalue()


def parquet_rows(data: bytes) -> int | None:
    """What the footer says."""
    from pyarrow import parquet

    return parquet.ParquetFile(io.BytesIO(data)).metadata.num_rows


ROWS = "\n".join(f"{name}.png,caption number {n}" for n, name in enumerate("ababgaa"))
FORMS = (
    Form("p.csv", f"image,caption\n{ROWS}\n".encode(), open_pairs("csv:{}"), plain_rows),
    Form("q.csv", b'\xef\xbb\xbf"image","caption"\n"a.png","[""x"", ""y""]"\n' * 3,
         open_pairs("csv:{}")),
    Form("p.tsv", f"image,caption\n{ROWS}\n".replace(",", "\t").encode(), open_pairs("csv:{}"),
         plain_rows),
    Form("p.jsonl", b'{"file_name": "a.png", "text": ["x", "\\ud83d"]}\n' * 4,
         open_pairs("csv:{}"), json_rows),
    Form("p.parquet", make_parquet(inside=False), open_pairs("csv:{}"), parquet_rows, True),
    Form("b.parquet", make_parquet(inside=True), open_pairs("csv:{}"), parquet_rows, True),
    Form("c.parquet", make_parquet(inside=True), open_pairs("csv:{}"), parquet_rows),
    Form("p.tar", make_tar(), open_pairs("webdataset:{}")),
    Form("l.tar", make_tar(), open_pairs("webdataset:{}?captions=lines")),
    Form("templates.txt", b"a photo of {}.\na drawing of a {}\n\n{}\n",
         lambda path: len(read_templates(str(path))) and None),
)  # fmt: skip


def mutate(data: bytes, rng: random.Random, *, in_place: bool = False) -> bytes:
    """The same bytes with one to four accidents, that change nothing's place if so wanted."""
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(damaged) + 1)
        length = min(rng.choice((1, 2, 8, 64, 512)), len(damaged) - place)
        accident = rng.choice((4, 5) if in_place else range(7))
        if accident == 0:
            del damaged[place:]
        elif accident == 1:
            del damaged[place : place + length]
        elif accident == 2:
            damaged[place:place] = rng.choice(_TOKENS)
        elif accident == 3:
            damaged[place:place] = damaged[place : place + length]
        elif accident == 4:
            damaged[place : place + length] = rng.randbytes(length)
        elif damaged and accident == 5:
            damaged[place % len(damaged)] ^= 1 << rng.randrange(8)
        else:
            damaged[place : place + 1] = rng.choice(_TOKENS)
    return bytes(damaged)


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the main thread where a block takes longer."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(form: Form, data: bytes, path: Path) -> str:
    """What becomes of a damaged file: "read" or "refused"; anything else fails."""
    path.write_bytes(data)
    try:
        with limited(SECONDS):
            counted = form.open(path)
    except TimeoutError:
        raise AssertionError(f"{form.name} hangs") from None
    except REFUSALS as error:
        assert str(error).strip(), form.name
        assert path.name in str(error), (form.name, str(error))
        return "refused"
    if counted is not None and (records := form.records(data)) is not None:
        assert counted == records, (form.name, counted, records)
    return "read"


def cases(count: int, seed: int, forms: tuple[Form, ...] = FORMS) -> Iterator[tuple[Form, bytes]]:
    """`count` damaged files, of every form equally many."""
    rng = random.Random(seed)
    for number in range(count):
        form = forms[number % len(forms)]
        yield form, mutate(form.whole, rng, in_place=form.in_place)


def write_images(folder: Path) -> None:
    """The images that tables name."""
    for name in "ab":
        (folder / f"{name}.png").write_bytes(PNG)


def main() -> None:
    """Count outcomes by form, and show the first failure of each kind."""
    outcomes: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as name:
        write_images(Path(name))
        for form, data in cases(int([*sys.argv, "2000"][1]), 0):
            try:
                found = outcome(form, data, Path(name) / form.name)
            except Exception as error:
                found = f"{type(error).__name__}: {error!s:.300}"
            outcomes[form.name, found] += 1
    for (name, found), number in sorted(outcomes.items()):
        print(f"{number:6d} {name:15s} {found}")


if __name__ == "__main__":
    main()
