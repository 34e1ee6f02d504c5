"""Tar shards against archives written here member by member."""

import io
import json
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shard_files import Members, keys, pair, tar_bytes, write

from otter_jax.data.sources import describe_skipped_files, open_source, skipped_files
from otter_jax.data.tar_shards import TarShards


def test_pairs_come_back_as_they_were_written(tmp_path: Path) -> None:
    first = write(tmp_path / "0.tar", pair("000"), pair("001", "naïve café 猫".encode(), "webp"))
    second = write(tmp_path / "1.tar", pair("a/b/002", extension="PNG"), pair("003", b" x\n"))
    source = TarShards([first, second])
    assert len(source) == 4 and source.skipped == {}
    assert source[1][:4] == ("001", b"pixels of 001", "naïve café 猫", {"key": "001"})
    assert source[2][:4] == ("a/b/002", b"pixels of a/b/002", "a cat", {"key": "a/b/002"})
    assert source[-1].caption == "x"
    with pytest.raises(IndexError):
        source[4]


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_every_tar_dialect_and_long_names(tmp_path: Path, tar_format: int) -> None:
    key = "folder/" * 20 + "k" * 80  # Beyond the 100 characters of a plain header.
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes(pair(key) + pair("b"), tar_format))
    assert keys(TarShards([path])) == [key, "b"]


def test_members_of_a_pair_may_lie_apart_and_the_rest_is_ignored(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tar",
        [("README", b"no pair"), ("._x.jpg", b"macOS"), ("x.cls", b"1"), ("x.txt", b"a dog")],
        pair("y"),
        [("./x.jpg", b"first"), ("x.png", b"second image under one key")],
    )
    source = TarShards([path])
    assert keys(source) == ["x", "y"] and source[0].image == b"first"
    assert source.skipped == {"second member of its kind under one key": 1}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("x.txt", b"a cat")], "no image"),
        ([("x.jpg", b""), ("x.txt", b"a cat")], "no image"),
        ([("x.jpg", b"pixels")], "empty caption"),
        ([("x.jpg", b"pixels"), ("x.txt", b" \n\0\t")], "empty caption"),
        ([("x.jpg", b"pixels"), ("x.json", b'{"caption": null}')], "empty caption"),
        ([("x.jpg", b"pixels"), ("x.json", b"{broken")], "empty caption"),
        ([("x.jpg", b"pixels"), ("x.txt", b"caf\xe9")], "caption not UTF-8"),
        (pair("/etc/x"), "unsafe name"),
        (pair("a/../../x"), "unsafe name"),
    ],
)
def test_skipped_and_counted(tmp_path: Path, members: Members, reason: str) -> None:
    source = TarShards([write(tmp_path / "a.tar", pair("good"), members, pair("also"))])
    assert keys(source) == ["good", "also"]
    assert source.skipped == {reason: 1}


@pytest.mark.parametrize("text", [None, b"", b"  "])
def test_the_json_member_stands_in_for_the_caption(tmp_path: Path, text: bytes | None) -> None:
    members = [("x.jpg", b"pixels"), ("x.json", b'{"caption": "from json"}')]
    members += [] if text is None else [("x.txt", text)]
    assert TarShards([write(tmp_path / "a.tar", members)])[0].caption == "from json"


@pytest.mark.parametrize("data", [b"[1]", b"{broken", b"\xff", b"[" * 100_000])
def test_metadata_that_cannot_be_read_are_empty(tmp_path: Path, data: bytes) -> None:
    members = [("x.jpg", b"pixels"), ("x.json", data), ("x.txt", b"a cat")]
    assert TarShards([write(tmp_path / "a.tar", members)])[0].metadata == {}


@pytest.mark.parametrize(
    ("data", "caption"),
    [
        (b"a\0cat", "acat"),
        ("\ufeffa cat".encode(), "a cat"),
        (b"x" * 50_000, "x" * 10_000),
        ("猫".encode() * 20_000, "猫" * 10_000),  # The cut at 40,000 bytes falls inside a letter.
    ],
)
def test_captions_are_cleaned_of_what_tokenizers_choke_on(
    tmp_path: Path, data: bytes, caption: str
) -> None:
    assert TarShards([write(tmp_path / "a.tar", pair("x", data))])[0].caption == caption


