"""What is kept of a long computation, against the whole at once."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax.embedding import kept_parts
from otter_jax.embedding.kept_parts import KeptParts, StoredArrays, count_rows, join, read_arrays

WHOLE = {"features": np.arange(24.0).reshape(12, 2), "names": np.array(list("abcdefghijkl"))}


def rest(known: Sequence[StoredArrays], size: int) -> Iterator[StoredArrays]:
    """Yield what follows what is known, some rows at a time."""
    start = count_rows(join(known)) // 2
    for first in range(start, 12, size):
        yield {name: rows[first : first + size] for name, rows in WHOLE.items()}


def stop_after(number: int, folder: Path, size: int) -> None:
    """Compute this many parts more, and be interrupted."""
    with pytest.raises(KeyboardInterrupt), KeptParts(folder) as parts:
        for done, part in enumerate(rest(tuple(parts.known), size)):
            if done == number:
                raise KeyboardInterrupt
            parts.add(part)
        raise KeyboardInterrupt


def finish(folder: Path, size: int) -> StoredArrays:
    with KeptParts(folder) as parts:
        for part in rest(tuple(parts.known), size):
            parts.add(part)
        return parts.whole()


def assert_whole(found: StoredArrays) -> None:
    assert found.keys() == WHOLE.keys()
    for name, rows in WHOLE.items():
        np.testing.assert_array_equal(found[name], rows)


@settings(max_examples=25, deadline=None)
@given(
    stops=st.lists(st.tuples(st.integers(0, 4), st.sampled_from([1, 2, 3, 5])), max_size=4),
    often=st.booleans(),
)
def test_interrupted_anywhere_it_is_the_same_in_the_end(stops: list, often: bool) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(kept_parts, "SECONDS", 0.0 if often else 60.0)
        path, rows = Path(folder) / "parts", 0
        for number, size in stops:
            stop_after(number, path, size)
            rows = min(12, rows + number * size)
            with KeptParts(path) as parts:
                assert count_rows(join(parts.known)) == 2 * rows
        assert_whole(finish(path, 2))


def test_others_that_cut_elsewhere_do_not_mix(tmp_path: Path) -> None:
    with KeptParts(tmp_path) as one, KeptParts(tmp_path) as other:
        for parts, size in ((one, 2), (other, 3)):
            for part in rest((), size):
                parts.add(part)
                parts._write()
    assert_whole(finish(tmp_path, 1))


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty"])
def test_damage_is_computed_again(tmp_path: Path, capsys: pytest.CaptureFixture, harm: str) -> None:
    for _ in range(2):
        stop_after(1, tmp_path, 4)
    last = sorted(tmp_path.iterdir())[-1]
    data = bytearray(last.read_bytes())
    data[data.find(b"NUMPY") + 130] ^= 1  # Among the numbers.
    kept = {"cut": data[: len(data) // 2], "flipped": data, "empty": b""}[harm]
    last.write_bytes(kept)
    with KeptParts(tmp_path) as parts:
        assert count_rows(join(parts.known)) == 8
    assert "is damaged" in capsys.readouterr().out
    assert_whole(finish(tmp_path, 4))


def test_nothing_is_left_of_nothing(tmp_path: Path) -> None:
    stop_after(0, tmp_path / "parts", 4)
    assert not (tmp_path / "parts").exists()
    assert read_arrays(tmp_path / "none.npz") is None
