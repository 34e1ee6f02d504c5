"""Counts against a small data set whose contents are known; match probabilities in closed form."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from otter_jax.data import statistics
from otter_jax.data.sources import Record, RecordError


def image_file(width: int, height: int, file_format: str = "PNG", colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, file_format)
    return buffer.getvalue()


class Records:
    """A source of given pairs; None stands for a record that turns out unusable."""

    name, fingerprint = "records", "0"

    def __init__(self, *pairs: tuple[bytes, str] | None):
        """Keep the pairs."""
        self.pairs, self.skipped = pairs, {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self.pairs)

    def __getitem__(self, i: int) -> Record:
        """One of them; its number is its key."""
        if self.pairs[i] is None:
            raise RecordError("no such file")
        return Record(str(i), *self.pairs[i], {})


def summary(*pairs: tuple[bytes, str] | None) -> dict[str, Any]:
    source, tally = Records(*pairs), statistics.Tally()
    for number in range(len(source)):
        tally.add(source, number)
    return tally.summary()


class TestTally:
    def test_everything_of_a_small_source(self) -> None:
        red = image_file(40, 20)
        found = summary(
            (red, "a red bar"),
            (red, "again"),
            (red, "a red bar"),
            (image_file(30, 60, "JPEG"), "a red bar"),
            (b"", "nothing"),
            (image_file(64, 64, "BMP")[:-100], "cut"),
            (b"<html>", "text"),
            None,
        )
        assert found["readable"] == 4
        assert found["unreadable_by_reason"] == {
            "zero bytes": 1, "truncated": 1, "not an image": 1, "no such file": 1,
        }  # fmt: skip
        named = ["4 (record 4)", "5 (record 5)", "6 (record 6)", "record 7"]
        assert list(found["unreadable"]) == named
        assert found["unreadable"]["record 7"] == "no such file"
        assert found["formats"] == {"PNG RGB": 3, "JPEG RGB": 1}
        assert found["copies of images"] == {"count": 2, "share": 0.5, "largest group": 3}
        assert found["copies of captions"] == {"count": 2, "share": 2 / 7, "largest group": 3}
        assert (found["width"]["min"], found["width"]["max"]) == (30, 40)
        assert (found["width / height"]["min"], found["width / height"]["max"]) == (0.5, 2.0)
        assert (found["characters"]["min"], found["characters"]["max"]) == (3, 9)
        assert (found["words"]["min"], found["words"]["median"], found["words"]["max"]) == (1, 1, 3)

    def test_a_thousand_of_the_unreadable_are_named(self) -> None:
        found = summary(*[None] * 1003)
        assert len(found["unreadable"]) == 1000
        assert found["unreadable_by_reason"] == {"no such file": 1003}

    def test_nothing_readable(self) -> None:
        found = summary((b"", "a"), None)
        assert found["readable"] == 0 and found["width"] == {}
        assert found["copies of images"]["count"] == 0

    @given(st.lists(st.integers(0, 2**64 - 1), max_size=40))
    def test_copies_are_what_a_set_would_drop(self, digests: list[int]) -> None:
        digests += digests[:5]
        found = statistics.copies(digests)
        assert found["count"] == len(digests) - len(set(digests))


class TestChoose:
    def test_all_or_some(self) -> None:
        np.testing.assert_array_equal(statistics.choose(5, None, 0), range(5))
        np.testing.assert_array_equal(statistics.choose(5, 9, 0), range(5))
        some = statistics.choose(100, 10, 0)
        assert len(set(some.tolist())) == 10 and (np.diff(some) > 0).all() and some.max() < 100
        np.testing.assert_array_equal(statistics.choose(100, 10, 0), some)
        assert not np.array_equal(statistics.choose(100, 10, 1), some)

    @pytest.mark.parametrize("limit", [0, -1])
    def test_none_at_all_is_refused(self, limit: int) -> None:
        with pytest.raises(ValueError, match=f"--limit={limit}"):
            statistics.choose(5, limit, 0)


class TestMatchProbability:
    def test_unrelated_pairs_that_fit_perfectly(self) -> None:
        found = statistics.match_probability(np.eye(4), np.eye(4), scale=3.0, batch_size=4)
        others = 1 / (np.exp(3) + 3)
        assert found["on_diagonal"] == pytest.approx(np.exp(3) * others)
        assert found["off_diagonal"] == pytest.approx(others)
        assert found["off_diagonal_max"] == pytest.approx(others)

    def test_a_model_that_sees_nothing(self) -> None:
        same = np.tile([1.0, 0.0], (8, 1))
        found = statistics.match_probability(same, same, scale=100.0, batch_size=8)
        for name in ("on_diagonal", "off_diagonal", "off_diagonal_max"):
            assert found[name] == pytest.approx(1 / 8)

    def test_rows_are_images_and_batches_are_whole(self) -> None:
        rng = np.random.default_rng(0)
        images, texts = rng.normal(size=(2, 11, 3))
        found = statistics.match_probability(images, texts, scale=2.0, batch_size=4)
        on, off, best = [], [], []
        for start in (0, 4):  # The three left over make no batch.
            for i in range(start, start + 4):
                weights = [np.exp(2 * images[i] @ texts[j]) for j in range(start, start + 4)]
                shares = np.array(weights) / sum(weights)
                on.append(shares[i - start])
                others = np.delete(shares, i - start)
                off.append(others.mean())
                best.append(others.max())
        assert found["on_diagonal"] == pytest.approx(np.mean(on))
        assert found["off_diagonal"] == pytest.approx(np.mean(off))
        assert found["off_diagonal_max"] == pytest.approx(np.mean(best))
        assert (found["batches"], found["batch_size"]) == (2, 4)

    def test_fewer_pairs_than_a_batch_are_one_batch(self) -> None:
        found = statistics.match_probability(np.eye(3), np.eye(3), scale=1.0, batch_size=512)
        assert (found["batches"], found["batch_size"]) == (1, 3)

    def test_one_pair_is_refused(self) -> None:
        with pytest.raises(ValueError, match="two pairs"):
            statistics.match_probability(np.eye(1), np.eye(1), scale=1.0, batch_size=512)