PAIRS = [pair(f"{number:03d}") for number in range(5)]
WHOLE = tar_bytes(member for members in PAIRS for member in members)
LENGTH_OF_PAIR = 3 * 1024  # Three members, each a header and one block of data.


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(LENGTH_OF_PAIR, 5 * LENGTH_OF_PAIR))
def test_a_cut_shard_keeps_what_lies_before_the_cut(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.tar"
    path.write_bytes(WHOLE[:cut])
    source = TarShards([path])
    caption_ends = [number * LENGTH_OF_PAIR - 512 + len(b"a cat") for number in range(1, 6)]
    assert len(source) == sum(cut >= end for end in caption_ends)
    assert source.skipped == {"truncated tar": 1}
    assert all(source[i].image == f"pixels of {i:03d}".encode() for i in range(len(source)))


def test_a_broken_header_cuts_the_shard_and_spares_the_others(tmp_path: Path) -> None:
    broken = bytearray(WHOLE)
    broken[2 * LENGTH_OF_PAIR : 2 * LENGTH_OF_PAIR + 512] = b"?" * 512
    (tmp_path / "a.tar").write_bytes(broken)
    source = TarShards([tmp_path / "a.tar", write(tmp_path / "b.tar", pair("b"))])
    assert keys(source) == ["000", "001", "b"]
    assert source.skipped == {"truncated tar": 1}


def test_what_cut_shards_have_lost_is_estimated_by_the_whole_ones(tmp_path: Path) -> None:
    for number, count in enumerate((6, 10)):
        pairs = [pair(f"{n}") for n in range(count - 1)]
        write(tmp_path / f"{number}.tar", *pairs, pair("x", b""))  # The last is of no use.
    (tmp_path / "2.tar").write_bytes(WHOLE[: 3 * LENGTH_OF_PAIR])
    (tmp_path / "3.tar").write_bytes(WHOLE[: 5 * LENGTH_OF_PAIR])
    source = open_source(f"webdataset:{tmp_path}")
    assert source.skipped == {"empty caption": 2, "truncated tar": (8 - 3) + (8 - 5)}
    named = {
        f"{tmp_path}/2.tar": "truncated tar: 3 pairs read, about 5 lost",
        f"{tmp_path}/3.tar": "truncated tar: 5 pairs read, about 3 lost",
    }
    assert source.skipped_files == skipped_files(source) == named
    said = f"truncated, download again: {tmp_path}/2.tar, {tmp_path}/3.tar; about 8 pairs are lost"
    assert describe_skipped_files(source) == f"{said} of 32"


def test_a_shard_is_as_long_as_the_longest_where_none_is_whole(tmp_path: Path) -> None:
    for number in range(1, 6):
        (tmp_path / f"{number}.tar").write_bytes(WHOLE[: number * LENGTH_OF_PAIR])
    spec = f"webdataset:{tmp_path}"
    source = open_source((spec, "open_clipart"))
    assert source.skipped == {"truncated tar": 4 + 3 + 2 + 1 + 1}
    assert list(skipped_files(source)) == [f"{tmp_path}/{number}.tar" for number in range(1, 6)]
    assert f"{tmp_path}/3.tar and 2 more; about 11 pairs" in describe_skipped_files(source)
    assert describe_skipped_files(open_source("open_clipart")) == ""


def test_unreadable_shards_are_refused_by_name(tmp_path: Path) -> None:
    good = write(tmp_path / "good.tar", pair("x"))
    with pytest.raises(FileNotFoundError, match=r"gone\.tar: no such tar shard$"):
        TarShards([tmp_path / "gone.tar"])
    with pytest.raises(FileNotFoundError, match=r"2 of 3 shards are missing, first .*/gone\.tar$"):
        TarShards([good, tmp_path / "gone.tar", tmp_path / "lost.tar"])
    with pytest.raises(FileNotFoundError, match=r"/gone: no such folder"):
        TarShards([tmp_path / "gone"])
    for name, data in {
        "text.tar": b"text " * 500,
        "page.tar": b"text " * 50,
        "gz.tar": b"\x1f\x8b",
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}: not an uncompressed tar"):
            TarShards([good, tmp_path / name])


def test_no_pair_at_all_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [("x.txt", b"a cat")])
    with pytest.raises(ValueError, match=r"no image-text pair in 1 shard.*\(no image: 1\)"):
        TarShards([path])
    with pytest.raises(ValueError, match="no image-text pair in 0 shard"):
        TarShards([])


