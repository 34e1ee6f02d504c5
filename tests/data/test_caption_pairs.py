"""Every caption is a pair of its own: from every kind of source, against lists written out."""

import csv
import itertools
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import draw_shape
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_files import write

from otter_jax.config import check, default_config
from otter_jax.data.batches import Batch, batches
from otter_jax.data.caption_pairs import CaptionPairs
from otter_jax.data.pair_loader import PairLoader
from otter_jax.data.sources import Mixture, RecordError, Source, open_source, skipped_files
from otter_jax.data.texts import Tokenizer

Captions = list[list[str]]  # By image.
IMAGES: Captions = [["red"], ["blue", "navy", "sky"], ["green", "lime"]]


def caption_lists() -> st.SearchStrategy[Captions]:
    word = st.text("abc é", min_size=1, max_size=4).map(str.strip).filter(bool)
    return st.lists(st.lists(word, min_size=1, max_size=5, unique=True), min_size=1, max_size=6)


def write_tar(folder: Path, images: Captions) -> str:
    """Two shards, the second of which may be empty of usable pairs."""
    shards: list[list] = [[], [[("broken.txt", b"no image")]]]
    for number, captions in enumerate(images):
        note = json.dumps({"captions": captions}).encode()
        members = [(f"{number}.jpg", b"%d" % number), (f"{number}.json", note)]
        shards[number % 2].append(members)
    images[:] = images[::2] + images[1::2]  # As they are numbered now.
    for number, pairs in enumerate(shards):
        write(folder / f"{number}.tar", *pairs)
    return f"webdataset:{folder}"


def write_folder(folder: Path, images: Captions) -> str:
    for number, captions in enumerate(images):
        (folder / f"{number}.jpg").write_bytes(b"pixels")
        (folder / f"{number}.txt").write_text("\n".join(captions))
    return f"folder:{folder}"


def write_csv(folder: Path, images: Captions) -> str:
    (folder / "x.jpg").write_bytes(b"pixels")
    with (folder / "x.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("image", "caption"))
        rows.writerows(("x.jpg", json.dumps(captions)) for captions in images)
        rows.writerow(("gone.jpg", "an image that is not there"))
    return f"csv:{folder}/x.csv"


def write_parquet(folder: Path, images: Captions) -> str:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"image": [b"pixels"] * len(images), "captions": images})
    for half in (slice(0, 1), slice(1, None)):
        if len(part := table[half]):
            parquet.write_table(part, folder / f"{half.start}.parquet")
    return f"csv:{folder}/*.parquet"


WRITERS = (write_tar, write_folder, write_csv, write_parquet)


def everything(source: Source) -> list[str]:
    records = [source[number] for number in range(len(source))]
    assert all(record.captions == (record.caption,) and record.image for record in records)
    return [record.caption for record in records]


@pytest.mark.parametrize("write_data", WRITERS)
@settings(max_examples=20, deadline=None)
@given(images=caption_lists())
def test_every_caption_of_every_image_in_order(
    tmp_path_factory: pytest.TempPathFactory, write_data, images: Captions
) -> None:
    spec = write_data(tmp_path_factory.mktemp("pairs"), images)
    source = open_source(spec, every_caption=True)
    assert everything(source) == list(itertools.chain(*images))
    plain = open_source(spec)
    assert [plain[number].captions for number in range(len(plain))] == list(map(tuple, images))
    assert source.skipped == plain.skipped and source.fingerprint != plain.fingerprint
    assert source.name == plain.name
    np.testing.assert_array_equal(plain.caption_counts, [len(captions) for captions in images])
    with pytest.raises(IndexError):
        source[len(source)]


def test_counts_are_kept_with_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otter_jax.data.shard_index._WORTH_KEEPING", 1)
    images = list(IMAGES)
    spec = write_tar(tmp_path, images)
    first = everything(open_source(spec, every_caption=True))
    monkeypatch.setattr("otter_jax.data.tar_shards.scan_shard", None)  # No second scan.
    assert everything(open_source(spec, every_caption=True)) == first


def test_mixed_sources_keep_their_order(tmp_path: Path) -> None:
    for name in ("table", "folder"):
        (tmp_path / name).mkdir()
    specs = (write_csv(tmp_path / "table", IMAGES), write_folder(tmp_path / "folder", IMAGES[:2]))
    source = open_source(specs, every_caption=True)
    assert isinstance(source, Mixture) and source.lengths == (6, 4)
    assert everything(source) == ["red", "blue", "navy", "sky", "green", "lime",
                                  "red", "blue", "navy", "sky"]  # fmt: skip
    assert source.skipped == {"missing image": 1}


def test_truncated_shards_are_named(tmp_path: Path) -> None:
    spec = write_tar(tmp_path, list(IMAGES))
    (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:2600])
    source = open_source(spec, every_caption=True)
    assert skipped_files(source) == skipped_files(open_source(spec)) != {}


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawings")
    for number, (shape, captions) in enumerate(zip(("ring", "bar", "cross"), IMAGES, strict=True)):
        (folder / f"{number}.png").write_bytes(draw_shape("red", shape))
        (folder / f"{number}.txt").write_text("\n".join(captions))
    return folder


def stream(folder: Path, tokenizer_folder: Path, **options) -> Iterator[Batch]:
    """Batches of four of the six pairs."""
    source = open_source(f"folder:{folder}", every_caption=True)
    load = PairLoader(source, Tokenizer(tokenizer_folder, max_tokens=6), image_size=8, fit="crop",
                      augmentation="random_resized_crop", flip=False, seed=0)  # fmt: skip
    return batches(load, len(source), batch_size=4, seed=0, **options)


def test_an_epoch_has_every_pair_once(drawings: Path, tokenizer_folder: Path) -> None:
    three = itertools.islice(stream(drawings, tokenizer_folder), 3)  # Two epochs.
    shown = np.concatenate([batch["index"] for batch in three])
    assert sorted(shown[:6]) == sorted(shown[6:]) == list(range(6))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 9), st.sampled_from([1, 2, 4]), st.integers(0, 2))
def test_batches_are_a_function_of_seed_and_step(
    drawings: Path, tokenizer_folder: Path, start: int, processes: int, threads: int
) -> None:
    whole = next(itertools.islice(stream(drawings, tokenizer_folder), start, None))
    parts = [
        next(stream(drawings, tokenizer_folder, start_step=start, threads=threads,
                    process=(number, processes)))
        for number in range(processes)
    ]  # fmt: skip
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values)


def test_captions_that_have_changed_are_not_used(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path, IMAGES), every_caption=True)
    (tmp_path / "1.txt").write_text("blue\nnavy")
    assert source[0].caption == "red" and source[4].caption == "green"
    for number in (1, 2, 3):
        with pytest.raises(RecordError, match="captions have changed"):
            source[number]


def test_memory_is_some_bytes_a_record() -> None:
    counts = np.full(1_000_000, 5, np.uint32)
    records = SimpleNamespace(name="", skipped={}, fingerprint="", caption_counts=counts)
    tracemalloc.start()
    source = CaptionPairs(records)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(source) == 5_000_000 and peak < 9 * len(counts)


def test_estimated_trust_is_refused() -> None:
    config = default_config()
    config.data.captions = "all"
    check(config)
    config.objective.pair_weight = "estimated"
    with pytest.raises(ValueError, match=r"captions='all'.*vouch for each other.*take 'one'"):
        check(config)
    config.data.captions = "two"
    with pytest.raises(ValueError, match="choose from one, all"):
        check(config)
