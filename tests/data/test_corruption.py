"""A thousand damaged files: nothing crashes, nothing hangs, and each is counted by its reason."""

import random
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from corruption import (
    DAMAGES,
    KEEPS_THE_PAIR,
    damaged_pairs,
    flip_bits,
    forge_header,
    image_file,
    write_damaged_shards,
)
from shard_files import pair, tar_bytes

from otter_jax.data import images
from otter_jax.data.sources import Record, Source, open_source, refuse_too_many_bad


def unreadable(source: Source) -> set[str]:
    """Keys of the records whose images cannot be decoded."""
    failed = set()
    for number in range(len(source)):
        record: Record = source[number]
        assert record.caption and "\0" not in record.caption and len(record.caption) <= 10_000
        try:
            images.decode(record.image)
        except images.ImageError as error:
            assert str(error) and "\n" not in str(error)
            failed.add(record.key)
    return failed


def test_a_thousand_damaged_pairs_are_counted_by_reason(tmp_path: Path) -> None:
    kinds = [kind for kind, _ in damaged_pairs(1000)]
    counts = write_damaged_shards(tmp_path, 1000)
    source = open_source(f"webdataset:{tmp_path}")
    expected: Counter[str] = Counter()
    for kind, number in counts.items():
        if DAMAGES[kind].skipped:
            expected[DAMAGES[kind].skipped] += number
    assert source.skipped == expected
    kept = [kind for kind in kinds if not DAMAGES[kind].skipped or kind in KEEPS_THE_PAIR]
    assert len(source) == len(kept)
    failed = unreadable(source)
    for number, kind in enumerate(kinds):
        if (f"{number:06d}" in failed) is not (expectation := DAMAGES[kind].unreadable):
            assert expectation is None, (number, kind)


def test_more_bad_pairs_than_allowed_are_refused_with_their_reasons(tmp_path: Path) -> None:
    write_damaged_shards(tmp_path, 190)
    source = open_source(f"webdataset:{tmp_path}")
    total = len(source) + sum(source.skipped.values())
    refuse_too_many_bad(source.skipped, total, share=0.5)
    with pytest.raises(ValueError, match=r"max_bad_share=0.05.*empty caption: 20.*not UTF-8: 10"):
        refuse_too_many_bad(source.skipped, total, share=0.05)


def damaged_archives(count: int) -> list[bytes]:
    """A tar of ten pairs, cut, with bits flipped, or with forged headers, `count` times each."""
    rng, archives = random.Random(0), []
    for number in range(count):
        tar_format = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)[number % 3]
        long = "" if tar_format == tarfile.USTAR_FORMAT else "é" * 90
        whole = tar_bytes([m for n in range(10) for m in pair(long * (n % 3) + str(n))], tar_format)
        archives.append(whole[: rng.randrange(len(whole))])
        archives.append(flip_bits(whole, rng, rng.choice([1, 8, 64])))
        archives.append(forge_header(whole, rng))
    return archives


def test_damaged_archives_are_cut_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    opened = 0
    for data in damaged_archives(200):
        path.write_bytes(data)
        try:
            source = open_source(f"webdataset:{path}")
        except ValueError as error:
            assert "not an uncompressed tar" in str(error) or "no image-text pair" in str(error)
            continue
        opened += 1
        assert all(source[number].image for number in range(len(source)))
    assert opened > 300
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tar"]  # Nothing was unpacked.


def test_damaged_files_in_a_folder_with_texts(tmp_path: Path) -> None:
    rng = random.Random(1)
    for kind, members in damaged_pairs(190, seed=2):
        if kind not in ("absolute name", "name that leads out", "key twice"):
            for name, data in members:
                (tmp_path / name).write_bytes(data)
    (tmp_path / "no_text.jpg").write_bytes(image_file(rng))
    source = open_source(f"folder:{tmp_path}")
    assert source.skipped == {
        "caption not UTF-8": 10, "empty caption": 20, "empty image": 10, "no text file": 1
    }  # fmt: skip
    assert len(unreadable(source)) >= 50