@pytest.mark.parametrize("caption", [b"a cat", b"a dog", b"a cat on a mat"])
def test_a_shard_that_changed_after_indexing_is_noticed(tmp_path: Path, caption: bytes) -> None:
    path = write(tmp_path / "a.tar", pair("x"))
    os.utime(path, (1, 1))
    source = TarShards([path])
    source[0]
    write(tmp_path / "a.tar", pair("x", caption))
    with pytest.raises(ValueError, match=r"a\.tar: has changed since it was indexed; restart"):
        source[0]


def test_fingerprint_follows_contents(tmp_path: Path) -> None:
    def fingerprint(*pairs: Members, folder: str = "one") -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        path = write(tmp_path / folder / "a.tar", *pairs)
        os.utime(path, (1, 1))
        return TarShards([path]).fingerprint

    image, metadata, text = pair("y")
    reference = fingerprint(pair("x"), pair("y"))
    assert reference == fingerprint(pair("x"), pair("y"), folder="another")
    others = [
        fingerprint(pair("x"), pair("z")),
        fingerprint(pair("y"), pair("x")),
        fingerprint(pair("x")),
        fingerprint(pair("x"), pair("y", b"another caption")),
        fingerprint(pair("x"), pair("y", b"a dog")),
        fingerprint(pair("x"), [image, (metadata[0], metadata[1].replace(b"key", b"yek")), text]),
        fingerprint(pair("x"), [(image[0], image[1][::-1]), metadata, text]),
        fingerprint(pair("x"), [("y.png", image[1] + b"!"), metadata, text]),
    ]
    assert len({reference, *others}) == 9


def test_fingerprint_follows_images_of_the_same_size(tmp_path: Path) -> None:
    sizes, fingerprints = set(), set()
    for number in range(4):
        pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        pixels[number, 0] ^= 128
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")  # Of noise, which cannot be compressed.
        sizes.add(len(buffer.getvalue()))
        path = write(tmp_path / "a.tar", [("x.png", buffer.getvalue()), ("x.txt", b"a cat")])
        fingerprints.add(TarShards([path]).fingerprint)
    assert len(sizes) == 1 and len(fingerprints) == 4


def test_what_lies_behind_the_first_dot_is_no_part_of_the_key(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tar",
        pair("x"),
        [("x.seg.png", b"mask"), ("y.2.jpg", b"pixels"), ("y.2.txt", b"a cat")],
        [("z.jpg", b"pixels"), ("z.en.txt", b"a cat")],
        [("u.cls", b"1"), ("v.gif", b"pixels"), ("v.txt", b"moving")],
    )
    source = TarShards([path])
    assert keys(source) == ["x", "v"]
    assert source.skipped == {
        "empty caption (it is read from KEY.txt, not KEY.*.txt)": 1,
        "no image (a key ends at the first dot: KEY.*.jpg is none)": 1,
        "no image": 1,
    }


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("22.05.png", b"pixels"), ("22.05.txt", b"a cat")],
         "no image (a key ends at the first dot: KEY.*.png is none)"),
        ([("x.svg", b"<svg>"), ("x.txt", b"a cat")], "image format that is not read (.svg)"),
        ([("x.jpg", b"pixels"), ("x.caption", b"a cat")],
         "empty caption (it is read from KEY.txt, not KEY.caption)"),
        ([("x.jpg", b"pixels"), ("x.txt.gz", b"a cat")],
         "empty caption (it is read from KEY.txt, not KEY.txt.gz)"),
        ([("x.jpg", b"pixels"), ("x.json", b'{"text": "a cat"}')],
         "empty caption (json has 'text', and no 'caption')"),
    ],
)  # fmt: skip
def test_what_was_found_instead_is_said(tmp_path: Path, members: Members, reason: str) -> None:
    source = TarShards([write(tmp_path / "a.tar", pair("good"), members)])
    assert keys(source) == ["good"] and source.skipped == {reason: 1}


