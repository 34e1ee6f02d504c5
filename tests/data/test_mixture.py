"""Several sources as one, and batches of it: pure functions of seed and step."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_files import pair, write

from otter_jax.data import batches
from otter_jax.data.mixture import Mixture, count_by_source
from otter_jax.data.sources import Source, open_source


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    for shard in range(3):
        write(folder / f"{shard}.tar", *(pair(f"{n}", f"{shard} {n}".encode()) for n in range(9)))
    (folder / "x.jpg").write_bytes(b"pixels")
    rows = "".join(f"x.jpg,row {number}\n" for number in range(7))
    (folder / "x.csv").write_text("image,caption\n" + rows + "x.jpg,\n")
    return folder


@pytest.fixture
def reopen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Source]:
    monkeypatch.setattr("otter_jax.data.shard_index._WORTH_KEEPING", 1)
    return lambda: open_source((f"webdataset:{folder}/?.tar", f"csv:{folder}/x.csv"))


def test_records_keep_their_order_and_their_source(reopen: Callable[[], Source]) -> None:
    source = reopen()
    assert isinstance(source, Mixture) and source.lengths == (27, 7) and len(source) == 34
    assert (source[0].key, source[26].caption, source[27].caption) == ("0:0", "2 8", "row 0")
    assert source[-1].key == "1:x.jpg" and source.skipped == {"empty caption": 1}
    with pytest.raises(IndexError):
        source[34]
    assert source.fingerprint == reopen().fingerprint != reopen().sources[0].fingerprint


def test_count_by_source(reopen: Callable[[], Source]) -> None:
    source = reopen()
    assert count_by_source(source, np.arange(34)) == (27, 7)
    assert count_by_source(source, np.array([0, 26, 27, 28, 33])) == (2, 3)
    assert count_by_source(source.sources[0], np.array([3, 4])) == (2,)
    assert count_by_source(source, np.array([30])) == (0, 1)


def captions_of_batches(source: Source, steps: range, **options) -> list[list[str]]:
    def load(step: int, records: np.ndarray) -> batches.Batch:
        del step
        return {"caption": np.array([source[int(number)].caption for number in records])}

    lengths = source.lengths if isinstance(source, Mixture) else len(source)
    stream = batches.batches(load, lengths, batch_size=4, seed=3, start_step=steps.start, **options)
    return [batch["caption"].tolist() for batch in itertools.islice(stream, len(steps))]


@settings(max_examples=10, deadline=None)
@given(
    start=st.integers(0, 20),
    threads=st.integers(0, 2),
    processes=st.sampled_from([1, 2, 4]),
    weights=st.sampled_from([(), (1.0, 3.0), (0.7, 0.3)]),
    touch=st.booleans(),
)
def test_batches_do_not_depend_on_how_they_are_made(
    folder: Path, start: int, threads: int, processes: int, weights: tuple, touch: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("otter_jax.data.shard_index._WORTH_KEEPING", 1)
        specs = (f"webdataset:{folder}/?.tar", f"csv:{folder}/x.csv")
        source = open_source(specs)
        whole = captions_of_batches(source, range(23), weights=weights)
        if touch:  # One shard is scanned again.
            os.utime(folder / "1.tar")
        source = open_source(specs)
    parts = [
        captions_of_batches(
            source,
            range(start, start + 3),
            weights=weights,
            threads=threads,
            process=(p, processes),
        )
        for p in range(processes)
    ]
    joined = [list(itertools.chain(*rows)) for rows in zip(*parts, strict=True)]
    assert joined == whole[start : start + 3]