def test_images_by_any_of_their_suffixes(tmp_path: Path) -> None:
    suffixes = ("jfif", "JPE", "ppm", "avif")
    path = write(tmp_path / "a.tar", *(pair(suffix, extension=suffix) for suffix in suffixes),
                 [("x.ppm", b"second"), *pair("x", extension="jpg")])  # fmt: skip
    source = TarShards([path])
    assert keys(source) == [*suffixes, "x"] and source.skipped == {}
    assert source[4].image == b"pixels of x"  # As it was before the others were images, too.


@pytest.mark.parametrize("length", [0, 1, 100, 511, 512, 600, 5000])
def test_a_shard_cut_anywhere_is_counted(tmp_path: Path, length: int) -> None:
    whole = write(tmp_path / "a.tar", *(pair(f"{n}") for n in range(4)))
    (tmp_path / "b.tar").write_bytes(whole.read_bytes()[:length])
    source = TarShards([whole, tmp_path / "b.tar"])
    assert len(source) + source.skipped["truncated tar"] == 8
    assert list(source.skipped_files) == [str(tmp_path / "b.tar")]


@settings(max_examples=20, deadline=None)
@given(counts=st.lists(st.integers(1, 4), min_size=2, max_size=3), padding=st.sampled_from((0, 3)))
def test_pairs_behind_the_end_mark_are_counted(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], padding: int
) -> None:
    folder = tmp_path_factory.mktemp("joined")
    tars = [write(folder / f"{n}.part", *(pair(f"{n}-{k}") for k in range(count))).read_bytes()
            for n, count in enumerate(counts)]  # fmt: skip
    (folder / "a.tar").write_bytes(b"".join(tars) + bytes(padding * 512))
    source = open_source(f"webdataset:{folder}/a.tar")
    assert len(source) == counts[0]
    assert source.skipped == {"behind the end of the tar": sum(counts[1:])}
    assert "a.tar" in describe_skipped_files(source)


def test_rubbish_behind_the_end_mark_is_one_record(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", pair("x"))
    path.write_bytes(path.read_bytes() + b"rubbish" * 1000)
    assert TarShards([path]).skipped == {"behind the end of the tar": 1}


def test_pickles_and_threads_read_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", *(pair(f"{number:03d}") for number in range(50)))
    source = pickle.loads(pickle.dumps(TarShards([path])))
    with ThreadPoolExecutor(8) as threads:
        records = list(threads.map(source.__getitem__, list(range(50)) * 10))
    assert [record.key for record in records] == [f"{number:03d}" for number in range(50)] * 10
    assert all(record.image == f"pixels of {record.key}".encode() for record in records)


@pytest.mark.parametrize(
    ("metadata", "text", "captions"),
    [
        ({"captions": ["one", "two"]}, b"own", ("own", "one", "two")),
        ({"captions": ["one", " own ", "", 3, None, "one\0"]}, b"own", ("own", "one")),
        ({"captions": ["one", "two"]}, b"", ("one", "two")),
        ({"caption": ["one", "two"]}, b"own", ("own", "one", "two")),
        ({"caption": "raw text of own"}, b"own", ("own",)),
        ({"caption": "lone", "captions": ["one"]}, b"", ("lone", "one")),
        ({"captions": "no list"}, b"own", ("own", "no list")),
        ({"captions": {"a": 1}}, b"own", ("own",)),
    ],
)
def test_several_captions(
    tmp_path: Path, metadata: dict, text: bytes, captions: tuple[str, ...]
) -> None:
    members = [("x.jpg", b"pixels"), ("x.json", json.dumps(metadata).encode()), ("x.txt", text)]
    record = TarShards([write(tmp_path / "a.tar", members)])[0]
    assert record.captions == captions and record.caption == captions[0]


def test_links_stand_for_no_file(tmp_path: Path) -> None:
    buffer = io.BytesIO(tar_bytes(pair("good")))
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        for kind, name in ((tarfile.SYMTYPE, "x"), (tarfile.LNKTYPE, "y")):
            link = tarfile.TarInfo(f"{name}.jpg")
            link.type, link.linkname = kind, "/etc/passwd"
            archive.addfile(link)
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    source = TarShards([tmp_path / "a.tar"])
    assert keys(source) == ["good"] and source.skipped == {"no image": 2}
